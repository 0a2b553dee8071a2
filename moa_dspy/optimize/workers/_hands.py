"""The threads of one process that work on tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, TypeAlias

from moa_dspy.calls import call_scope
from moa_dspy.errors import OutageError, StoreError
from moa_dspy.optimize.workers._tasks import Task, TaskBoard

Ask: TypeAlias = Callable[[Task], None]

_LOOK_AT_DEAD_SECONDS: Final = 0.5
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.05


class Hands:
    """Takes as many tasks as it has threads and hands in what is done; one thread calls it.

    A model's failure, an end of the budget, or a mistake in a program is met again by the
    coordinator, where it counts; here it ends a task.

    Args:
        board: Where the tasks are.
        ask: Asks all that a task needs, into the store.
        n_threads: Tasks at the same time.
    """

    def __init__(self, board: TaskBoard, ask: Ask, *, n_threads: int) -> None:
        self._board, self._ask, self._n_threads = board, ask, n_threads
        self._running: dict[Future[None], Task] = {}
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="moa-task")
        self._given_up = threading.Event()
        self._looked_at = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self.n_done = 0

    def turn(self) -> None:
        """Hand in what is done and take what is free.

        Raises:
            StoreError: If the store cannot be used.
            OutageError: If an endpoint is down for longer than it is waited for.
        """
        done = [future for future in self._running if future.done()]
        tasks = [self._running.pop(future) for future in done]
        for future in done:
            future.result()
        taken = self._board.exchange(tasks, n=self._n_threads - len(self._running))
        self.n_done += len(tasks)
        for task in taken:
            self._running[self._threads.submit(self._work, task)] = task
        if taken or tasks:
            self._pause = _FIRST_PAUSE_SECONDS
        elif len(self._running) < self._n_threads:
            self._look_at_dead()

    @property
    def has_news(self) -> bool:
        """Whether a task was done since the last turn."""
        return any(future.done() for future in self._running)

    def _look_at_dead(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > _LOOK_AT_DEAD_SECONDS:
            self._looked_at = now
            self._board.free_the_dead(with_mine=not self._running)

    def rest(self) -> None:
        """Wait until a task is done, or for a moment: 5 ms at first, 50 ms where nothing is new."""
        if self._running:
            wait(self._running, timeout=self._pause, return_when=FIRST_COMPLETED)
        else:
            time.sleep(self._pause)
        self._pause = min(1.5 * self._pause, _LONGEST_PAUSE_SECONDS)

    def _work(self, task: Task) -> None:
        try:
            with call_scope(cancelled=self._given_up):
                self._ask(task)
        except (StoreError, OutageError):
            raise
        except Exception:
            return  # the coordinator meets it too, and says what it means

    def close(self) -> None:
        """Wait for what is on its way, which is paid for; nothing else is begun."""
        self._given_up.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

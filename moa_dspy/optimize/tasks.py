"""Tasks of a study: their queue in the database, the threads that run them, and the publisher.

A task is one architecture on one example. The coordinator's ``QueueWorkers`` publishes tasks; a
``TaskRunner`` in each process takes them from the ``TaskQueue``, makes the calls, and marks them
as done. The answers are then in the call store, where the coordinator reads them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.calls.budget import Ledger, budget_share
from moa_dspy.calls.scope import call_scope
from moa_dspy.calls.store.store import CallStore
from moa_dspy.errors import OutageError, StoreError

_FIRST_LATER = 2**40
"""Tasks with this number or a higher one wait until there are no others."""
_OF_STUDY = "study = ? AND is_done = 0"


@dataclass(frozen=True, slots=True)
class Task:
    """One architecture on one example.

    Attributes:
        architecture: Its text notation, or two systems that a judge compares, "A vs B".
        example: Id of the example.
        share: Part of the budget that the stage of this task may use.
    """

    architecture: str
    example: str
    share: float = 1.0


class TaskQueue:
    """The tasks of one study; a task taken twice costs no more, as every call is made once.

    Args:
        store: The database of the study.
        study: Key of the study in the database.
    """

    def __init__(self, store: CallStore, study: str) -> None:
        self._owner, self._database, self._study = store.owner, store.database, study
        unowned = f"{_OF_STUDY} AND owner IS NULL"
        self._look = f"SELECT 1 FROM tasks WHERE {unowned} LIMIT 1"
        first = f"SELECT number FROM tasks WHERE {unowned} ORDER BY number LIMIT ?"
        chosen = f"IN ({first})"
        if self._database.is_postgresql:
            # As an array it is evaluated once; a plain subquery may run again and take more rows.
            chosen = f"= ANY (ARRAY ({first} FOR UPDATE SKIP LOCKED))"
        self._take = (
            f"UPDATE tasks SET owner = ? WHERE {_OF_STUDY} AND number {chosen} "
            "RETURNING number, architecture, example, share"
        )

    def clear(self) -> None:
        """Delete the open tasks; a new coordinator publishes its own."""
        delete = f"DELETE FROM tasks WHERE {_OF_STUDY}"
        self._database.transact(lambda session: session.execute(delete, (self._study,)))

    def publish(self, tasks: Iterable[Task], *, is_urgent: bool = True) -> None:
        """Add tasks in this order; tasks already in the queue only move forward.

        Args:
            tasks: Tasks in the order in which they should run.
            is_urgent: Whether they go before all tasks that are not urgent.
        """
        new_tasks = list(tasks)
        first = 0 if is_urgent else _FIRST_LATER
        last = "SELECT max(number) FROM tasks WHERE study = ? AND number BETWEEN ? AND ?"
        insert = (
            "INSERT INTO tasks (study, architecture, example, number, share, is_done) "
            "VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (study, architecture, example) "
            "DO UPDATE SET number = excluded.number "
            "WHERE tasks.is_done = 0 AND tasks.number > excluded.number"
        )

        def work(session: Any) -> None:
            ((number,),) = session.rows(last, (self._study, first, first + _FIRST_LATER - 1))
            numbered = enumerate(new_tasks, start=(first if number is None else number) + 1)
            session.execute_many(
                insert,
                [(self._study, t.architecture, t.example, n, t.share) for n, t in numbered],
            )

        self._database.transact(work, is_durable=False)

    def exchange(self, done: Sequence[Task], *, n: int) -> list[Task]:
        """Remove tasks that are done, and take at most ``n`` others in the queue's order."""
        if not done and not (n and self._database.rows(self._look, (self._study,))):
            return []
        self._owner.register()
        finish = (
            "UPDATE tasks SET is_done = 1, owner = NULL "
            "WHERE study = ? AND architecture = ? AND example = ?"
        )

        def work(session: Any) -> list[Any]:
            if done:
                rows = [(self._study, task.architecture, task.example) for task in done]
                session.execute_many(finish, rows)
            values = (self._owner.id, self._study, self._study, n)
            return session.execute(self._take, values).fetchall() if n else []

        taken = self._database.transact(work, is_durable=False)
        return [Task(*rest) for _, *rest in sorted(taken)]

    def open_examples(self, architecture: str) -> set[str]:
        """Return the examples of the open tasks of ``architecture``."""
        query = f"SELECT example FROM tasks WHERE {_OF_STUDY} AND architecture = ?"
        return {example for (example,) in self._database.rows(query, (self._study, architecture))}

    def free_orphans(self, *, with_mine: bool = False) -> None:
        """Release the tasks of dead processes.

        Args:
            with_mine: Whether to release tasks of this process too: if it runs none, they were
                taken in a transaction whose end was lost with the connection.
        """
        owners = self._database.rows(
            "SELECT tasks.owner, min(owners.beat), "
            f"min(CASE WHEN owners.expires < {self._database.clock} THEN 1 ELSE 0 END) "
            "FROM tasks LEFT JOIN owners ON owners.owner = tasks.owner "
            f"WHERE {_OF_STUDY} AND tasks.owner IS NOT NULL GROUP BY tasks.owner",
            (self._study,),
        )
        for owner_id, beat, has_expired in owners:
            is_mine = owner_id == self._owner.id
            if is_mine and not with_mine:
                continue
            if is_mine or self._owner.is_dead(owner_id, beat, has_expired=bool(has_expired)):
                self._database.transact(partial(self._free, owner_id=owner_id), is_durable=False)

    def _free(self, session: Any, *, owner_id: str) -> None:
        free = f"UPDATE tasks SET owner = NULL WHERE {_OF_STUDY} AND owner = ?"
        session.execute(free, (self._study, owner_id))


TaskWork: TypeAlias = Callable[[Task], None]
"""Makes all calls of a task; the answers go to the store."""

_LOOK_FOR_ORPHANS_SECONDS: Final = 0.5
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.05


class TaskRunner:
    """Runs as many tasks as it has threads and marks finished ones as done; not thread-safe.

    A failure of a model, the end of the budget, or an error in a program ends a task silently:
    the same error recurs when the coordinator measures the architecture, and is reported there.

    Args:
        queue: The tasks of the study.
        work: Function that runs a task, called in a thread.
        num_threads: Tasks at the same time.
    """

    def __init__(self, queue: TaskQueue, work: TaskWork, *, num_threads: int) -> None:
        self._queue, self._work, self._n_threads = queue, work, num_threads
        self._running: dict[Future[None], Task] = {}
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="moa-task")
        self._cancelled = threading.Event()
        self._looked_at = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self.n_done = 0

    def turn(self) -> None:
        """Mark finished tasks as done and take free ones.

        Raises:
            StoreError: If the store cannot be used.
            OutageError: If an endpoint is down for longer than the study waits.
        """
        done = [future for future in self._running if future.done()]
        tasks = [self._running.pop(future) for future in done]
        for future in done:
            future.result()
        taken = self._queue.exchange(tasks, n=self._n_threads - len(self._running))
        self.n_done += len(tasks)
        for task in taken:
            self._running[self._threads.submit(self._run, task)] = task
        if taken or tasks:
            self._pause = _FIRST_PAUSE_SECONDS
        elif len(self._running) < self._n_threads:
            self._look_for_orphans()

    @property
    def has_news(self) -> bool:
        """True if a task was finished since the last turn."""
        return any(future.done() for future in self._running)

    def _look_for_orphans(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > _LOOK_FOR_ORPHANS_SECONDS:
            self._looked_at = now
            self._queue.free_orphans(with_mine=not self._running)

    def rest(self) -> None:
        """Wait until a task is finished, or for a pause that grows from 5 to 50 ms while idle."""
        if self._running:
            wait(self._running, timeout=self._pause, return_when=FIRST_COMPLETED)
        else:
            time.sleep(self._pause)
        self._pause = min(1.5 * self._pause, _LONGEST_PAUSE_SECONDS)

    def _run(self, task: Task) -> None:
        try:
            with call_scope(cancelled=self._cancelled):
                self._work(task)
        except (StoreError, OutageError):
            raise
        except Exception:
            return  # the error recurs in the coordinator, which reports it

    def close(self) -> None:
        """Wait for the calls in flight, which are paid for, and start no others."""
        self._cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


class QueueWorkers:
    """The ``WorkerPool`` of all processes that work on a study.

    Args:
        queue: The tasks of the study.
        runner: Runner of this process.
        ledger: Has the part of the budget that the current stage may use.
    """

    def __init__(self, queue: TaskQueue, runner: TaskRunner, ledger: Ledger) -> None:
        self._queue, self._runner, self._ledger = queue, runner, ledger
        self._offered: dict[tuple[str, str], bool] = {}

    def announce(
        self, tasks: Iterable[tuple[str, Sequence[dspy.Example]]], *, is_urgent: bool
    ) -> None:
        """See the protocol."""
        pairs = dict.fromkeys((task, row.id) for task, rows in tasks for row in rows)
        offered = self._offered
        fresh = [pair for pair in pairs if pair not in offered or (is_urgent and not offered[pair])]
        if fresh:
            share = budget_share(self._ledger)
            self._queue.publish([Task(*pair, share) for pair in fresh], is_urgent=is_urgent)
            offered.update(dict.fromkeys(fresh, is_urgent))

    def ready(self, task: str, rows: Sequence[dspy.Example]) -> Iterator[dspy.Example]:
        """See the protocol."""
        self.announce([(task, rows)], is_urgent=True)
        waiting = {row.id: row for row in rows}
        while True:
            self._runner.turn()
            still_open = self._queue.open_examples(task)
            for name in [name for name in waiting if name not in still_open]:
                yield waiting.pop(name)
                if self._runner.has_news:
                    self._runner.turn()
            if not waiting:
                return
            self._runner.rest()

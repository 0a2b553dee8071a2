"""Asks agents in their seats: the right LM, sample and adapter, and a failure that is data."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import dspy

from moa_dspy.aggregators import Question
from moa_dspy.calls import call_scope, current_scope
from moa_dspy.pool import Pool
from moa_dspy.response import Response
from moa_dspy.seats._module import acall
from moa_dspy.seats._outside_lm import outside_lms, rollout, without_lms
from moa_dspy.seats._seat import Asked, Seat, abandoned
from moa_dspy.seats._status import Status
from moa_dspy.threads import THREADS, finished


@dataclass(frozen=True, slots=True)
class Seats:
    """Asks questions; each agent's LM is bound at the call, so no copy or reset can lose it."""

    pool: Pool
    adapter: Any = None

    def ask_all(self, questions: Sequence[Question]) -> list[Response]:
        """Ask all at the same time; responses come in the questions' order.

        A question that has a deadline is no longer waited for after it; its thread may
        finish the request that it has sent, into the store, and changes nothing else.

        Raises:
            MoaError: If the reason for no answer is not the model: budget, replay, store, pool.
        """
        if _is_alone(questions):
            return _collected([self._ask(questions[0])])
        cancelled = threading.Event()
        try:
            return _collected(self._asked_by_threads(questions, cancelled))
        except BaseException:
            cancelled.set()
            raise

    def _asked_by_threads(
        self, questions: Sequence[Question], cancelled: threading.Event
    ) -> list[Asked]:
        late, status = _deadline(questions), Status(questions)
        tasks = [partial(self._ask, question, cancelled) for question in questions]
        # Each thread gets a copy of the context: settings, usage tracker, call scope.
        tasks = [partial(copy_context().run, task) for task in tasks]
        if late is None and not status.is_wanted:
            # Nothing else is to be done meanwhile, so this thread is one of them.
            others = [THREADS.submit(task) for task in tasks[:-1]]
            last = finished(tasks[-1])
            wait(others)
            return [future.result() for future in (*others, last)]
        running = [THREADS.submit(task) for task in tasks]
        done = status.watched(running, late) if status.is_wanted else wait(running, late).done
        if len(done) < len(running):
            cancelled.set()
        asked = zip(questions, running, strict=True)
        return [f.result() if f in done else abandoned(q) for q, f in asked]

    def _ask(self, question: Question, cancelled: threading.Event | None = None) -> Asked:
        with self._seat(question, cancelled) as seat:
            try:
                prediction = seat.module(**question.inputs)
            except Exception as error:
                return seat.failed(error)
            return seat.answered(prediction)

    async def aask_all(self, questions: Sequence[Question]) -> list[Response]:
        """``ask_all`` as tasks; a straggler is cancelled, and all are if the caller is."""
        if _is_alone(questions):
            return _collected([await self._aask(questions[0])])
        status = Status(questions)
        tasks = [asyncio.ensure_future(self._aask(question, status)) for question in questions]
        try:
            await asyncio.wait(tasks, timeout=_deadline(questions))
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            # Even a cancelled task is waited for: it still has to note what it spent.
            await asyncio.gather(*tasks, return_exceptions=True)
        asked = zip(questions, tasks, strict=True)
        return _collected([abandoned(q) if t in late else t.result() for q, t in asked])

    async def _aask(self, question: Question, status: Status | None = None) -> Asked:
        cancelled = threading.Event()
        with self._seat(question, cancelled) as seat:
            try:
                prediction = await acall(seat.module, question.inputs)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            except Exception as error:
                asked = seat.failed(error)
            else:
                asked = seat.answered(prediction)
        if status is not None:
            await status.aanswered(asked[0])
        return asked

    @contextmanager
    def _seat(self, question: Question, cancelled: threading.Event | None = None) -> Iterator[Seat]:
        outside = outside_lms(question.module)
        module = without_lms(question.module, outside) if outside else question.module
        settings: dict[str, Any] = {"lm": self._lm(question, rollout(outside))}
        if self.adapter is not None:
            settings["adapter"] = self.adapter
        if not question.is_final:
            # Proposers are not what the user reads, and in a thread of ours they cannot stream.
            settings["send_stream"] = None
        if dspy.settings.trace is not None:
            # An own trace: a straggler that comes late must not write into the caller's.
            settings["trace"] = []
        late = question.deadline_seconds
        moment = None if late is None else time.monotonic() + late
        scope = call_scope(sample=question.sample, deadline=moment, cancelled=cancelled)
        with scope as own_scope, dspy.context(**settings):
            yield Seat(question, module, own_scope, settings.get("trace", []))

    def _lm(self, question: Question, number: int | None) -> Any:
        lm = self.pool.lm(question.agent)
        kwargs = getattr(lm, "kwargs", {})
        if kwargs.get("temperature") == 0:
            return lm
        if getattr(lm, "cache", False) and (question.sample or number is not None):
            # A given LM has DSPy's cache, which would give every sample the first one's answer.
            return lm.copy(rollout_id=question.sample + 1000 * (number or 0))
        return lm if number is None else lm.copy(rollout_id=number)


def _is_alone(questions: Sequence[Question]) -> bool:
    """Whether nothing is gained by a thread or task of its own."""
    (first, *others) = questions
    is_watched = dspy.settings.send_stream is not None and not first.is_final
    return not others and first.deadline_seconds is None and not is_watched


def _deadline(questions: Sequence[Question]) -> float | None:
    deadlines = [question.deadline_seconds for question in questions]
    return None if None in deadlines else max(filter(None, deadlines))


def _collected(asked: Sequence[Asked]) -> list[Response]:
    """Return the responses; traces and calls are handed on in seat order, not by who was first."""
    whole, log = dspy.settings.trace, current_scope().log
    for _, trace, calls in asked:
        # A mixture that sits in a seat costs that seat what its own seats cost.
        log.extend(calls)
        if whole is not None:
            whole.extend(trace)
    if whole is not None:
        del whole[: max(0, len(whole) - dspy.settings.max_trace_size)]
    return [response for response, _, _ in asked]

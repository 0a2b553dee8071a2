"""Tells who streams a mixture (``dspy.streamify``) which proposers have answered."""

# DOCS: seats/_module: The module that sits in a seat: any DSPy module of the caller's, asked in its own way. | seats/_seat: One question that is being asked, and what its answer or failure is as data. | seats/_seats: Asks agents in their seats: the right LM, sample and adapter, and a failure that is data. | seats/__init__: Who sits where is asked here: the right LM, sample and adapter, and a failure that is data.

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import dspy
from dspy.streaming.messages import StatusMessage, sync_send_to_stream

from moa_dspy._threads import THREADS, finished
from moa_dspy.adapters.replies import reading_adapter, reply_problem
from moa_dspy.aggregators import Question
from moa_dspy.calls import CallFacts, CallScope, call_scope, current_scope
from moa_dspy.errors import ArchitectureError, ours
from moa_dspy.lm_binding import Trace, outside_lms, renamed, rollout, without_lms
from moa_dspy.pool import Pool
from moa_dspy.prediction import Response, render

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Status:
    """Sends a status message for each of a layer's agents; nothing where nobody streams.

    Made in the caller's context: the contexts of proposers have no stream.
    """

    questions: Sequence[Question]
    stream: Any = field(default_factory=lambda: dspy.settings.send_stream)
    _n_answered: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return self.stream is not None

    def watched(self, running: Sequence[Future[Any]], seconds: float | None) -> set[Future[Any]]:
        """Wait at most ``seconds``, tell of each that is done, and return these."""
        done: set[Future[Any]] = set()
        try:
            for future in as_completed(running, seconds):
                done.add(future)
                if future.exception() is None:
                    self._send(self._message(future.result()[0]))
        except TimeoutError:
            pass  # What is left are stragglers, which the caller counts.
        return done

    async def aanswered(self, response: Response) -> None:
        """Tell of one response."""
        if not self.is_wanted:
            return
        try:
            await self.stream.send(StatusMessage(self._message(response)))
        except Exception:
            _logger.warning("A status message could not be sent.", exc_info=True)

    def _send(self, message: str) -> None:
        try:
            sync_send_to_stream(self.stream, StatusMessage(message))
        except Exception:
            # Who listened may be gone; the answer is made all the same.
            _logger.warning("A status message could not be sent.", exc_info=True)

    def _message(self, response: Response) -> str:
        self._n_answered += 1
        verb = "answered" if response.has_answer else "failed"
        return f"{response.agent} {verb} ({self._n_answered} of {len(self.questions)})"


async def acall(module: Any, inputs: Mapping[str, Any]) -> Any:
    """Ask ``module`` from a coroutine; one that has only ``forward`` is asked in a thread."""
    if hasattr(module, "aforward"):
        return await module.acall(**inputs)
    task = partial(copy_context().run, partial(module, **inputs))
    return await asyncio.wrap_future(THREADS.submit(task))


def values_of(module: Any, prediction: Any) -> dict[str, Any]:
    """Return what ``module`` answered: its signature's outputs, or all that it returned.

    So a module that says what it answers may keep notes beside it, as ReAct its
    trajectory: they are neither read by the next layer nor part of the prediction.

    Raises:
        ArchitectureError: If it returned no ``dspy.Prediction``.
    """
    if not isinstance(prediction, dspy.Example):
        raise ArchitectureError(
            "The module of a seat must return a dspy.Prediction, but "
            f"{type(module).__name__} returned {prediction!r}."
        )
    fields = getattr(getattr(module, "signature", None), "output_fields", None)
    names = prediction.keys() if fields is None else fields
    return {name: prediction[name] for name in names if name in prediction}


SeatAnswer: TypeAlias = tuple[Response, Trace, Sequence[CallFacts]]
"""A response, what DSPy traced on the way to it, and the calls that it took."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A question that is being asked."""

    question: Question
    module: Any
    scope: CallScope
    trace: Trace = field(default_factory=list)

    def answered(self, prediction: Any) -> SeatAnswer:
        values = values_of(self.module, prediction)
        text = render(values)
        if not text.strip():
            return self._asked(failure=self._nothing_said())
        return self._asked(values=values, text=text)

    def _nothing_said(self) -> str:
        if any(facts.is_thought_only for facts in self.scope.log):
            return "The model answered with reasoning only, and no text."
        return "The model answered with an empty text."

    def failed(self, error: Exception) -> SeatAnswer:
        if cause := ours(error):
            # Not a model's failure, so it must be seen.
            raise cause
        if self.scope.log and all(facts.is_thought_only for facts in self.scope.log):
            # The adapter found no field, because there was nothing to read.
            return self._asked(failure=self._nothing_said())
        return self._asked(failure=reply_problem(error))

    def _asked(self, **rest: Any) -> SeatAnswer:
        log = self.scope.log
        response = Response(
            agent=self.question.agent,
            sample=self.question.sample,
            calls=len(log),
            prompt_tokens=sum(facts.prompt_tokens for facts in log),
            completion_tokens=sum(facts.completion_tokens for facts in log),
            usd=sum(facts.usd for facts in log),
            seconds=sum(facts.seconds for facts in log),
            cuts=self.question.cuts,
            **rest,
        )
        trace = renamed(self.trace, self.module, self.question.module)
        return _in_time(response, self.question), trace, log


def _in_time(response: Response, question: Question) -> Response:
    """Judge by the seconds that the calls took when they were made: so results repeat."""
    late = question.deadline_seconds
    if late is None or response.seconds <= late or not response.has_answer:
        return response
    return replace(response, values={}, text="", failure=_late(late))


def abandoned(question: Question) -> SeatAnswer:
    late = question.deadline_seconds or 0.0
    response = Response(question.agent, question.sample, calls=1, seconds=late, failure=_late(late))
    return replace(response, cuts=question.cuts), [], ()


def _late(seconds: float) -> str:
    return f"Late: no answer within {seconds:g} s."


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
    ) -> list[SeatAnswer]:
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

    def _ask(self, question: Question, cancelled: threading.Event | None = None) -> SeatAnswer:
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

    async def _aask(self, question: Question, status: Status | None = None) -> SeatAnswer:
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
        settings: dict[str, Any] = {
            "lm": self._lm(question, rollout(outside)),
            "adapter": reading_adapter(self.adapter),
        }
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


def _collected(asked: Sequence[SeatAnswer]) -> list[Response]:
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

"""Calls of the modules in a plan's seats, with the LM, sample index and adapter of each.

A seat is the place of an agent in a layer, or the last step. A failed seat is data: a ``Response``
without an answer, but with the reason. DSPy's optimizers and wrappers set LMs on predictors
(``set_lm``, a teacher's settings). A mixture ignores these, as its agents are those of its pool;
it only takes over their ``rollout_id``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.adapters.guard import is_streamed, is_verbatim, reading_adapter, reply_problem
from moa_dspy.agent import AgentPool
from moa_dspy.calls.reply import is_refusal
from moa_dspy.calls.request import out_of_files
from moa_dspy.calls.scope import CallFacts, CallScope, call_scope, current_scope, interruptible
from moa_dspy.calls.timeout import THREADS, finished
from moa_dspy.errors import ArchitectureError, moa_error_of
from moa_dspy.prediction import (
    Question,
    Response,
    counted_in_time,
    fields_of_answer,
    render,
)
from moa_dspy.telemetry import agent_span, note_reply
from moa_dspy.waves import (
    MemberProgress,
    MemberQuestions,
    StatusMessages,
    replayed,
    straggler,
)

_logger = logging.getLogger(__name__)

_EMPTY: Final = "The model answered with an empty text."


@dataclass(frozen=True, slots=True)
class Seats:
    """Asks questions, binding each agent's LM at the call, so copies and resets cannot lose it."""

    pool: AgentPool
    adapter: Any = None

    def ask_all(self, questions: Sequence[Question]) -> list[Response]:
        """Ask all questions in parallel; return the responses in the order of the questions.

        A question with a deadline is not waited for after it. Its thread may still finish the
        request that it has sent and store the reply, but has no other effect.

        Members of a vote are asked in waves within the deadline, if need be not all of them.

        Raises:
            MoaError: If a question fails for a reason that is not the model's: budget, replay,
                store, pool.
        """
        if isinstance(questions, MemberQuestions):
            return self._ask_members(questions)
        if _is_alone(questions):
            return _collected([self._ask(questions[0])])
        cancelled = threading.Event()
        try:
            with interruptible():
                return _collected(self._ask_by_threads(questions, cancelled))
        except BaseException:
            cancelled.set()
            raise

    def _ask_by_threads(
        self, questions: Sequence[Question], cancelled: threading.Event
    ) -> list[SeatAnswer]:
        late, status = _deadline(questions), _status_of(questions)
        tasks = [partial(self._ask, question, cancelled) for question in questions]
        # Each thread gets a copy of the context: settings, usage tracker, call scope.
        tasks = [partial(copy_context().run, task) for task in tasks]
        if late is None and status is None:
            # This thread would only wait, so it asks one of the questions itself.
            others = [THREADS.submit(task) for task in tasks[:-1]]
            last = finished(tasks[-1])
            wait(others)
            return [future.result() for future in (*others, last)]
        running = [THREADS.submit(task) for task in tasks]
        done = status.watched(running, late) if status else wait(running, late).done
        if len(done) < len(running):
            cancelled.set()
        pairs = zip(questions, running, strict=True)
        return [f.result() if f in done else _late(q) for q, f in pairs]

    def _ask_members(self, members: MemberQuestions) -> list[Response]:
        """Ask in real time, then decide by recorded seconds, so that results repeat."""
        cancelled = threading.Event()
        try:
            with interruptible():
                answers = self._members_by_threads(members, cancelled)
        finally:
            cancelled.set()  # Calls under way are not waited for, and queued ones not sent.

        def fetch(places: list[int]) -> list[Response]:
            if missing := [place for place in places if place not in answers]:
                more = self._ask_by_threads([members[p] for p in missing], threading.Event())
                answers.update(zip(missing, more, strict=True))
            return [answers[place][0] for place in places]

        responses = replayed(members, fetch)
        _collected([answers[place] for place in sorted(answers)])
        return responses

    def _members_by_threads(
        self, members: MemberQuestions, cancelled: threading.Event
    ) -> dict[int, SeatAnswer]:
        progress, status = MemberProgress(members), _status_of(members)
        running: dict[Future[SeatAnswer], int] = {}
        answers: dict[int, SeatAnswer] = {}
        while not progress.is_over:
            for place, question in progress.due():
                task = partial(copy_context().run, partial(self._ask, question, cancelled))
                running[THREADS.submit(task)] = place
            done, _ = wait(running, progress.wait_seconds, FIRST_COMPLETED)
            for future in done:
                place = running.pop(future)
                answers[place] = future.result()
                progress.responses[place] = answers[place][0]
                if status is not None:
                    status.answered(answers[place][0])
        return answers | {
            place: (response, [], ()) for place, response in progress.unanswered().items()
        }

    def _ask(self, question: Question, cancelled: threading.Event | None = None) -> SeatAnswer:
        with self._seat(question, cancelled) as seat:
            try:
                prediction = seat.module(**question.inputs)
            except Exception as error:
                return seat.failed(error)
            return seat.answered(prediction)

    async def aask_all(self, questions: Sequence[Question]) -> list[Response]:
        """Ask as tasks; a late task is cancelled, and all are cancelled with the caller."""
        if isinstance(questions, MemberQuestions):
            return await self._aask_members(questions)
        if _is_alone(questions):
            return _collected([await self._aask(questions[0])])
        status = _status_of(questions)
        tasks = [asyncio.ensure_future(self._aask(question, status)) for question in questions]
        try:
            await asyncio.wait(tasks, timeout=_deadline(questions))
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            # Cancelled tasks are awaited too, as they still have to record their spending.
            await asyncio.gather(*tasks, return_exceptions=True)
        pairs = zip(questions, tasks, strict=True)
        return _collected([_late(q) if t in late else t.result() for q, t in pairs])

    async def _aask_members(self, members: MemberQuestions) -> list[Response]:
        answers = await self._members_by_tasks(members)
        steps = members.replay()
        try:
            places = next(steps)
            while True:
                if missing := [place for place in places if place not in answers]:
                    more = await asyncio.gather(*(self._aask(members[p]) for p in missing))
                    answers.update(zip(missing, more, strict=True))
                places = steps.send([answers[place][0] for place in places])
        except StopIteration as stop:
            _collected([answers[place] for place in sorted(answers)])
            responses: list[Response] = stop.value
            return responses

    async def _members_by_tasks(self, members: MemberQuestions) -> dict[int, SeatAnswer]:
        progress, status = MemberProgress(members), _status_of(members)
        tasks: dict[asyncio.Task[SeatAnswer], int] = {}
        answers: dict[int, SeatAnswer] = {}
        try:
            while not progress.is_over:
                for place, question in progress.due():
                    tasks[asyncio.create_task(self._aask(question, status))] = place
                running = [task for task, place in tasks.items() if place not in answers]
                done, _ = await asyncio.wait(
                    running, timeout=progress.wait_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    answers[tasks[task]] = task.result()
                    progress.responses[tasks[task]] = task.result()[0]
        finally:
            for task in tasks:
                task.cancel()
            # Cancelled tasks are awaited too, as they still have to record their spending.
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers | {
            place: (response, [], ()) for place, response in progress.unanswered().items()
        }

    async def _aask(self, question: Question, status: StatusMessages | None = None) -> SeatAnswer:
        cancelled = threading.Event()
        with self._seat(question, cancelled) as seat:
            try:
                prediction = await acall(seat.module, question.inputs)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            except Exception as error:
                answer = seat.failed(error)
            else:
                answer = seat.answered(prediction)
        if status is not None:
            await status.aanswered(answer[0])
        return answer

    @contextmanager
    def _seat(self, question: Question, cancelled: threading.Event | None = None) -> Iterator[Seat]:
        outside = outside_lms(question.module)
        module = without_lms(question.module, outside) if outside else question.module
        settings: dict[str, Any] = {
            "lm": self._lm(question, rollout(outside)),
            "adapter": self._reading_adapter(question.agent),
        }
        if not question.is_final:
            # Proposers' text is not for the user, and they cannot stream from these threads.
            settings["send_stream"] = None
        if dspy.settings.trace is not None:
            # A separate trace: a late answer must not be written into the caller's.
            settings["trace"] = []
        late = question.deadline_seconds
        moment = None if late is None else time.monotonic() + late
        scope = call_scope(sample=question.sample, deadline=moment, cancelled=cancelled)
        span = agent_span(question, getattr(settings["lm"], "model", question.agent))
        with span, scope as own_scope, dspy.context(**settings):
            empty = is_verbatim(settings["adapter"]) and not question.is_final
            yield Seat(
                question,
                module,
                own_scope,
                settings.get("trace", []),
                keeps_empty=empty,
                is_priced=self.pool.price(question.agent) is not None,
            )

    def _reading_adapter(self, agent: str) -> Any:
        # Replies of an LM that is not adopted still contain the model's thoughts.
        as_it_is = agent in getattr(self.pool, "not_adopted", ())
        return reading_adapter(self.adapter, sets_thoughts_apart=as_it_is or is_streamed())

    def _lm(self, question: Question, number: int | None) -> Any:
        lm = self.pool.lm(question.agent)
        kwargs = getattr(lm, "kwargs", {})
        if kwargs.get("temperature") == 0:
            return lm
        if getattr(lm, "cache", False) and (question.sample or number is not None):
            # DSPy's cache of a given LM would return the first answer for every sample.
            return lm.copy(rollout_id=question.sample + 1000 * (number or 0))
        return lm if number is None else lm.copy(rollout_id=number)


def _is_alone(questions: Sequence[Question]) -> bool:
    """Return whether a single question needs no thread or task of its own."""
    (first, *others) = questions
    is_watched = dspy.settings.send_stream is not None and not first.is_final
    return not others and first.deadline_seconds is None and not is_watched


def _status_of(questions: Sequence[Question]) -> StatusMessages | None:
    """Return the sender of status messages to the reader of a stream; None without a stream."""
    # Looked up in the caller's context, as the contexts of proposers have no stream.
    stream = dspy.settings.send_stream
    return None if stream is None else StatusMessages(questions, stream)


def _deadline(questions: Sequence[Question]) -> float | None:
    deadlines = [question.deadline_seconds for question in questions]
    return None if None in deadlines else max(filter(None, deadlines))


def _collected(answers: Sequence[SeatAnswer]) -> list[Response]:
    """Return the responses; add traces and calls to the caller's, in the order of the seats."""
    whole, log = dspy.settings.trace, current_scope().log
    for _, trace, calls in answers:
        # For a mixture inside a seat, the calls of its own seats are calls of that seat.
        log.extend(calls)
        if whole is not None:
            whole.extend(trace)
    if whole is not None:
        del whole[: max(0, len(whole) - dspy.settings.max_trace_size)]
    return [response for response, _, _ in answers]


async def acall(module: Any, inputs: Mapping[str, Any]) -> Any:
    """Call ``module`` from a coroutine; one without ``aforward`` runs in a thread."""
    if hasattr(module, "aforward"):
        return await module.acall(**inputs)
    task = partial(copy_context().run, partial(module, **inputs))
    return await asyncio.wrap_future(THREADS.submit(task))


def _is_blank(values: Mapping[str, Any]) -> bool:
    """Return whether there is nothing but blank texts, whatever was reasoned."""
    counted = [values[name] for name in fields_of_answer(values)]
    return all(isinstance(value, str) and not value.strip() for value in counted)


def values_of(module: Any, prediction: Any) -> dict[str, Any]:
    """Return the output fields of the module's signature, or all fields if it has no signature.

    Other fields, such as the trajectory of ReAct, are neither read by the next layer nor part of
    the prediction.

    Raises:
        ArchitectureError: If it returned no ``dspy.Prediction``.
    """
    if not isinstance(prediction, dspy.Example):
        raise ArchitectureError(
            f"`module` must return a dspy.Prediction, but {type(module).__name__} returned a "
            f"{type(prediction).__name__}."
        )
    fields = getattr(getattr(module, "signature", None), "output_fields", None)
    names = prediction.keys() if fields is None else fields
    return {name: prediction[name] for name in names if name in prediction}


Trace: TypeAlias = list[tuple[Any, Any, Any]]
"""DSPy's trace: a list of predictor, inputs and prediction."""


SeatAnswer: TypeAlias = tuple[Response, Trace, Sequence[CallFacts]]
"""A response, the part of DSPy's trace that led to it, and the calls that it took."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A question that is being asked.

    With ``keeps_empty`` an empty reply is an answer; without ``is_priced`` the price is unknown.
    """

    question: Question
    module: Any
    scope: CallScope
    trace: Trace = field(default_factory=list)
    keeps_empty: bool = False
    is_priced: bool = True

    def answered(self, prediction: Any) -> SeatAnswer:
        """Return the response with ``prediction``, or with a failure if that is empty."""
        values = values_of(self.module, prediction)
        text = render(values)
        reasons = [facts.no_answer for facts in self.scope.log if facts.no_answer]
        if _is_blank(values) and not (self.keeps_empty and not any(map(is_refusal, reasons))):
            return self._seat_answer(failure=[_EMPTY, *reasons][-1])
        return self._seat_answer(values=values, text=text)

    def failed(self, error: Exception) -> SeatAnswer:
        """Return the response with the reason of a model's failure; raise any other error."""
        if cause := moa_error_of(error) or out_of_files(error):
            # Not the model's failure.
            raise cause
        reasons = [facts.no_answer for facts in self.scope.log]
        if reasons and all(reasons):
            # The adapter found no field because the reply had no answer.
            return self._seat_answer(failure=reasons[-1])
        return self._seat_answer(failure=reply_problem(error))

    def _seat_answer(self, **rest: Any) -> SeatAnswer:
        log = self.scope.log
        question = self.question
        rest |= {"cuts": question.cuts, "is_priced": self.is_priced}
        response = Response.of_calls(question.agent, question.sample, log, **rest)
        reused = sum(facts.is_reused for facts in log)
        note_reply(self.question, response, n_made=len(log) - reused, n_stored=reused)
        trace = renamed(self.trace, self.module, self.question.module)
        return counted_in_time(response, self.question.deadline_seconds), trace, log


def _late(question: Question) -> SeatAnswer:
    return straggler(question, question.deadline_seconds or 0.0), [], ()


@contextmanager
def own_arguments(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of a call without ``lm``, of which only the ``rollout_id`` counts.

    Raises:
        ArchitectureError: If a signature is among them, which every module would take as its own.
    """
    for name in ("signature", "new_signature"):
        if name in inputs:
            raise ArchitectureError(
                f"`{name}` cannot be given to a mixture's call; make a mixture of that signature."
            )
    own = {name: value for name, value in inputs.items() if name != "lm"}
    with dspy.context(lm=inputs["lm"]) if inputs.get("lm") is not None else nullcontext():
        yield own


def outside_lms(module: Any) -> list[Any]:
    """Return the LMs that ``set_lm`` or an optimizer left on the module's predictors."""
    leaves = [module] if isinstance(module, dspy.Predict) else _leaves(module)
    return [leaf.lm for leaf in leaves if getattr(leaf, "lm", None) is not None]


def rollout(lms: Sequence[Any]) -> int | None:
    """Return the ``rollout_id`` that DSPy asks for: of these LMs, else of the one in settings."""
    for lm in [*lms, dspy.settings.lm]:
        number: int | None = getattr(lm, "kwargs", {}).get("rollout_id")
        if number is not None:
            return number
    return None


def without_lms(module: Any, lms: Sequence[Any]) -> Any:
    """Return a copy of ``module`` whose predictors have no LM of their own."""
    # deepcopy replaces an object in the memo instead of copying it, here by None.
    memo: dict[int, Any] = {id(lm): None for lm in lms}
    return deepcopy(module, memo)


def renamed(trace: Trace, made_by: Any, stands_for: Any) -> Trace:
    """Return the trace of a copy with the predictors of its original, which optimizers expect."""
    if made_by is stands_for:
        return trace
    originals = {id(c): o for c, o in zip(_leaves(made_by), _leaves(stands_for), strict=True)}
    return [
        (originals.get(id(predictor), predictor), inputs, output)
        for predictor, inputs, output in trace
    ]


def _leaves(module: Any) -> list[Any]:
    return [module] if isinstance(module, dspy.Predict) else list(module.predictors())

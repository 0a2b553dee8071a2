"""Whose prompt is optimised: the aggregator, or the readers of one layer."""

# DOCS: optimize/prompts/_tally: Who was asked, in which stage, and how often; counted across the threads of an optimizer. | optimize/prompts/_bank: References that were computed once, row by row, and are read again at no call.

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import dspy
from dspy.utils.callback import BaseCallback

from moa_dspy.aggregators import Question
from moa_dspy.architecture import Architecture
from moa_dspy.calls import CallFacts, CallScope, call_scope, current_scope
from moa_dspy.errors import ArchitectureError, DataError, LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.nodes import place_of
from moa_dspy.optimize.prompts.prompt import Prompt
from moa_dspy.plan import Plan, Planner
from moa_dspy.prediction import Answer, Response
from moa_dspy.signatures import REFERENCES


@dataclass(frozen=True, slots=True)
class Target:
    """The seats of a mixture that share the prompt in question.

    Attributes:
        program: The mixture.
        depth: How many layers answer before these seats read.
        modules: The modules in the seats; all have one prompt.
        planners: For every different agent in the seats, what plans its answer alone.
    """

    program: MixtureOfAgents
    depth: int
    modules: tuple[Any, ...]
    planners: tuple[Planner, ...]

    @classmethod
    def of(cls, program: Any, layer: int | None) -> Target:
        """Find the seats.

        Raises:
            StudyError: If ``program`` is no mixture.
            ArchitectureError: If nobody in it reads, or not there.
        """
        if not isinstance(program, MixtureOfAgents):
            kind = type(program).__name__
            raise StudyError(f"`program` must be a MixtureOfAgents, but is a {kind}.")
        architecture = program.architecture
        if not architecture.layers:
            raise ArchitectureError(
                f"`program` is the single agent {architecture}, which reads no references; it must "
                "have a layer, such as a + b > synthesize(c)."
            )
        if layer is None:
            return cls._last(program)
        return cls._readers(program, layer)

    @classmethod
    def _last(cls, program: MixtureOfAgents) -> Target:
        architecture = program.architecture
        if not architecture.aggregator_calls_a_model:
            raise ArchitectureError(
                f"The last step of {architecture} asks no model, so it has no prompt; it must be "
                "synthesize(NAME) or select(NAME)."
            )
        planner = _planner(program, architecture, program.aggregator)
        return cls(program, architecture.depth, (program.aggregator,), (planner,))

    @classmethod
    def _readers(cls, program: MixtureOfAgents, layer: int) -> Target:
        layers = program.architecture.layers
        if isinstance(layer, bool) or layer not in range(2, len(layers) + 1):
            readers = ", ".join(str(n) for n in range(2, len(layers) + 1)) or "none here"
            raise ArchitectureError(
                f"`layer` must be one that reads references ({readers}), or None for the last "
                f"step, but got {layer!r}; {program.architecture} has {len(layers)}."
            )
        modules = tuple(program.layers[layer - 1].proposers)
        # A reader alone is the aggregator of the layers before it: the very same messages.
        alone = [
            Architecture(layers[: layer - 1], name) for name in dict.fromkeys(layers[-1 + layer])
        ]
        return cls(
            program, layer - 1, modules, tuple(_planner(program, a, modules[0]) for a in alone)
        )

    @property
    def agents(self) -> tuple[str, ...]:
        """Who sits there, each once."""
        return tuple(str(planner.architecture.aggregator) for planner in self.planners)

    @property
    def prompt(self) -> Prompt:
        """The prompt as it is."""
        return Prompt.of(self.modules[0])

    def with_prompt(self, prompt: Prompt) -> MixtureOfAgents:
        """Return a copy of the mixture with another prompt in these seats."""
        made: MixtureOfAgents = self.program.deepcopy()
        is_last = self.modules[0] is self.program.aggregator
        modules = [made.aggregator] if is_last else made.layers[self.depth].proposers
        for module in modules:
            prompt.put_into(module)
        return made


def _planner(program: MixtureOfAgents, architecture: Architecture, module: Any) -> Planner:
    # The optimizer's own prompts may need another adapter than the one in force here.
    adapter = program.adapter or dspy.settings.adapter
    return Planner(
        architecture,
        [layer.proposers for layer in program.layers[: architecture.depth]],
        module,
        tuple(program.signature.output_fields),
        program.pool,
        replace(program.rules, adapter=adapter),
    )


ROLES: Final = ("proposers", "aggregator", "prompt_model")
STAGES: Final = ("references", "tuning", "validation", "test")

_IN_SEAT: Final[ContextVar[bool]] = ContextVar("moa_dspy_in_seat", default=False)


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests to models.

    Attributes:
        made: Were sent, failed ones included.
        reused: Came from a store or a recording.
    """

    made: int = 0
    reused: int = 0


@dataclass(slots=True)
class CallCounter:
    """Counts calls by stage and role; copies of a program share it.

    Attributes:
        stage: What is going on, one of ``STAGES``.
    """

    stage: str = STAGES[0]
    _counts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, role: str, log: Sequence[CallFacts]) -> None:
        """Count the calls of a log."""
        with self._lock:
            for facts in log:
                # Attempt 0 was given up before it was sent.
                self._counts[self.stage, role, facts.is_reused] += facts.attempt > 0

    def add_one(self, role: str) -> None:
        """Count one call of which nothing is known."""
        with self._lock:
            self._counts[self.stage, role, False] += 1

    def by_stage(self) -> Mapping[str, Mapping[str, Counted]]:
        """Return the counts by stage and role."""
        return {
            stage: {
                role: Counted(self._counts[stage, role, False], self._counts[stage, role, True])
                for role in ROLES
            }
            for stage in STAGES
        }


@contextmanager
def seat() -> Iterator[CallScope]:
    """Open the scope of a seat of the mixture: what is asked inside prompts nobody."""
    token = _IN_SEAT.set(True)
    try:
        with call_scope() as scope:
            yield scope
    finally:
        _IN_SEAT.reset(token)


@contextmanager
def count_prompting(tally: CallCounter) -> Iterator[None]:
    """Count every call of an LM that is made inside, but not in a seat, as the prompt model's.

    A request each where the LM logs its calls, as those of a pool do; else a call of the
    LM each, whatever DSPy's cache answered and however many completions it asked for.
    """
    with call_scope() as scope:
        callbacks = [*dspy.settings.callbacks, _Prompting(tally, scope)]
        try:
            with dspy.context(callbacks=callbacks):
                yield
        finally:
            tally.add("prompt_model", scope.log)


class _Prompting(BaseCallback):
    """Counts the calls that no log tells of."""

    def __init__(self, tally: CallCounter, scope: CallScope) -> None:
        self._tally, self._scope = tally, scope

    def __deepcopy__(self, memo: dict[int, Any]) -> _Prompting:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Count the call of an LM unless its engine logs it where it is counted."""
        is_logged = getattr(getattr(instance, "engine", None), "logs_calls", False)
        # In a thread of the optimizer's own there is another log, or none.
        if not _IN_SEAT.get() and not (is_logged and current_scope().log is self._scope.log):
            self._tally.add_one("prompt_model")


LayerResponses: TypeAlias = tuple[tuple[Response, ...], ...]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row and what the layers before the target answered to it.

    Attributes:
        row: The user's own example, with an id.
        number: Its place among the rows, from 0.
        rounds: Responses per layer, failed ones included.
        references: What the target reads of the last of them: guarded, and cut if need be.
        failure: Why there is nothing to read; None when there is.
    """

    row: dspy.Example
    number: int
    rounds: LayerResponses
    references: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def read(self) -> tuple[Response, ...]:
        """The responses that the target reads."""
        return tuple(response for response in self.rounds[-1] if response.has_answer)

    @property
    def example(self) -> dspy.Example:
        """The row with its references as one more input."""
        inputs = self.row.inputs().keys()
        made = self.row.copy(**{REFERENCES: list(self.references)})
        return made.with_inputs(*inputs, REFERENCES)


@dataclass(frozen=True, slots=True)
class StoredReferences:
    """Stored rows by their inputs."""

    rows: Mapping[object, StoredRow]

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredReferences:
        return self

    def find(self, inputs: Mapping[str, Any]) -> StoredRow | None:
        """Return the row with these inputs, or None; references among them do not count."""
        return self.rows.get(_place(inputs))


def read_references(
    target: Target, rows: Sequence[dspy.Example], tally: CallCounter, *, num_threads: int
) -> StoredReferences:
    """Ask the layers before the target, each row once; what is stored costs nothing.

    Raises:
        MoaError: If a call cannot be made for a reason that is not the model's.
        DataError: If inputs cannot be told apart, as they are neither JSON nor pydantic.
    """

    def read(numbered: tuple[int, dspy.Example]) -> StoredRow:
        number, row = numbered
        with call_scope(example=row.id), seat() as scope:
            try:
                return _read(target, row, number)
            finally:
                tally.add("proposers", scope.log)

    places = [_place(row.inputs().toDict()) for row in rows]
    for row, place in zip(rows, places, strict=True):
        if type(place) is object:
            raise DataError(f"The inputs of row {row.id!r} must be JSON or pydantic values.")
    return StoredReferences(
        dict(zip(places, in_threads(read, list(enumerate(rows)), num_threads), strict=True))
    )


def _read(target: Target, row: dspy.Example, number: int) -> StoredRow:
    program, rounds = target.program, []
    plan = target.planners[0].plan(row.inputs().toDict())
    questions = next(plan)
    for _ in range(target.depth):
        rounds.append(tuple(program.seats.ask_all(questions)))
        try:
            questions = plan.send(list(rounds[-1]))
        except LayerFailedError as error:
            return StoredRow(row, number, tuple(rounds), failure=str(error))
    plan.close()
    return StoredRow(row, number, tuple(rounds), tuple(questions[0].inputs[REFERENCES]))


def continue_plan(
    plan: Plan, rounds: LayerResponses, ask_all: Callable[[list[Question]], list[Response]]
) -> Answer:
    """Run a plan whose first rounds of questions are answered already.

    Raises:
        LayerFailedError: If too few answered.
    """
    known = iter(rounds)
    try:
        questions = next(plan)
        while True:
            responses = next(known, None)
            questions = plan.send(ask_all(questions) if responses is None else list(responses))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def in_threads(task: Callable[[Any], Any], items: Sequence[Any], num_threads: int) -> list[Any]:
    """Return the results in order; after an error, what has not begun is not begun.

    Raises:
        Exception: The first error of a task, in the order of the items.
    """
    with ThreadPoolExecutor(num_threads) as threads:
        running = [threads.submit(copy_context().run, task, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise


def stored(bank: StoredReferences, inputs: Mapping[str, Any]) -> StoredRow:
    """Return the row with these inputs.

    Raises:
        StudyError: If nobody computed its references.
    """
    found = bank.find(inputs)
    if found is None:
        raise StudyError("The student answers only rows whose references are stored.")
    return found


def _place(inputs: Mapping[str, Any]) -> object:
    return place_of({name: value for name, value in inputs.items() if name != REFERENCES})

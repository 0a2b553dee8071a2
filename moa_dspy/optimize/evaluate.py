"""What a search varies: the one mixture of a program, which may be the program itself."""

# DOCS: optimize/measure: Measures architectures on examples; what one trial computed, no other computes again.

from __future__ import annotations

import asyncio
import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from moa_dspy.architecture import Architecture
from moa_dspy.calls import call_scope
from moa_dspy.errors import BudgetReachedError, LayerFailedError, StudyError, ours
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import NodeCache, NodeRunner, Outcome, place_of
from moa_dspy.prediction import MixturePrediction

if TYPE_CHECKING:
    from moa_dspy.optimize.prompts.prompt import PromptRegistry


@dataclass(frozen=True, slots=True)
class Student:
    """A program and the mixture in it.

    Attributes:
        program: Any DSPy program.
        mixture: The only mixture that it holds.
        book: The prompts that an architecture may name; None has none.
    """

    program: Any
    mixture: MixtureOfAgents
    book: PromptRegistry | None = None

    @classmethod
    def of(cls, program: Any, book: PromptRegistry | None = None) -> Student:
        """Find the mixture of ``program``.

        Raises:
            StudyError: If there is none, or more than one, naming where they are.
        """
        if isinstance(program, Student):
            return program
        found = mixtures_of(program)
        if len(found) != 1:
            where = f" at {', '.join(found)}" if found else ""
            raise StudyError(
                "`student` must be a MixtureOfAgents or hold one (or have one signature), but is "
                f"a {type(program).__name__} with {len(found) or 'none'}{where}."
            )
        (mixture,) = found.values()
        return cls(program, mixture, book)

    def with_book(self, book: PromptRegistry) -> Student:
        """Return the student with other prompts to name."""
        return replace(self, book=book)

    def with_architecture(self, architecture: Architecture) -> Any:
        """Return a copy of the program that has the architecture; its seats' prompts are new.

        A prompt that the architecture names is in the aggregator, and named no more: the
        program can be saved and used by who has no book.

        Raises:
            StudyError: If the prompt is unknown.
        """
        made = self._made(architecture)
        made.architecture = replace(architecture, prompt=None)
        return self._copy(made)

    def to_measure(self, architecture: Architecture) -> Student:
        """Return the program with the architecture, as ``answer`` can run it.

        Raises:
            StudyError: If the architecture names an unknown prompt.
        """
        made = self._made(architecture)
        is_all = self.program is self.mixture
        return Student(made if is_all else self._copy(_Measured(made)), made, self.book)

    def answer(self, inputs: Mapping[str, Any], asking: NodeRunner) -> Any:
        """Return the prediction of what ``to_measure`` returned; its seats ask by ``asking``.

        Raises:
            LayerFailedError: If a model's failure leaves the program without a prediction.
            MoaError: If the reason is not the model: budget, replay, store, pool.
            StudyError: If the program itself fails.
        """
        if self.program is self.mixture:
            return MixturePrediction.of(asking.answer(self.mixture, inputs))
        try:
            with dspy.context(moa_dspy_asking=asking):
                return self.program(**inputs)
        except Exception as error:
            if cause := ours(error):
                raise cause from None
            if isinstance(error, LayerFailedError):
                raise
            if isinstance(error, (AdapterParseError, LMError)):
                raise LayerFailedError(f"{type(error).__name__}: {error}") from error
            raise StudyError(
                f"The program raised {type(error).__name__} on example {asking.example!r}: {error}"
            ) from error

    def _made(self, architecture: Architecture) -> MixtureOfAgents:
        made = self.mixture.with_architecture(architecture)
        if (name := architecture.prompt) is None:
            return made
        if self.book is None:
            raise StudyError(f"Prompt {name!r} of {architecture} is unknown: there are none.")
        self.book.put_into(made.aggregator, name)
        return made

    def _copy(self, made: Any) -> Any:
        try:
            # An object that is in the memo is not copied but replaced, wherever it stands.
            return copy.deepcopy(self.program, {id(self.mixture): made})
        except Exception as error:
            raise StudyError(
                f"`student` cannot be copied: {error}. What cannot be, such as a connection, "
                "needs a `__deepcopy__` that returns itself."
            ) from error


class _Measured(dspy.Module):
    """Stands where the mixture of a measured program stood."""

    def __init__(self, mixture: MixtureOfAgents) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, **inputs: Any) -> Any:
        # DSPy hands its settings on to threads that it starts; a context variable is not.
        asking: NodeRunner = dspy.settings.moa_dspy_asking
        return MixturePrediction.of(asking.answer(self.mixture, inputs, place=place_of(inputs)))

    async def aforward(self, **inputs: Any) -> Any:
        return await asyncio.to_thread(self, **inputs)


def mixtures_of(program: Any) -> dict[str, MixtureOfAgents]:
    """Return the mixtures that ``program`` holds, by path, as DSPy finds predictors.

    They are looked for in modules, and in lists, tuples and dicts of modules; not in the
    programs that an optimizer listed on its result, nor in the seats of a mixture.
    """
    return {path: one for path, one in _walk(program, "self", set())}


def _walk(module: Any, path: str, seen: set[int]) -> Iterator[tuple[str, MixtureOfAgents]]:
    if id(module) in seen or not isinstance(module, dspy.Module):
        return
    seen.add(id(module))
    if isinstance(module, MixtureOfAgents):
        yield path, module
        return
    for name, value in vars(module).items():
        inner: list[tuple[str, Any]] = [("", value)]
        if isinstance(value, (list, tuple)):
            inner = [(f"[{n}]", one) for n, one in enumerate(value)]
        elif isinstance(value, dict):
            inner = [(f"[{key!r}]", one) for key, one in value.items()]
        for where, one in inner:
            yield from _walk(one, f"{path}.{name}{where}", seen)


MetricFunction: TypeAlias = Callable[..., Any]


class WorkerPool(Protocol):
    """Several processes that ask what a evaluator will want to know, into one store."""

    def announce(
        self, wanted: Iterable[tuple[Architecture, Sequence[dspy.Example]]], *, is_urgent: bool
    ) -> None:
        """Have them begin with what will be measured, in this order; wait for nothing.

        Args:
            wanted: Each architecture with its rows.
            is_urgent: Whether it is measured next; else all that is urgent goes before.
        """
        ...

    def ready(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> Iterator[dspy.Example]:
        """Yield every row as soon as all that ``architecture`` asks for it is answered."""
        ...


@dataclass(slots=True)
class Evaluator:
    """Runs architectures of one student's kind and remembers every node of every graph.

    A node is an agent that has read given nodes; equal nodes of different
    architectures are one computation per example, and per input where the student is a
    larger program, whose own calls count as well. Safe for threads.

    Args:
        student: A ``MixtureOfAgents``, or a program that holds one, which is measured
            whole; gives signature, adapter and module of every seat.
        metric: Any DSPy metric.
        num_threads: Examples measured at the same time.
        crew: Who asks instead of these threads; None is nobody.
        memory: What is known already.
        book: The prompts that an architecture may name.
    """

    student: Any
    metric: MetricFunction
    num_threads: int = 8
    crew: WorkerPool | None = None
    memory: NodeCache = field(default_factory=NodeCache)
    book: PromptRegistry | None = None
    _outcomes: dict[tuple[Architecture, str], Outcome] = field(default_factory=dict)
    _students: dict[Architecture, Student] = field(default_factory=dict)

    @property
    def failures(self) -> Counter[str]:
        """Responses without an answer, per agent, counted over distinct computations."""
        return self.memory.failures

    def measure(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> tuple[Outcome, ...]:
        """Return one outcome per row, in the rows' order.

        Raises:
            MetricError: If the metric raises or returns no finite number in [0, 1].
            MoaError: If a call cannot be made for a reason that is not the model's.
            StudyError: If a larger program fails by itself.
        """
        missing = [row for row in rows if (architecture, row.id) not in self._outcomes]
        if missing:
            self._run(Student.of(self.student, self.book).to_measure(architecture), missing)
        return tuple(self._outcomes[architecture, row.id] for row in rows)

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        """Whether ``measure`` of these rows would ask nothing."""
        return all((architecture, row.id) in self._outcomes for row in rows)

    def announce(
        self,
        architectures: Iterable[Architecture],
        rows: Sequence[dspy.Example],
        *,
        is_urgent: bool = True,
    ) -> None:
        """Say what will be measured for certain; a crew begins with it, else nothing happens."""
        if self.crew is not None:
            wanted = [(one, rows) for one in architectures if self._is_shared(one)]
            self.crew.announce(wanted, is_urgent=is_urgent)

    def ask(self, architecture: Architecture, row: dspy.Example) -> None:
        """Ask all that ``measure`` of this row would, and judge nothing."""
        student = self._students.get(architecture)
        if student is None:
            student = Student.of(self.student, self.book).to_measure(architecture)
            self._students[architecture] = student
        with call_scope(example=row.id), suppress(LayerFailedError):
            student.answer(row.inputs().toDict(), NodeRunner(self.memory, row.id))

    def _is_shared(self, architecture: Architecture) -> bool:
        """Whether every process knows its prompt: a tuned one is known to this process alone."""
        name = architecture.prompt
        return name is None or self.book is None or self.book.is_given(name)

    def _run(self, student: Student, rows: Sequence[dspy.Example]) -> None:
        first, *rest = rows
        if self.crew is not None and rest and self._is_shared(student.mixture.architecture):
            for row in self.crew.ready(student.mixture.architecture, rows):
                self._measure_one(student, row)
            return
        self._measure_one(student, first)
        # In a replay there is nothing to wait for: threads would only cost time.
        num_threads = 1 if student.mixture.pool.calls.replay_only else self.num_threads
        in_threads(lambda row: self._measure_one(student, row), rest, num_threads=num_threads)

    def _measure_one(self, student: Student, row: dspy.Example) -> None:
        asking, key = NodeRunner(self.memory, row.id), (student.mixture.architecture, row.id)
        with call_scope(example=row.id) as scope:
            try:
                prediction = student.answer(row.inputs().toDict(), asking)
            except LayerFailedError as error:
                # What did not answer was asked all the same: a failure is not cheap.
                costs = asking.costs(scope.log)
                self._outcomes[key] = Outcome(0.0, (), **costs, failure=str(error))
                return
        self._outcomes[key] = Outcome(
            score=self._score(row, prediction),
            layer=asking.read,
            ballot=asking.ballot(student.mixture),
            **asking.costs(scope.log),
        )

    def _score(self, row: dspy.Example, prediction: dspy.Prediction) -> float:
        return CheckedMetric(self.metric).score(row, prediction)


def in_threads(task: Callable[[Any], Any], items: Sequence[Any], *, num_threads: int) -> list[Any]:
    """Return the results of a task per item, in order; one thread is the caller's own.

    After an error no further task is begun. Its first requests are finished only if the budget
    ended: what is paid for gets stored, but an endpoint that is down is not waited for.

    Raises:
        Exception: The first error of a task, in the order of the items.
    """
    if num_threads == 1:
        return [task(item) for item in items]
    given_up = threading.Event()
    with ThreadPoolExecutor(num_threads) as threads, call_scope(cancelled=given_up):
        running = [threads.submit(copy_context().run, task, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException as error:
            if not isinstance(error, BudgetReachedError):
                given_up.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise

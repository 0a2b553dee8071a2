"""The evaluator of a search: the student with an architecture, run and scored on rows."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import CallFacts, call_scope
from moa_dspy.calls.timeout import in_threads
from moa_dspy.data import is_pure
from moa_dspy.errors import LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import VERSUS, CheckedMetric, Outcome, RowJudgement
from moa_dspy.optimize.nodes import MeasuredProgram, NodeCache, NodeRunner, known_answers
from moa_dspy.plan import is_traced
from moa_dspy.prediction import Answer, MixturePrediction

if TYPE_CHECKING:
    from moa_dspy.judges.base import Judgement
    from moa_dspy.optimize.prompts.prompt import PromptRegistry

MetricFunction: TypeAlias = Callable[..., Any]
_SOON_SECONDS = 0.05
"""A row that took longer waited for something else, such as a retriever, if calls are stored."""


_MOST_REASONS: Final = 3


@dataclass(frozen=True, slots=True)
class Student:
    """Any DSPy program and the mixture in it.

    Attributes:
        program: The whole program.
        mixture: The only mixture in it.
        registry: Prompts that may be named; None means there are none.
    """

    program: Any
    mixture: MixtureOfAgents
    registry: PromptRegistry | None = None

    @classmethod
    def of(cls, program: Any, registry: PromptRegistry | None = None) -> Student:
        """Find the mixture of ``program``; a ``Student`` is returned as it is.

        Raises:
            StudyError: If there is none, or more than one; the message names their paths.
        """
        if isinstance(program, Student):
            return program if registry is None else replace(program, registry=registry)
        mixtures = mixtures_of(program)
        if len(mixtures) != 1:
            raise StudyError(_mixture_count_problem(program))
        (mixture,) = mixtures.values()
        return cls(program, mixture, registry)

    @classmethod
    def in_place_of(cls, program: Any, predictor: str, **options: Any) -> Any:
        """Return the result of ``MixtureOfAgents.in_place_of``; beside mixtures, a ``Student``."""
        changed: Any = MixtureOfAgents.in_place_of(program, predictor, **options)
        others = mixtures_of(program)
        mixtures = [mixture for path, mixture in mixtures_of(changed).items() if path not in others]
        return cls(changed, mixtures[0]) if others and mixtures else changed

    def with_architecture(self, architecture: Architecture) -> Any:
        """Return a copy of the program that has the architecture; its seats' prompts are new.

        A prompt that the architecture names is put into the aggregator and its name is removed,
        so the program can be saved and used without the registry.

        Raises:
            StudyError: If the prompt is unknown.
        """
        mixture = self.mixture_with(architecture)
        mixture.architecture = replace(architecture, prompt=None)
        return self.with_module(mixture)

    def to_measure(self, architecture: Architecture) -> MeasuredProgram:
        """Return the program with the architecture, ready to be run on rows.

        Raises:
            StudyError: If the architecture names an unknown prompt.
        """
        return MeasuredProgram(self, self.mixture_with(architecture))

    def mixture_with(self, architecture: Architecture) -> Any:
        """Return the mixture with the architecture; what it is decides a kind of student."""
        mixture = self.mixture.with_architecture(replace(architecture, prompt=None))
        if (name := architecture.prompt) is None:
            return mixture
        if self.registry is None:
            raise StudyError(f"Unknown prompt {name!r} of {architecture}: there are no prompts.")
        self.registry.put_into(mixture.aggregator, name)
        mixture.architecture = architecture
        return mixture

    def replaced_by(self, module: dspy.Module) -> dict[int, Any]:
        """Return the replacements, by id of the replaced object, for a copy with ``module``."""
        return {id(self.mixture): module}

    def with_module(self, module: dspy.Module) -> Any:
        """Return a copy of the program that holds ``module`` where the mixture was.

        Raises:
            StudyError: If the program cannot be copied.
        """
        try:
            # An object that is in the memo is not copied but replaced, wherever it occurs.
            return copy.deepcopy(self.program, self.replaced_by(module))
        except Exception as error:
            raise StudyError(
                f"`student` cannot be copied: {error}. An object that cannot be copied, such as "
                "a connection, needs a `__deepcopy__` that returns itself."
            ) from error


def mixtures_of(program: Any, *, with_frozen: bool = False) -> dict[str, MixtureOfAgents]:
    """Return the mixtures in ``program`` by path; paths are as in DSPy's ``named_predictors``.

    Modules and lists, tuples and dicts of modules are searched; the programs that an optimizer
    lists on its result and the seats of a mixture are not.

    Args:
        program: The program.
        with_frozen: Whether to search modules whose ``_compiled`` is true, which DSPy skips.
    """
    return dict(_walk(program, "self", set(), with_frozen=with_frozen))


def _walk(
    module: Any, path: str, seen: set[int], *, with_frozen: bool
) -> Iterator[tuple[str, MixtureOfAgents]]:
    if id(module) in seen or not isinstance(module, dspy.Module):
        return
    if path != "self" and not with_frozen and getattr(module, "_compiled", False):
        return
    seen.add(id(module))
    if isinstance(module, MixtureOfAgents):
        yield path, module
        return
    for name, value in vars(module).items():
        inner: list[tuple[str, Any]] = [("", value)]
        if isinstance(value, (list, tuple)):
            inner = [(f"[{n}]", item) for n, item in enumerate(value)]
        elif isinstance(value, dict):
            inner = [(f"['{key}']", item) for key, item in value.items()]
        for where, child in inner:
            yield from _walk(child, f"{path}.{name}{where}", seen, with_frozen=with_frozen)


def _mixture_count_problem(program: Any) -> str:
    kind = type(program).__name__
    paths = [path.removeprefix("self.") for path in mixtures_of(program)]
    every = [path.removeprefix("self.") for path in mixtures_of(program, with_frozen=True)]
    if paths:
        named = f"holds {len(paths)} mixtures, at {', '.join(paths)}, but only one is allowed"
        return f"The {kind} {named}: freeze the others by `_compiled = True`, as in DSPy."
    if every:
        named = f"The mixtures of the {kind} are frozen, at {', '.join(every)}"
        return f"{named}: set `_compiled` of one to False."
    must = "`student` must hold a MixtureOfAgents, or be one, a Predict or a ChainOfThought"
    predictors = ", ".join(name for name, _ in getattr(program, "named_predictors", list)())
    hint = f". Name the predictor that one replaces (`predictor`): {predictors}"
    return f"{must}, but is a {kind} without one{hint if predictors else ''}."


class WorkerPool(Protocol):
    """Several processes that make calls in advance for an evaluator, into one store.

    A task is an architecture in text notation, or two systems that a judge compares.
    """

    def announce(
        self, tasks: Iterable[tuple[str, Sequence[dspy.Example]]], *, is_urgent: bool
    ) -> None:
        """Start the calls of tasks that will be measured, in this order, without waiting.

        Args:
            tasks: Each task with its rows.
            is_urgent: Whether they are measured next; otherwise urgent tasks go first.
        """
        ...

    def ready(self, task: str, rows: Sequence[dspy.Example]) -> Iterator[dspy.Example]:
        """Yield every row as soon as all calls of ``task`` for it are answered."""
        ...


@dataclass(slots=True)
class Evaluator:
    """Runs the student with different architectures and caches every node of every graph.

    A node is an agent that has read given nodes. Equal nodes of different architectures are
    computed once per example, and once per input if the student is a larger program, whose
    own calls count as well. Safe for threads.

    Args:
        student: A ``MixtureOfAgents``, or a program that holds one, which is measured
            whole; it defines signature, adapter and module of every seat.
        metric: Any DSPy metric.
        num_threads: Examples measured at the same time.
        workers: Processes that make the calls; None means that threads of this process do.
        node_cache: Responses that are known already.
        registry: The prompts that an architecture may name.
        judging: A judge that scores instead of the metric, or beside it.
    """

    student: Any
    metric: MetricFunction
    num_threads: int = 8
    workers: WorkerPool | None = None
    node_cache: NodeCache = field(default_factory=NodeCache)
    registry: PromptRegistry | None = None
    judging: Judging | None = None
    _outcomes: dict[Architecture, dict[str, Outcome]] = field(default_factory=dict)
    _inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _programs: dict[Architecture, MeasuredProgram] = field(default_factory=dict)
    _last: MeasuredProgram | None = None

    def __post_init__(self) -> None:
        """Allow kept answers if no judge and no metric of the user's may read DSPy's history."""
        self.node_cache.kept.is_used = self.judging is None and is_pure(self.metric)

    def failed(self) -> dict[str, Any]:
        """Return the responses that failed or were cut, counted over distinct computations.

        Keys as in ``StudyResult``: ``failures`` per agent, the most frequent ``failure_reasons``,
        and ``cut``: agent -> reason -> number.
        """
        by_agent, by_reason = Counter[str](), Counter[str]()
        for (agent, reason), n in [*self.node_cache.failures.items()]:
            by_agent[agent] += n
            by_reason[reason.replace(f"[agent/{agent}] ", "")] += n
        cuts: dict[str, dict[str, int]] = {}
        for (agent, reason), n in sorted(self.node_cache.cut.items()):
            cuts.setdefault(agent, {})[reason] = n
        reasons = dict(by_reason.most_common(_MOST_REASONS))
        return {"failures": dict(by_agent), "failure_reasons": reasons, "cut": cuts}

    def measure(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> tuple[Outcome, ...]:
        """Return one outcome per row, in the rows' order.

        Raises:
            MetricError: If the metric raises or returns no finite number in [0, 1].
            MoaError: If a call cannot be made for a reason other than the model.
            StudyError: If a larger program fails by itself.
        """
        outcomes = self._outcomes.setdefault(architecture, {})
        # As items: DSPy's attribute access is slow, and this reads all rows every time.
        if missing := [row for row in rows if row["id"] not in outcomes]:
            # The trace of the process is for the caller's own answers.
            with nullcontext() if is_traced() else dspy.context(trace=None):
                self._run(self._program(architecture), missing)
            self.node_cache.kept.flush()
        measured = tuple([outcomes[row["id"]] for row in rows])
        return measured if self.judging is None else self.judging.scored(measured)

    def compare(
        self, architecture: Architecture, other: Architecture, rows: Sequence[dspy.Example]
    ) -> list[Judgement]:
        """Return the judge's preference for ``architecture`` per row.

        Raises:
            StudyError: If there is no judge.
            MoaError: If a call cannot be made for a reason other than the model.
        """
        if (judging := self.judging) is None:
            raise StudyError("Two architectures can only be compared by a judge; there is none.")
        pair = (str(architecture), str(other))
        if self.workers is not None and self._is_shared(architecture) and self._is_shared(other):
            for _ in self.workers.ready(VERSUS.join(pair), rows):
                pass
        return in_threads(
            lambda row: judging.judge_pair(row, *pair, self),
            rows,
            num_threads=self._n_threads,
        )

    def forget(self) -> None:
        """Discard all scores, but keep the answers: the reference of the judge has changed."""
        self._outcomes.clear()

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        """True if ``measure`` of these rows would make no call."""
        outcomes = self._outcomes.get(architecture, {})
        return all(row["id"] in outcomes for row in rows)

    def announce(
        self,
        architectures: Iterable[Architecture],
        rows: Sequence[dspy.Example],
        *,
        is_urgent: bool = True,
    ) -> None:
        """Announce what will certainly be measured: workers start on it, threads do not."""
        if self.workers is not None:
            tasks = [(self._task(arch), rows) for arch in architectures if self._is_shared(arch)]
            self.workers.announce(tasks, is_urgent=is_urgent)

    def ask(self, architecture: Architecture, row: dspy.Example) -> Any:
        """Make all calls for the answer to this row, and do not judge it.

        Returns:
            The prediction; None if no model answered.
        """
        program = self._programs.get(architecture)
        if program is None:
            program = Student.of(self.student, self.registry).to_measure(architecture)
            self._programs[architecture] = program
        with call_scope(example=row.id), suppress(LayerFailedError):
            return program.answer(dict(row.inputs()), NodeRunner(self.node_cache, row.id))
        return None

    def work(self, task: str, row: dspy.Example) -> None:
        """Make every call of a task on one row; see ``WorkerPool``."""
        name, _, other = task.partition(VERSUS)
        if other and self.judging is not None:
            self.judging.judge_pair(row, name, other, self)
        else:
            self.ask(Architecture.parse(name), row)

    def _program(self, architecture: Architecture) -> MeasuredProgram:
        """Return the program of an architecture; that of the last one asked for is cached."""
        last = self._last
        if last is None or last.mixture.architecture is not architecture:
            last = Student.of(self.student, self.registry).to_measure(architecture)
            self._last = last
        return last

    def _task(self, architecture: Architecture) -> str:
        opponent = None if self.judging is None else self.judging.opponent
        return str(architecture) if opponent is None else f"{architecture}{VERSUS}{opponent}"

    @property
    def _n_threads(self) -> int:
        # In a replay there is nothing to wait for: threads would only cost time.
        is_replay = Student.of(self.student).mixture.pool.calls.replay_only
        return 1 if is_replay else self.num_threads

    def _is_shared(self, architecture: Architecture) -> bool:
        """True if every process has its prompt: tuned prompts are in this process only."""
        name = architecture.prompt
        return name is None or self.registry is None or self.registry.is_given(name)

    def _run(self, program: MeasuredProgram, rows: Sequence[dspy.Example]) -> None:
        is_shared = self._is_shared(program.mixture.architecture)
        if self.workers is not None and len(rows) > 1 and is_shared:
            for row in self.workers.ready(self._task(program.mixture.architecture), rows):
                self._measure_one(program, row)
            return
        rest = self._unknown(program, rows)
        # Rows whose calls are stored are faster without threads.
        alone = (n for n, row in enumerate(rest, 1) if not self._measure_one(program, row))
        rest = rest[next(alone, len(rest)) :]
        in_threads(lambda row: self._measure_one(program, row), rest, num_threads=self._n_threads)

    def _unknown(
        self, program: MeasuredProgram, rows: Sequence[dspy.Example]
    ) -> list[dspy.Example]:
        """Measure the rows whose answers are known, all at once; return the others."""
        if not program.is_mixture:
            return [*rows]
        left = {row["id"]: row for row in rows}
        for example, row in left.items():
            if example not in self._inputs:
                self._inputs[example] = dict(row.inputs())
        inputs = {example: self._inputs[example] for example in left}
        for runner, answer in known_answers(self.node_cache, program.mixture, inputs):
            row = left.pop(runner.example)
            self.node_cache.table.add_row()
            answered = MixturePrediction.of(answer) if isinstance(answer, Answer) else answer
            self._note(program, row, runner, answered)
        return [*left.values()]

    def _measure_one(self, program: MeasuredProgram, row: dspy.Example) -> bool:
        """Measure a row; return whether it took no waiting."""
        started, runner = time.perf_counter(), NodeRunner(self.node_cache, row.id)
        with call_scope(example=row.id) as scope:
            try:
                result = program.answer(dict(row.inputs()), runner)
            except LayerFailedError as error:
                result = error
            finally:
                self.node_cache.table.add_row()
        self._note(program, row, runner, result, scope.log)
        if isinstance(result, LayerFailedError):
            return False
        is_known = runner.is_reused and self.judging is None
        is_known &= all(facts.is_reused for facts in scope.log)
        return is_known and time.perf_counter() - started < _SOON_SECONDS

    def _note(
        self,
        program: MeasuredProgram,
        row: dspy.Example,
        runner: NodeRunner,
        result: Any,
        log: Sequence[CallFacts] = (),
    ) -> None:
        """Score a row: ``result`` is its prediction, or why there is none."""
        outcomes = self._outcomes.setdefault(program.mixture.architecture, {})
        costs = runner.costs(log)
        if isinstance(result, LayerFailedError):
            # A failed answer also has a verdict: it loses to any answer.
            judged = self._judged(program, row, None)
            outcomes[row.id] = Outcome(0.0, (), **costs, failure=str(result), judged=judged)
            return
        judged = self._judged(program, row, result)
        outcomes[row.id] = Outcome(
            score=self._score(row, result, judged),
            layer=runner.read,
            ballot=runner.ballot(program.mixture),
            judged=judged,
            answer=runner.text,
            **costs,
        )

    def _judged(
        self, program: MeasuredProgram, row: dspy.Example, prediction: Any
    ) -> RowJudgement | None:
        if self.judging is None:
            return None
        return self.judging.judge_row(row, str(program.mixture.architecture), prediction, self)

    def _score(
        self, row: dspy.Example, prediction: dspy.Prediction, judged: RowJudgement | None = None
    ) -> float:
        if judged is not None and self.judging is not None:
            return self.judging.score_of(judged)
        return CheckedMetric(self.metric).score(row, prediction)

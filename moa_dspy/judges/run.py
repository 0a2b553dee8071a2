"""Juries, judges of recorded preferences, and runs of a judge over many examples."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import dspy
import numpy as np
from numpy.typing import NDArray

from moa_dspy.calls.scope import call_scope
from moa_dspy.errors import DataError, LayerFailedError, MetricError
from moa_dspy.judges.base import Grades, Judge, Judgement, JudgeReport, OutcomeCounter, id_of
from moa_dspy.judges.graded import Grader
from moa_dspy.judges.program import raise_if_moa_error
from moa_dspy.winrate import RecordedPreferences, WinRate, win_rate


class _CountingJudge:
    """Base of the judges in this module, which counts their outcomes."""

    def __init__(self) -> None:
        self._counter = OutcomeCounter()

    def _counted(self, judgement: Judgement) -> Judgement:
        self._counter.add(judgement)
        return judgement

    def _looked_up(self, preference: float | None, subject: str) -> Judgement:
        """Return a recorded preference as a judgement, ``missing`` if there is none."""
        if preference is None:
            reason = f"No preference is recorded {subject}."
            return self._counted(Judgement(excluded="missing", reason=reason))
        return self._counted(Judgement(preference=preference))

    def report(self) -> JudgeReport:
        """Return the counts of all outcomes; the members of a jury have their own counts."""
        return self._counter.report


class RecordedJudge(_CountingJudge):
    """Judge that looks preferences up in a table, without asking a model.

    Args:
        table: ``RecordedPreferences``, or preferences by (system, example id), in [0, 1], 1 if the
            system is preferred to the table's reference; None or NaN is a missing judgement.

    Raises:
        MetricError: If a preference is outside [0, 1].
    """

    def __init__(self, table: RecordedPreferences | Mapping[tuple[str, str], float | None]) -> None:
        named = _by_name(table) if isinstance(table, RecordedPreferences) else table
        self._systems = {system for system, _ in named}
        self._table: dict[tuple[str, str], float] = {}
        for (system, example_id), preference in named.items():
            if preference is None or math.isnan(preference):
                continue
            if not 0 <= preference <= 1:
                raise MetricError(
                    f"A preference must be in [0, 1], but {system!r} has {preference} "
                    f"on example {example_id!r}."
                )
            # As text, like the ids of examples, for any type of a table's column.
            self._table[system, str(example_id)] = float(preference)
        super().__init__()

    def compare(
        self, example: dspy.Example, candidate: str, reference: str | None = None
    ) -> Judgement:
        """Return the recorded preference for the system that ``candidate`` names.

        Args:
            example: The example, with the ``id`` of the recording.
            candidate: Name of a system.
            reference: Not used, as the table has a single reference.

        Raises:
            DataError: If the table has no such system.
        """
        if candidate not in self._systems:
            systems = ", ".join(sorted(self._systems))
            raise DataError(f"Unknown system {candidate!r}; the table has {systems}.")
        preference = self._table.get((candidate, id_of(example)))
        return self._looked_up(preference, f"for {candidate!r}")


class RecordedPairs(_CountingJudge):
    """Judge that looks up preferences between any two systems, without asking a model.

    Args:
        table: Preferences by (system, reference, example id), in [0, 1], 1 if the system is
            preferred to the reference; None or NaN is a missing judgement. A pair may be recorded
            in either direction.

    Raises:
        MetricError: If the table is empty, a preference is outside [0, 1], or the two directions of
            a pair do not add up to 1.
    """

    reads_names: Final = True
    """Marks a judge that gets the names of systems instead of their answers."""

    def __init__(self, table: Mapping[tuple[str, str, str], float | None]) -> None:
        if not table:
            raise MetricError("The table of preferences has no row.")
        self._table: dict[tuple[str, str, str], float] = {}
        self._pairs: set[tuple[str, str]] = set()
        for (system, reference, name), preference in table.items():
            self._pairs |= {(system, reference), (reference, system)}
            if preference is None or math.isnan(preference):
                continue
            if not 0 <= preference <= 1:
                raise MetricError(
                    f"A preference must be in [0, 1], but {system!r} over {reference!r} has "
                    f"{preference} on example {name!r}."
                )
            self._add(system, reference, str(name), float(preference))
        super().__init__()

    def _add(self, system: str, reference: str, name: str, preference: float) -> None:
        recorded = self._table.get((system, reference, name), preference)
        if abs(recorded - preference) > _SAME:
            raise MetricError(
                f"{system!r} over {reference!r} on example {name!r} is recorded as {recorded} and, "
                f"the other way round, as {preference}."
            )
        self._table[system, reference, name] = preference
        self._table[reference, system, name] = 1 - preference

    def knows(self, system: str, reference: str) -> bool:
        """Return whether the table has rows for these two systems, in either order."""
        return system == reference or (system, reference) in self._pairs

    def compare(self, example: dspy.Example, candidate: str, reference: str) -> Judgement:
        """Return the recorded preference for ``candidate`` over ``reference``, both names.

        Without one, the example is ``missing``; a system ties with itself.
        """
        preference = self._table.get((candidate, reference, id_of(example)))
        if candidate == reference:
            preference = 0.5
        return self._looked_up(preference, f"of {candidate!r} and {reference!r}")


_SAME: Final = 1e-9


class Jury(_CountingJudge):
    """A majority vote of several judges (Verga et al., arXiv:2404.18796).

    Each judge has one vote: for the candidate, for the reference, or for a tie. The verdict is the
    option with the most votes, or else a tie. A judge without a verdict has no vote; if most judges
    have no verdict, the example is excluded with the first of their reasons.

    Args:
        judges: Two or more.

    Raises:
        MetricError: If there are fewer than two judges.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len(judges) < 2:
            raise MetricError(f"A jury needs at least 2 judges, but got {len(judges)}.")
        self.judges = tuple(judges)
        super().__init__()

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Ask every judge; see the class."""
        judgements = [judge.compare(example, candidate, reference) for judge in self.judges]
        return self._counted(_majority(judgements))


def _majority(judgements: Sequence[Judgement]) -> Judgement:
    read = [judgement for judgement in judgements if judgement.preference is not None]
    if 2 * len(read) <= len(judgements):
        unread = next(judgement for judgement in judgements if judgement.preference is None)
        return Judgement(excluded=unread.excluded, reason=unread.reason)
    voices = Counter(float(np.sign((judgement.preference or 0.0) - 0.5)) for judgement in read)
    (first, n_first), *rest = voices.most_common()
    side = 0.0 if rest and rest[0][1] == n_first else first
    orders = [judgement.verdicts for judgement in read if len(judgement.verdicts) == 2]
    means = tuple(sum(place) / len(orders) for place in zip(*orders, strict=True)) if orders else ()
    return Judgement(
        preference=0.5 + side / 2,
        verdicts=means,
        reason="\n".join(judgement.reason for judgement in read if judgement.reason),
        n_sampled=sum(judgement.n_sampled for judgement in read),
    )


def _by_name(table: RecordedPreferences) -> dict[tuple[str, str], float | None]:
    named: dict[tuple[str, str], float | None] = {}
    for system in table.systems:
        ids = table.examples(system)
        values = table.of(system, ids).tolist() if ids else []
        named[system, ""] = None  # a system without judgements is known too
        named |= {(system, str(i)): value for i, value in zip(ids, values, strict=True)}
    return named


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """The judgements of one judge on examples, in the examples' order."""

    judgements: tuple[Judgement, ...]

    @property
    def preferences(self) -> NDArray[np.float64]:
        """Preferences in [0, 1], 1 if the candidate is preferred; NaN for an excluded example."""
        return _vector(judgement.preference for judgement in self.judgements)

    @property
    def by_place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the preferences with the candidate shown first, and with the candidate second.

        They are of the examples judged in both orders, as ``winrate.position_consistency`` needs.
        """
        both = [judgement.verdicts for judgement in self.judgements if len(judgement.verdicts) == 2]
        return _vector(first for _, first in both), _vector(second for second, _ in both)

    @property
    def report(self) -> JudgeReport:
        """Counts of the examples by outcome."""
        return JudgeReport.of(self.judgements)

    def win_rate(self, *, confidence: float = 0.95) -> WinRate:
        """Return the candidate's win rate over the examples that were judged.

        Raises:
            MetricError: If no example was judged.
        """
        preferences = self.preferences[~np.isnan(self.preferences)]
        if not preferences.size:
            raise MetricError(f"There is no preference to sum up: {self.report}.")
        return win_rate(preferences, confidence=confidence)


@dataclass(frozen=True, slots=True)
class GradeRun:
    """The grades of one system on examples, in the examples' order."""

    graded: tuple[Grades, ...]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean grade per example, scaled to [0, 1]; NaN for an excluded example."""
        return _vector(grades.score for grades in self.graded)

    @property
    def means(self) -> dict[str, float]:
        """Mean grade per turn or skill on the judge's own scale, over all valid grades."""
        return {name: sum(grades) / len(grades) for name, grades in self._read().items()}

    @property
    def counts(self) -> dict[str, int]:
        """The number of grades behind each of ``means``."""
        return {name: len(grades) for name, grades in self._read().items()}

    @property
    def report(self) -> JudgeReport:
        """Counts of the examples by outcome."""
        return JudgeReport.of(self.graded)

    def _read(self) -> dict[str, list[float]]:
        read: defaultdict[str, list[float]] = defaultdict(list)
        for grades in self.graded:
            for name, grade in grades.grades.items():
                if grade is not None:
                    read[name].append(grade)
        return dict(sorted(read.items()))


def _vector(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


_logger = logging.getLogger(__name__)

Answers: TypeAlias = Callable[..., Any] | Mapping[str, Any] | Sequence[Any] | str | None
"""A program to run on the examples' inputs; or answers by example id or in the examples' order;
or one text for all examples: a constant answer, or the name of a recorded system."""

_Result = TypeVar("_Result")


def judge_all(
    judge: Judge,
    examples: Sequence[dspy.Example],
    candidate: Answers,
    reference: Answers,
    *,
    num_threads: int = 8,
) -> JudgeRun:
    """Compare two systems on examples.

    If a program does not answer, its example is ``missing``, which is logged and counted, not a
    loss: check ``report.missing`` before you trust a win rate.

    Args:
        judge: Any judge.
        examples: Examples, with inputs set if a program or the judge needs them.
        candidate: The system that gets the win rate; see ``Answers``.
        reference: The system it is compared with; see ``Answers``.
        num_threads: Examples judged at the same time.

    Raises:
        DataError: If there is no example, or the answers do not match the examples.
        MoaError: If a call cannot be made for a reason other than the model.
    """
    candidate_at = _lookup(candidate, examples, name="candidate")
    reference_at = _lookup(reference, examples, name="reference")

    def judged(place: int, example: dspy.Example) -> Judgement:
        return judge.compare(example, candidate_at(place, example), reference_at(place, example))

    return JudgeRun(tuple(_each(examples, judged, num_threads)))


def grade_all(
    judge: Grader, examples: Sequence[dspy.Example], answers: Answers, *, num_threads: int = 8
) -> GradeRun:
    """Grade one system on examples; arguments and errors are those of ``judge_all``."""
    answer_at = _lookup(answers, examples, name="answers")

    def graded(place: int, example: dspy.Example) -> Grades:
        return judge.grade(example, answer_at(place, example))

    return GradeRun(tuple(_each(examples, graded, num_threads)))


def _lookup(
    answers: Answers, examples: Sequence[dspy.Example], *, name: str
) -> Callable[[int, dspy.Example], Any]:
    """Return a function from an example's index to its answer."""
    if answers is None or isinstance(answers, str):
        return lambda place, example: answers
    if callable(answers):
        return lambda place, example: _run(answers, example)
    if isinstance(answers, Mapping):
        return lambda place, example: answers.get(id_of(example))
    if len(answers) != len(examples):
        raise DataError(f"`{name}` has {len(answers)} answers to {len(examples)} examples.")
    return lambda place, example: answers[place]


def _run(program: Callable[..., Any], example: dspy.Example) -> Any:
    try:
        return program(**dict(example.inputs()))
    except Exception as error:
        raise_if_moa_error(error, but=(LayerFailedError,))
        _logger.warning("No answer to example %s: %s", id_of(example), error)
        return None


def _each(
    examples: Sequence[dspy.Example],
    judged: Callable[[int, dspy.Example], _Result],
    num_threads: int,
) -> list[_Result]:
    if not examples:
        raise DataError("There is no example to judge.")

    def judge_row(place: int, example: dspy.Example) -> _Result:
        with call_scope(example=id_of(example)):
            return judged(place, example)

    with ThreadPoolExecutor(max_workers=num_threads) as threads:
        running = [
            threads.submit(copy_context().run, judge_row, place, example)
            for place, example in enumerate(examples)
        ]
        try:
            return [future.result() for future in running]
        except BaseException:
            # Calls in flight are paid for and stored; no further call is started.
            threads.shutdown(wait=True, cancel_futures=True)
            raise

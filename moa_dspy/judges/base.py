"""The protocol of judges, their outcomes with counts, metrics as judges and judges as metrics."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypeAlias

import dspy

from moa_dspy.errors import DataError, MetricError, MoaError
from moa_dspy.prediction import render
from moa_dspy.winrate import preferences

Exclusion: TypeAlias = Literal["missing", "failed", "unparsable"]
"""Reasons why an example has no number: there is no response or record to judge, the judge's
model did not answer, or its answer is not a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOutcome:
    """Outcome of a judge on one example: a number, or the reason why there is none."""

    excluded: Exclusion | None = None
    reason: str = ""
    """The judge's reasoning if there is any, or the fault; for people and optimizers."""
    n_sampled: int = 0
    """Number of verdicts used as sampled although log-probabilities were requested."""

    @property
    def is_tie(self) -> bool:
        """True if the judge saw no difference."""
        return False

    @property
    def is_inconsistent(self) -> bool:
        """True if the two orders of one pair preferred different systems."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(JudgeOutcome):
    """A preference between two systems on one example.

    Attributes:
        preference: In [0, 1], 1 if the candidate is preferred; None if there is a reason in
            ``excluded``.
        verdicts: The preference for the candidate in each order of presentation; of two, the first
            is from the order in which the candidate was shown second.
    """

    preference: float | None = None
    verdicts: tuple[float, ...] = ()

    @property
    def is_tie(self) -> bool:
        """True if neither is preferred, with the same verdict in every order."""
        return self.preference == 0.5 and not self.is_inconsistent

    @property
    def is_inconsistent(self) -> bool:
        """True if the two orders of one pair preferred different systems."""
        return bool(self.verdicts) and min(self.verdicts) < 0.5 < max(self.verdicts)

    @property
    def turned(self) -> Judgement:
        """Return the judgement with candidate and reference exchanged."""
        if self.preference is None:
            return self
        verdicts = tuple(1 - verdict for verdict in reversed(self.verdicts))
        return replace(self, preference=1 - self.preference, verdicts=verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades(JudgeOutcome):
    """The grades of one system on one example.

    Attributes:
        grades: Grades per turn or skill, on the judge's scale; None if the reply was not a grade.
        score: Mean grade, scaled to [0, 1]; None if a grade is missing, as means over different
            turns or skills cannot be compared.
    """

    grades: Mapping[str, float | None]
    score: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """Counts of a judge's examples by outcome.

    ``n = judged + missing + failed + unparsable``, of which only ``judged`` have a number.
    ``inconsistent``, ``ties`` and ``sampled`` are parts of ``judged``.
    """

    n: int = 0
    judged: int = 0
    missing: int = 0
    failed: int = 0
    unparsable: int = 0
    inconsistent: int = 0
    ties: int = 0
    sampled: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[JudgeOutcome]) -> JudgeReport:
        """Count outcomes."""
        counts: Counter[str] = Counter()
        for outcome in outcomes:
            counts.update(_counted(outcome))
        return cls(**counts)

    def __add__(self, other: JudgeReport) -> JudgeReport:
        names = [field.name for field in fields(self)]
        return JudgeReport(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def excluded(self) -> int:
        """Examples without a number; none of them is scored."""
        return self.missing + self.failed + self.unparsable

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name)}" for name in _PARTS if getattr(self, name)]
        return f"{self.judged} of {self.n} judged" + "".join(f", {part}" for part in parts)


_PARTS = ("missing", "failed", "unparsable", "inconsistent", "ties", "sampled")


def _counted(outcome: JudgeOutcome) -> list[str]:
    if outcome.excluded is not None:
        return ["n", outcome.excluded]
    claims = {
        "inconsistent": outcome.is_inconsistent,
        "ties": outcome.is_tie,
        "sampled": outcome.n_sampled > 0,
    }
    return ["n", "judged", *(name for name, holds in claims.items() if holds)]


class OutcomeCounter:
    """A counter of outcomes, shared by the copies of a judge; safe for threads."""

    def __init__(self) -> None:
        self._report = JudgeReport()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> OutcomeCounter:
        # DSPy's optimizers judge with copies, whose exclusions must be counted too.
        return self

    def __reduce__(self) -> tuple[type[OutcomeCounter], tuple[()]]:
        return OutcomeCounter, ()

    def add(self, outcome: JudgeOutcome) -> None:
        """Count one outcome."""
        with self._lock:
            self._report += JudgeReport.of([outcome])

    @property
    def report(self) -> JudgeReport:
        """Return the counts so far."""
        with self._lock:
            return self._report


class Judge(Protocol):
    """A judge, which decides per example which of two systems did better.

    The preference is in [0, 1]: 1 if the candidate is preferred, 0 if the reference is, 0.5 for a
    tie; None if there is no verdict, with the reason in ``excluded``. A missing verdict is never a
    loss. Arguments are not changed. ``report`` counts the comparisons so far.
    """

    def compare(self, example: dspy.Example, candidate: Any, reference: Any, /) -> Judgement:
        """Compare two answers to one example."""
        ...

    def report(self) -> JudgeReport:
        """Return the counts of this judge and its copies."""
        ...


def as_judgement(result: Any, example: dspy.Example) -> Judgement:
    """Return a judge's result as a judgement: a number is a preference, None is unparsable.

    Raises:
        MetricError: If it is none of these, or a preference outside [0, 1].
    """
    if result is None:
        return Judgement(excluded="unparsable", reason="The judge returned None.")
    if isinstance(result, Judgement):
        value = result.preference
        if result.excluded is not None if value is None else 0 <= value <= 1:
            return result
    elif isinstance(result, int | float) and 0 <= result <= 1:
        return Judgement(preference=float(result))
    raise MetricError(
        f"The judge must return a Judgement, or a preference in [0, 1], but returned {result!r} on "
        f"example {id_of(example)!r}."
    )


_BESIDE = ("mixture", "logprobs", "reasoning")


def instruction_of(example: dspy.Example) -> str:
    """Return the example's inputs as one text: the value alone, or ``name: value`` lines.

    Raises:
        DataError: If the example does not have its input fields set.
    """
    try:
        inputs = example.inputs().toDict()
    except ValueError as error:
        raise DataError(f"Example {id_of(example)!r}: {error}") from error
    if not inputs:
        raise DataError(f"Example {id_of(example)!r} has no inputs to judge a response to.")
    return render(inputs)


def id_of(example: dspy.Example) -> str:
    """Return the field ``id`` as text; "?" if there is none, for messages only."""
    return str(example.get("id", "?"))


def texts_of(answer: Any) -> tuple[str, ...] | None:
    """Return an answer as its texts, one per turn; None if there is no answer.

    Of a prediction, a mixture's facts, log-probabilities and, if there are other fields, the
    reasoning are left out; the rest is one text or, for a single field with a list, one text per
    turn.
    """
    if answer is None:
        return None
    if isinstance(answer, dspy.Prediction):
        return _of_prediction(answer)
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return tuple(render({"turn": turn}) for turn in answer) or None
    return (render({"answer": answer}),)


def answer_text(answer: Any, example: dspy.Example) -> str | None:
    """Return an answer of one turn as its text; None if there is no answer.

    Raises:
        DataError: If the answer has several turns.
    """
    texts = texts_of(answer)
    if texts is not None and len(texts) != 1:
        raise DataError(
            f"Example {id_of(example)!r}: this judge reads one response, but got {len(texts)}; "
            'for a conversation of several turns, use GradeJudge (`judge.kind` = "grade").'
        )
    return texts[0] if texts else None


def _of_prediction(prediction: dspy.Prediction) -> tuple[str, ...] | None:
    values = {name: prediction[name] for name in prediction.keys()}  # noqa: SIM118  # not a dict
    shown = {name: value for name, value in values.items() if name not in _BESIDE}
    if not shown and "reasoning" in values:
        shown = {"reasoning": values["reasoning"]}
    if not shown or all(value is None for value in shown.values()):
        return None
    if len(shown) == 1:
        return texts_of(next(iter(shown.values())))
    return (render(shown),)


Metric: TypeAlias = Callable[..., Any]
Scored: TypeAlias = tuple[float | None, JudgeOutcome]
"""A number in [0, 1] or None, and the outcome on which it is based."""


def metric_of(score: Callable[[dspy.Example, Any], Scored], *, unreadable: float | None) -> Metric:
    """Return a metric of five arguments that returns ``dspy.Prediction(score=..., feedback=...)``.

    If an optimizer collects demonstrations (it passes a trace and no predictor's name), the metric
    returns instead whether the answer is good: a valid verdict above 0.5.

    Args:
        score: Function that judges a prediction on an example.
        unreadable: Score of an example without a verdict, in [0, 1]; None raises MetricError.

    Raises:
        MetricError: If ``unreadable`` is outside [0, 1].
    """
    if unreadable is not None and not 0 <= unreadable <= 1:
        raise MetricError(f"`unreadable` must be in [0, 1] or None, but got {unreadable}.")

    def metric(
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> Any:
        value, outcome = score(example, prediction)
        if trace is not None and pred_name is None:
            return value is not None and value > 0.5
        if value is None and unreadable is None:
            raise MetricError(
                f"No verdict on example {id_of(example)!r}: {_exclusion_text(outcome)}"
            )
        number = unreadable if value is None else value
        return dspy.Prediction(score=number, feedback=_feedback(value, outcome))

    return metric


def preference_metric(judge: Any, reference_field: str, unreadable: float | None) -> Metric:
    """Return a judge's metric: the preference over the response stored in a field."""

    def score(example: dspy.Example, prediction: Any) -> Scored:
        judgement = judge.compare(example, prediction, reference_in(example, reference_field))
        return judgement.preference, judgement

    return metric_of(score, unreadable=unreadable)


def reference_in(example: dspy.Example, field: str) -> Any:
    """Return the stored reference response of an example.

    Raises:
        DataError: If the example has no such field.
    """
    if field not in example:
        present = ", ".join(sorted(example.keys()))
        raise DataError(
            f"Example {id_of(example)!r} has no field {field!r} with a reference response; "
            f"it has {present}."
        )
    return example[field]


def _feedback(value: float | None, outcome: JudgeOutcome) -> str:
    if value is None:
        return f"The judge gave no verdict: {_exclusion_text(outcome)}"
    sentence = f"The judge scored this answer {value:.2f} on a scale from 0 to 1."
    return f"{sentence} {outcome.reason}".strip()


def _exclusion_text(outcome: JudgeOutcome) -> str:
    return f"{outcome.excluded}. {outcome.reason}".strip()


class MetricJudge:
    """Judge that prefers the answer with the higher metric: 1 win, 0.5 tie, 0 loss.

    Args:
        metric: Any DSPy metric of (example, prediction), on any scale; higher is better.
        tolerance: Largest difference of two scores that counts as a tie, at least 0.
        answer_field: Field that the metric reads; a stored text becomes a prediction with this
            field.

    Raises:
        MetricError: If the tolerance is negative.
    """

    def __init__(
        self, metric: Callable[..., Any], *, tolerance: float = 0.0, answer_field: str = "answer"
    ) -> None:
        if not tolerance >= 0:
            raise MetricError(f"`tolerance` must be at least 0, but got {tolerance}.")
        self.metric, self.tolerance, self.answer_field = metric, tolerance, answer_field
        self._counter = OutcomeCounter()

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Score both answers and compare.

        Args:
            example: The example for the metric.
            candidate: A prediction, or a text; None if there is no answer.
            reference: Like ``candidate``.

        Raises:
            MetricError: If the metric raised or did not return a finite number.
        """
        judgement = self._compared(example, candidate, reference)
        self._counter.add(judgement)
        return judgement

    def report(self) -> JudgeReport:
        """Return the counts of every comparison."""
        return self._counter.report

    def as_metric(self, *, reference_field: str, unreadable: float | None = 0.5) -> Metric:
        """Return a metric: the preference over the response stored in ``reference_field``."""
        return preference_metric(self, reference_field, unreadable)

    def _compared(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        if candidate is None or reference is None:
            absent = "candidate" if candidate is None else "reference"
            return Judgement(excluded="missing", reason=f"The {absent} has no response.")
        candidate_score, reference_score = (
            self._score(example, candidate),
            self._score(example, reference),
        )
        preference = float(
            preferences([candidate_score], [reference_score], tolerance=self.tolerance)[0]
        )
        return Judgement(
            preference=preference, reason=f"Scores {candidate_score:g} and {reference_score:g}."
        )

    def _score(self, example: dspy.Example, answer: Any) -> float:
        is_prediction = isinstance(answer, dspy.Prediction)
        prediction = answer if is_prediction else dspy.Prediction(**{self.answer_field: answer})
        try:
            value: Any = self.metric(example, prediction)
            score = float(value.score if hasattr(value, "score") else value)
        except MoaError:
            raise
        except Exception as error:
            raise MetricError(
                f"The metric raised {type(error).__name__} on example {id_of(example)!r}: {error}"
            ) from error
        if not math.isfinite(score):
            raise MetricError(
                f"The metric must return a finite number, but gave {score} on {id_of(example)!r}."
            )
        return score

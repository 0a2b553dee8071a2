"""DSPy metrics as judges, and judges as DSPy metrics.

The latter serve ``dspy.Evaluate``, DSPy's optimizers and ``ModelSearch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import dspy

from moa_dspy.errors import DataError, MetricError, MoaError
from moa_dspy.judges.base import Judgement, JudgeOutcome, JudgeReport, OutcomeCounter, id_of
from moa_dspy.winrate import preferences

Metric: TypeAlias = Callable[..., Any]
Scored: TypeAlias = tuple[float | None, JudgeOutcome]
"""A number in [0, 1] or none, and what it is based on."""


def metric_of(score: Callable[[dspy.Example, Any], Scored], *, unreadable: float | None) -> Metric:
    """Return a metric of five arguments that gives ``dspy.Prediction(score=..., feedback=...)``.

    Where an optimizer collects demonstrations (it gives a trace and no predictor's name) the
    metric says instead whether the answer is good: above 0.5, by a verdict that was read.

    Args:
        score: Judges a prediction on an example.
        unreadable: Score of an example without a verdict, in [0, 1]; None raises MetricError.

    Raises:
        MetricError: ``unreadable`` is outside [0, 1].
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
            raise MetricError(f"No verdict on example {id_of(example)!r}: {_why(outcome)}")
        number = unreadable if value is None else value
        return dspy.Prediction(score=number, feedback=_feedback(value, outcome))

    return metric


def reference_in(example: dspy.Example, field: str) -> Any:
    """Return the stored reference response of an example.

    Raises:
        DataError: The example has no such field.
    """
    if field not in example:
        known = ", ".join(sorted(example.keys()))
        raise DataError(
            f"Example {id_of(example)!r} has no field {field!r} with a reference response; "
            f"it has {known}."
        )
    return example[field]


def _feedback(value: float | None, outcome: JudgeOutcome) -> str:
    if value is None:
        return f"The judge gave no verdict: {_why(outcome)}"
    said = f"The judge scored this answer {value:.2f} on a scale from 0 to 1."
    return f"{said} {outcome.reason}".strip()


def _why(outcome: JudgeOutcome) -> str:
    return f"{outcome.excluded}. {outcome.reason}".strip()


class MetricJudge:
    """Prefers the answer that a metric scores higher: 1 win, 0.5 tie, 0 loss.

    Args:
        metric: Any DSPy metric of (example, prediction) where more is better, on any scale.
        tolerance: Largest difference of two scores that is a tie, at least 0.
        answer_field: What the metric reads of a prediction; a stored text becomes a prediction
            with this field.

    Raises:
        MetricError: A negative tolerance.
    """

    def __init__(
        self, metric: Callable[..., Any], *, tolerance: float = 0.0, answer_field: str = "answer"
    ) -> None:
        if not tolerance >= 0:
            raise MetricError(f"`tolerance` must be at least 0, but got {tolerance}.")
        self.metric, self.tolerance, self.answer_field = metric, tolerance, answer_field
        self._tally = OutcomeCounter()

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Score both answers and compare.

        Args:
            example: What the metric reads.
            candidate: A prediction, or a text; None where there is no answer.
            reference: As ``candidate``.

        Raises:
            MetricError: The metric raised or returned no finite number.
        """
        judgement = self._compared(example, candidate, reference)
        self._tally.add(judgement)
        return judgement

    def report(self) -> JudgeReport:
        """Return the counts of every comparison."""
        return self._tally.report

    def as_metric(self, *, reference_field: str, unreadable: float | None = 0.5) -> Metric:
        """Return a metric: the preference over the response stored in ``reference_field``."""

        def score(example: dspy.Example, prediction: Any) -> Scored:
            judgement = self.compare(example, prediction, reference_in(example, reference_field))
            return judgement.preference, judgement

        return metric_of(score, unreadable=unreadable)

    def _compared(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        if candidate is None or reference is None:
            who = "candidate" if candidate is None else "reference"
            return Judgement(excluded="missing", reason=f"The {who} has no response.")
        ours, theirs = self._score(example, candidate), self._score(example, reference)
        preference = float(preferences([ours], [theirs], tolerance=self.tolerance)[0])
        return Judgement(preference=preference, reason=f"Scores {ours:g} and {theirs:g}.")

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

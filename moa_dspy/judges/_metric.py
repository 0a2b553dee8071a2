"""Any DSPy metric as a judge of two systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dspy

from moa_dspy.errors import MetricError, MoaError
from moa_dspy.judges._as_metric import Metric, Scored, metric_of, reference_in
from moa_dspy.judges._outcome import Judgement, JudgeReport, Tally
from moa_dspy.judges._texts import id_of
from moa_dspy.winrate import preferences


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
        self._tally = Tally()

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

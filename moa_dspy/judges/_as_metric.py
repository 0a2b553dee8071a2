"""Judges as DSPy metrics, for ``dspy.Evaluate``, DSPy's optimizers and ``ModelSearch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import dspy

from moa_dspy.errors import DataError, MetricError
from moa_dspy.judges._outcome import Outcome
from moa_dspy.judges._texts import id_of

Metric: TypeAlias = Callable[..., Any]
Scored: TypeAlias = tuple[float | None, Outcome]
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


def _feedback(value: float | None, outcome: Outcome) -> str:
    if value is None:
        return f"The judge gave no verdict: {_why(outcome)}"
    said = f"The judge scored this answer {value:.2f} on a scale from 0 to 1."
    return f"{said} {outcome.reason}".strip()


def _why(outcome: Outcome) -> str:
    return f"{outcome.excluded}. {outcome.reason}".strip()

"""The user's metric, asked with as many arguments as it takes, and its errors kept in sight."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import dspy

from moa_dspy.errors import MetricError, MoaError, StudyError
from moa_dspy.optimize.prompts._student import NoAnswer, Stop

_MOST: Final = 5
"""Arguments of a GEPA metric: example, prediction, trace, pred_name, pred_trace."""


def arity_of(metric: Any) -> int:
    """Return how many positional arguments, of 2 to 5, the metric can be given.

    Raises:
        StudyError: If it cannot be called with an example and a prediction.
    """
    wanted = "`metric` must be a function of (example, prediction) with more arguments optional"
    if not callable(metric):
        raise StudyError(f"{wanted}, but got {metric!r}.")
    try:
        signature = inspect.signature(metric)
    except ValueError:
        return 2  # a builtin that does not tell
    for count in range(_MOST, 1, -1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    name = getattr(metric, "__name__", type(metric).__name__)
    raise StudyError(f"{wanted}, but {name} has the signature {signature}.")


@dataclass(frozen=True, slots=True)
class Scoring:
    """Calls a metric; what it raises ends all, as a score of 0 would hide it.

    Attributes:
        metric: The user's.
        arity: How many arguments it is given.
        stop: Where its errors are kept.
    """

    metric: Callable[..., Any]
    arity: int
    stop: Stop

    @classmethod
    def of(cls, metric: Any, stop: Stop) -> Scoring:
        """Check the metric.

        Raises:
            StudyError: As ``arity_of``.
        """
        return cls(metric, arity_of(metric), stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scoring:
        return self

    def value(self, example: Any, prediction: Any, *rest: Any) -> Any:
        """Return what the metric returns; 0.0 where nothing was answered.

        Raises:
            MetricError: If it raises, or returns no finite number in [0, 1].
        """
        if isinstance(prediction, NoAnswer):
            return 0.0
        self.stop.check()
        try:
            value = self.metric(example, prediction, *rest[: self.arity - 2])
            score = float(score_of(value))
        except MoaError as error:
            raise self.stop.note(error) from None
        except Exception as error:
            name = type(error).__name__
            text = f"The metric raised {name} on example {example.get('id')!r}: {error}"
            raise self.stop.note(MetricError(text)) from error
        if not (math.isfinite(score) and 0 <= score <= 1):
            text = f"The metric must return a number in [0, 1], but gave {score} on "
            raise self.stop.note(MetricError(f"{text}{example.get('id')!r}."))
        return value

    def score(self, example: Any, prediction: Any, *rest: Any) -> float:
        """Return the number alone."""
        return float(score_of(self.value(example, prediction, *rest)))

    def __call__(
        self,
        example: Any,
        prediction: Any,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
    ) -> Any:
        """Return the metric's own value: optimizers that bootstrap ask whether it is true."""
        return self.value(example, prediction, trace, pred_name, pred_trace)


def score_of(value: Any) -> Any:
    """Return the score of a metric's value, which may be a prediction with feedback."""
    return value.score if isinstance(value, dspy.Prediction) else value

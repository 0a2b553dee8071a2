"""A user's metric as the library calls it: its signature and its values are checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moa_dspy.errors import MetricError, MoaError, StudyError

_MOST: Final = 5
"""Arguments of a GEPA metric: example, prediction, trace, pred_name, pred_trace."""


@dataclass(frozen=True, slots=True)
class CheckedMetric:
    """A metric that is given as many arguments as it takes.

    Attributes:
        metric: The user's.
        arity: How many positional arguments it is given, of 2 to 5.
    """

    metric: Callable[..., Any]
    arity: int = 2

    @classmethod
    def of(cls, metric: Any) -> CheckedMetric:
        """Look at the metric's signature.

        Raises:
            StudyError: If it cannot be called with an example and a prediction.
        """
        return cls(metric, _arity(metric))

    def value(self, example: Any, prediction: Any, *rest: Any) -> Any:
        """Return what the metric returns, which may be a prediction with a score and feedback.

        Raises:
            MetricError: If it raises, or its score is no finite number in [0, 1].
            MoaError: What it raises itself, such as a budget that is reached.
        """
        try:
            value = self.metric(example, prediction, *rest[: self.arity - 2])
            score = score_of(value)
        except MoaError:
            raise
        except Exception as error:
            raise MetricError(
                f"The metric raised {type(error).__name__} on example {example.get('id')!r}: "
                f"{error}"
            ) from error
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise MetricError(
                f"The metric must return a number in [0, 1], but gave {score} on "
                f"{example.get('id')!r}."
            )
        return value

    def score(self, example: Any, prediction: Any, *rest: Any) -> float:
        """Return the number alone; raises as ``value`` does."""
        return score_of(self.value(example, prediction, *rest))


def score_of(value: Any) -> float:
    """Return the number in a metric's value."""
    return float(value.score if hasattr(value, "score") else value)


def _arity(metric: Any) -> int:
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


@dataclass(slots=True)
class PreferenceMetric:
    """A judge as a DSPy metric, for the tuning of prompts: the preference over the reference.

    Attributes:
        preference: Of the judge: takes an example, an answer and ``agents``.
        agents: Give the answers of the reference; None before the search has begun.
    """

    preference: Callable[[Any, Any, Any], float]
    agents: Any = None

    def __call__(
        self,
        example: Any,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> float:
        """Return a number in [0, 1]; where demonstrations are collected, 1 for a win, else 0."""
        value = self.preference(example, prediction, self.agents)
        is_collecting = trace is not None and pred_name is None
        return float(value > 0.5) if is_collecting else value

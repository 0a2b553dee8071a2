"""The module that an optimizer compiles: the aggregator alone, over stored references."""

# DOCS: optimize/prompts/_metric: The user's metric, asked with as many arguments as it takes, and its errors kept in sight.

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dspy

from moa_dspy.calls import call_scope
from moa_dspy.errors import LayerFailedError, MetricError, MoaError, StudyError, ours
from moa_dspy.lm_binding import without_lms
from moa_dspy.optimize.prompts.references import (
    CallCounter,
    StoredReferences,
    Target,
    continue_plan,
    seat,
    stored,
)
from moa_dspy.plan import Planner
from moa_dspy.seats import Seats


class NoAnswer(dspy.Prediction):
    """An empty prediction: the aggregator failed, for the reason given."""

    def __init__(self, reason: str = "") -> None:
        super().__init__()
        self._reason = reason

    @property
    def reason(self) -> str:
        """Error type and message."""
        return self._reason


@dataclass(slots=True)
class Stop:
    """The first error that no prompt can mend: optimizers take errors for bad scores."""

    error: MoaError | None = None

    def note(self, error: MoaError) -> MoaError:
        """Keep the first error; return it."""
        self.error = self.error or error
        return self.error

    def check(self) -> None:
        """Raise it again, if there is one."""
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class ReferenceReader:
    """Lets an agent read stored references, with the messages that the mixture would send.

    Attributes:
        target: Whose prompt it is.
        bank: The references.
        tally: Counts the calls.
        stop: What ends all.
    """

    target: Target
    bank: StoredReferences
    tally: CallCounter
    stop: Stop = field(default_factory=Stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceReader:
        return self

    def answer(self, module: Any, inputs: Mapping[str, Any]) -> dspy.Prediction:
        """Answer one row; a model that fails gives a ``NoAnswer``.

        Raises:
            MoaError: If a call cannot be made: budget, replay, store; and ever after.
        """
        self.stop.check()
        try:
            found = stored(self.bank, inputs)
            planner = replace(self._planner(found.number), aggregator=module)
            seats = Seats(planner.pool, planner.rules.adapter)
            with call_scope(example=found.row.id), seat() as scope:
                try:
                    plan = planner.plan(found.row.inputs().toDict())
                    answer = continue_plan(plan, found.rounds, seats.ask_all)
                finally:
                    self.tally.add("aggregator", scope.log)
        except LayerFailedError as error:
            return NoAnswer(str(error))
        except Exception as error:
            if cause := ours(error):
                raise self.stop.note(cause) from None
            raise
        return dspy.Prediction(**answer.final.values)

    def _planner(self, number: int) -> Planner:
        """Return who answers the row of this number: several readers take turns."""
        planners = self.target.planners
        return planners[number % len(planners)]


class AggregatorStudent(dspy.Module):
    """Reads a question and other models' responses to it (references), and answers."""

    def __init__(self, aggregator: Any, reading: ReferenceReader) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.reading = reading

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return self.reading.answer(self.aggregator, inputs)

    def get_lm(self) -> Any:
        """Return the LM of the agent, whatever an optimizer has reset."""
        return self.reading.target.program.pool.lm(self.reading.target.agents[0])

    def deepcopy(self) -> Any:
        """Copy, with signatures of its own: InferRules writes into them."""
        made: Any = super().deepcopy()
        for predictor in made.predictors():
            signature = predictor.signature
            predictor.signature = signature.with_instructions(signature.instructions)
        return made


def make_student(reading: ReferenceReader, *, with_lm: bool = False) -> AggregatorStudent:
    """Return a student with the target's own prompt; the mixture's modules are not touched.

    Args:
        reading: What it reads.
        with_lm: Whether its predictors show the agent's LM, as BetterTogether asks for.
    """
    module = reading.target.modules[0]
    leaves = module.predictors() if hasattr(module, "predictors") else []
    lms = [leaf.lm for leaf in leaves if getattr(leaf, "lm", None) is not None]
    plain = without_lms(module, lms) if lms else copy.deepcopy(module)
    student: AggregatorStudent = AggregatorStudent(plain, reading).deepcopy()
    if with_lm:
        student.set_lm(student.get_lm())
    return student


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

"""The module that an optimizer compiles: the aggregator alone, over stored references."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from moa_dspy.calls import call_scope
from moa_dspy.errors import LayerFailedError, MoaError, ours
from moa_dspy.optimize.prompts._bank import Bank, continue_plan, stored
from moa_dspy.optimize.prompts._tally import Tally, seat
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.plan import Planner
from moa_dspy.seats import Seats, without_lms


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
class Reading:
    """Lets an agent read stored references, with the messages that the mixture would send.

    Attributes:
        target: Whose prompt it is.
        bank: The references.
        tally: Counts the calls.
        stop: What ends all.
    """

    target: Target
    bank: Bank
    tally: Tally
    stop: Stop = field(default_factory=Stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
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

    def __init__(self, aggregator: Any, reading: Reading) -> None:
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


def make_student(reading: Reading, *, with_lm: bool = False) -> AggregatorStudent:
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

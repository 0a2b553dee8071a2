"""Whether a new prompt is better than the old one, on rows that nobody tuned it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy

from moa_dspy.calls import call_scope
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._bank import Bank, StoredRow, continue_plan, in_threads
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._tally import Tally, seat
from moa_dspy.winrate import Interval, mean_interval, verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """The new prompt against the incumbent, row by row.

    Attributes:
        n: Rows.
        before: Mean score of the incumbent with a 95 % interval.
        after: Of the new prompt.
        difference: Paired interval of mean(after - before).
        p_value: One-sided, for after > before.
        n_more: Rows that would be needed beside these to see the gain; 0 if all is known.
        is_proven: Whether the new prompt is better at the level that was asked for.
    """

    n: int
    before: Interval
    after: Interval
    difference: Interval
    p_value: float
    n_more: int
    is_proven: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def compare(
    before: Sequence[float], after: Sequence[float], *, alpha: float, gain: float
) -> Comparison:
    """Test the new prompt once.

    Args:
        before: Scores of the incumbent in [0, 1].
        after: Of the new prompt on the same rows.
        alpha: Level of the one-sided paired test.
        gain: Smallest gain worth having, for the number of rows that are missing.
    """
    found = verdict(after, before, pick_is_single=False, alpha=alpha, gain=gain)
    return Comparison(
        n=found.n,
        before=mean_interval(before),
        after=mean_interval(after),
        difference=found.interval,
        p_value=1.0 if found.p_value is None else found.p_value,
        n_more=found.n_more,
        is_proven=found.kind == "mixture",
    )


def score_program(
    program: MixtureOfAgents, bank: Bank, scoring: Scoring, tally: Tally, *, n_threads: int
) -> list[float]:
    """Return the metric of the mixture's own answer to every row of the bank, in order.

    Only who reads the stored references is asked, and who reads those. A row without an
    answer scores 0.

    Raises:
        MetricError: If the metric raises or returns no number in [0, 1].
        MoaError: If a call cannot be made for a reason that is not the model's.
    """

    def score(found: StoredRow) -> float:
        with call_scope(example=found.row.id), seat() as scope:
            try:
                plan = program.plan(found.row.inputs().toDict())
                answer = continue_plan(plan, found.rounds, program.seats.ask_all)
            except LayerFailedError:
                return 0.0
            finally:
                tally.add("aggregator", scope.log)
        return scoring.score(found.row, dspy.Prediction(**answer.final.values))

    return in_threads(score, list(bank.rows.values()), n_threads)

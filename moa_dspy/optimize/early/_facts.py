"""What the single agents' answers tell a user before more money is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.early._ceiling import vote_ceiling
from moa_dspy.optimize.votes import Ballots
from moa_dspy.winrate import Interval, co_failure, oracle, simultaneous_intervals

SOLVED = 0.5
"""A row counts as solved from this score on, as in ``co_failure``."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the whole study is expected to take, the single agents on val included.

    Attributes:
        calls: Requests to models.
        usd: At the prices of the pool.
        seconds: Wall time.
        capped_by: The limit of the budget that ends the study before, or None.
    """

    calls: float
    usd: float
    seconds: float
    capped_by: str | None = None


@dataclass(frozen=True, slots=True)
class EarlyFacts:
    """What the single agents alone tell of every mixture of them, on the rows of val.

    Attributes:
        n_rows: Rows measured.
        leader: The best single agent.
        leader_score: Its mean score, in [0, 1].
        unsolved: Share of rows on which every agent scores below 0.5, with a 95 % interval.
        ceiling: Mean score of the best agent of each row: no choice among their answers
            beats it.
        vote_ceiling: No vote of one set of agents, a sample each and as many as the space
            allows, beats it; None where no vote may be tried or answers are no ballots.
        rival: The agent that comes closest to the leader; None in a pool of one.
        lead: Leader minus rival, paired; 95 % for the leads over all agents at once, so that
            of no other agent is the lower end smaller.
        rescued: Share of rows that the leader misses and another agent solves.
        estimate: What the whole study will take; None where it was not computed.
    """

    n_rows: int
    leader: str
    leader_score: float
    unsolved: Interval
    ceiling: float
    vote_ceiling: float | None = None
    rival: str | None = None
    lead: Interval | None = None
    rescued: float = 0.0
    estimate: Estimate | None = None

    @property
    def is_dominated(self) -> bool:
        """Whether the leader is clearly above every other agent."""
        return self.lead is not None and self.lead.low > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EarlyFacts:
        """Return the facts whose ``to_json`` was ``content``."""
        plain = dict(content)
        lead, estimate = plain.pop("lead"), plain.pop("estimate")
        return cls(
            unsolved=Interval(**plain.pop("unsolved")),
            **plain,
            lead=None if lead is None else Interval(**lead),
            estimate=None if estimate is None else Estimate(**estimate),
        )


def early_facts(
    scores: Mapping[str, Sequence[float] | NDArray[np.float64]],
    *,
    ballots: Ballots | None = None,
    max_width: int = 1,
    estimate: Estimate | None = None,
) -> EarlyFacts:
    """Return what the scores of single agents on the same rows tell of mixtures of them.

    Args:
        scores: In [0, 1] per row, by agent, at least one row.
        ballots: What a vote would count; None where none may be tried.
        max_width: Most members of a vote.
        estimate: What the whole study will take.

    Raises:
        MetricError: no agent, no row, or rows that differ.
    """
    best = oracle(scores)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    leader = max(means, key=lambda name: round(means[name], 12))
    mine = np.asarray(scores[leader], np.float64)
    leads = simultaneous_intervals(mine, {n: s for n, s in scores.items() if n != leader})
    rival = min(leads, key=lambda name: leads[name].low) if leads else None
    return EarlyFacts(
        n_rows=best.size,
        leader=leader,
        leader_score=means[leader],
        unsolved=co_failure(scores, threshold=SOLVED),
        ceiling=float(best.mean()),
        vote_ceiling=None if ballots is None else vote_ceiling(ballots, max_width=max_width),
        rival=rival,
        lead=None if rival is None else leads[rival],
        rescued=float(((mine < SOLVED) & (best >= SOLVED)).mean()),
        estimate=estimate,
    )

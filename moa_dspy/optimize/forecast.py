"""What a study will take, from what its single agents took."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Final

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.optimize.baselines import SELF_MOA_SAMPLES
from moa_dspy.optimize.early import Estimate
from moa_dspy.optimize.measure import Outcome
from moa_dspy.optimize.space import SearchSpace

N_DRAWS: Final = 200
"""Architectures drawn to see what one costs; their mean is then known to a few percent."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one question: calls, tokens, usd, and seconds to the answer."""

    calls: float = 0.0
    tokens: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __mul__(self, n: float) -> Cost:
        return Cost(*(n * value for value in _values(self)))

    @classmethod
    def mean(cls, costs: Sequence[Cost]) -> Cost:
        """Return the mean; nothing costs nothing."""
        return cls(*map(fmean, zip(*map(_values, costs), strict=True))) if costs else cls()


def forecast(
    singles: Mapping[str, Sequence[Outcome]],
    space: SearchSpace,
    *,
    n_trials: int,
    n_test: int,
    n_threads: int,
    budget: Budget | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate what the whole study takes, the single agents on val included.

    Architectures drawn from the space stand for those that will be tried, in the search and
    in the random baseline, on every row of val. An answer that a single agent gave is stored,
    so that a vote of different agents is free. A seat that reads answers of others is counted
    as the same agent alone, though its prompt is longer; losers that are stopped early, and
    answers that architectures share, make a study cheaper.

    Args:
        singles: Outcomes of each agent alone, on val.
        space: What may be tried.
        n_trials: Most architectures measured on val, single agents included.
        n_test: Test rows.
        n_threads: Questions answered at the same time; it divides the time.
        budget: What ends the study before; then the estimate is what it takes until there.
        seed: Of the draws.
    """
    alone = {name: _mean_cost(outcomes) for name, outcomes in singles.items()}
    n_val = len(next(iter(singles.values())))
    rng = random.Random(f"forecast-{seed}")
    fresh = Cost.mean([_fresh(space.draw(rng), alone) for _ in range(N_DRAWS)])
    agents = sum(alone.values(), Cost())
    # The baseline draws as many as the search measured.
    n_searched = max(0, n_trials - len(alone)) + n_trials
    # Besides the agents: the pick, the best random one, and the further samples of Self-MoA.
    rivals = fresh * 2 + Cost.mean(list(alone.values())) * (SELF_MOA_SAMPLES - 1)
    whole = agents * n_val + fresh * (n_searched * n_val) + (agents + rivals) * n_test
    whole = Cost(whole.calls, whole.tokens, whole.usd, whole.seconds / n_threads)
    return _within(whole, budget or Budget())


def _within(whole: Cost, budget: Budget) -> Estimate:
    """Cut ``whole`` where the first limit of ``budget`` is reached."""
    shares = {
        f.name: limit / needed
        for f in fields(Cost)
        if (limit := getattr(budget, f.name)) is not None and (needed := getattr(whole, f.name)) > 0
    }
    first = min(shares, key=lambda name: shares[name], default=None)
    capped_by = first if first is not None and shares[first] < 1 else None
    cut = whole * shares[capped_by] if capped_by is not None else whole
    return Estimate(round(cut.calls), cut.usd, cut.seconds, capped_by)


def _mean_cost(outcomes: Sequence[Outcome]) -> Cost:
    return Cost.mean([Cost(o.calls, o.tokens, o.usd, o.seconds) for o in outcomes])


def _fresh(architecture: Architecture, alone: Mapping[str, Cost]) -> Cost:
    """Return what ``architecture`` asks beyond the first answer of each agent alone."""
    if not architecture.layers:
        return Cost()
    layers = [list(layer) for layer in architecture.layers]
    for name in set(layers[0]):
        pass
    if architecture.aggregator_calls_a_model:
        layers.append([str(architecture.aggregator)])
    found = Cost()
    for layer in layers:
        asked = [alone[name] for name in layer]
        total = sum(asked, Cost())
        # Proposers of a layer are asked at once.
        slowest = max((cost.seconds for cost in asked), default=0.0)
        found += Cost(total.calls, total.tokens, total.usd, slowest)
    return found


def _values(cost: Cost) -> tuple[float, ...]:
    return (cost.calls, cost.tokens, cost.usd, cost.seconds)

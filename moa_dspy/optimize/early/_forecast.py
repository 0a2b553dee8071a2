"""What a study will take, from what its single agents took."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Final

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.optimize.baselines import SELF_MOA_SAMPLES
from moa_dspy.optimize.early._facts import Estimate
from moa_dspy.optimize.outcome import Outcome
from moa_dspy.optimize.space import SearchSpace

MOST_DRAWN: Final = 300
"""Architectures drawn at most to see what they ask; of more, each is taken to ask as much."""
MOST_REPEATS: Final = 50
"""Known architectures in a row after which all are known."""


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
    in the random baseline, on every row of val. What two of them ask alike is asked once, and
    what a single agent answered is stored, so that a vote of different agents is free.
    Losers that are stopped early make a study cheaper than this. A seat that reads answers
    of others is taken to cost what its agent costs alone, though its prompt is longer.

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
    n_measured = n_trials if space.size is None else min(n_trials, space.size)
    # The baseline draws as many as the search measured.
    searched, each = _searched(space, alone, n=2 * n_measured - len(alone), seed=seed)
    agents = sum(alone.values(), Cost())
    # Besides the agents: the pick, the best random one, and the further samples of Self-MoA.
    rivals = each * 2 + agents * ((SELF_MOA_SAMPLES - 1) / len(alone))
    whole = (agents + searched) * n_val + (agents + rivals) * n_test
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
    rows = [(o.calls, o.tokens, o.usd, o.seconds) for o in outcomes]
    return Cost(*map(fmean, zip(*rows, strict=True)))


def _searched(
    space: SearchSpace, alone: Mapping[str, Cost], *, n: int, seed: int
) -> tuple[Cost, Cost]:
    """Return what ``n`` drawn architectures ask of one row beyond the singles, and a mean one."""
    rng = random.Random(f"forecast-{seed}")
    asked: set[Hashable] = {_node((), name, 0) for name in alone}
    known: set[Architecture] = set()
    total, lonely, repeats = Cost(), Cost(), 0
    while len(known) < min(n, MOST_DRAWN) and repeats < MOST_REPEATS:
        drawn = space.draw(rng)
        repeats = repeats + 1 if drawn in known or not drawn.layers else 0
        if repeats == 0:
            known.add(drawn)
            total += _fresh(drawn, alone, asked)
            lonely += _fresh(drawn, alone, {_node((), name, 0) for name in alone})
    n_drawn = max(1, len(known))
    scale = n / n_drawn if len(known) == MOST_DRAWN else 1.0
    return total * scale, lonely * (1 / n_drawn)


def _fresh(architecture: Architecture, alone: Mapping[str, Cost], asked: set[Hashable]) -> Cost:
    """Return what ``architecture`` asks that was not ``asked`` before, and note it there."""
    found = Cost()
    steps = [
        [
            (name, _node(architecture.layers[:at], name, layer[:seat].count(name)))
            for seat, name in enumerate(layer)
        ]
        for at, layer in enumerate(architecture.layers)
    ]
    if architecture.aggregator_calls_a_model:
        steps.append([(str(architecture.aggregator), architecture)])
    for step in steps:
        costs = [alone[name] for name, node in step if node not in asked]
        asked.update(node for _, node in step)
        total = sum(costs, Cost())
        # Proposers of a layer are asked at once.
        slowest = max((cost.seconds for cost in costs), default=0.0)
        found += Cost(total.calls, total.tokens, total.usd, slowest)
    return found


def _node(before: tuple[tuple[str, ...], ...], name: str, sample: int) -> Hashable:
    """Return what is equal for two seats that are asked the same."""
    return (before, name, sample)


def _values(cost: Cost) -> tuple[float, ...]:
    return (cost.calls, cost.tokens, cost.usd, cost.seconds)

"""What stands beside the pick: Self-MoA, top-k, and a random search of equal size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.errors import BudgetReachedError
from moa_dspy.optimize.baselines import TOP_K, self_moa, top_k, way
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.racing import Referee
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import best_on_val
from moa_dspy.optimize.space import SearchSpace

MOST_REPEATS = 200
"""Known architectures in a row after which the space counts as drawn empty."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A system of the comparison; without an architecture it was not run, for the reason given."""

    name: str
    architecture: Architecture | None
    note: str = ""


def own_prompt(chosen: Architecture) -> list[Rival]:
    """Return the pick without the prompt that the search gave it; nothing if it gave none."""
    if chosen.prompt is None:
        return []
    return [Rival("own_prompt", replace(chosen, prompt=None), "the pick with its own prompt")]


def fixed_rivals(context: SearchContext, ranking: Sequence[str]) -> list[Rival]:
    """Return Self-MoA and top-k, or why they cannot be run."""
    combine = way(context.space)
    samples = self_moa(ranking, context.pool, combine=combine)
    found = [
        Rival("self_moa", samples)
        if samples
        else Rival("self_moa", None, f"{ranking[0]} is greedy: its samples are copies")
    ]
    k = min(TOP_K, len(ranking))
    several = [Rival("top_k", top_k(ranking, k, combine=combine), f"k = {k}")]
    return found + (several if k > 1 else [Rival("top_k", None, "the pool has one agent")])


def random_rival(
    context: SearchContext,
    referee: Referee,
    *,
    n: int,
    settle: Callable[[Architecture], Architecture],
) -> tuple[Rival, int]:
    """Return the best on val of ``n`` random architectures, and how many could be measured.

    It gets as many trials as the search had. Live, its calls come from the share of
    the budget kept for it; what that share did not reach is said.
    """
    drawn: list[TrialRecord] = []
    context.pool.calls.ledger.share += context.random_share
    architectures = list(islice(random_draws(context.space, settle, context.seed), n))
    if context.pool.calls.ledger.budget == Budget():
        referee.announce(architectures)
    for architecture in architectures:
        context.show("random baseline", current=str(architecture), trial=len(drawn))
        try:
            drawn.append(referee.judge(architecture, "random", number=len(drawn)))
        except BudgetReachedError:
            break
    limits = context.limits
    fair = [r for r in drawn if not r.is_stopped_early and limits.admit(r)]
    if not fair:
        note = "its share of the budget did not reach one trial"
        return Rival("random", None, note), len(drawn)
    best = best_on_val(fair, diversity_weight=context.diversity_weight)
    note = f"best of {len(drawn)} random architectures"
    return Rival("random", Architecture.parse(best.architecture), note), len(drawn)


def random_draws(
    space: SearchSpace, settle: Callable[[Architecture], Architecture], seed: int
) -> Iterator[Architecture]:
    """Yield the architectures of the random baseline, each once, always in the same order."""
    rng = random.Random(f"random-{seed}")
    seen: set[Architecture] = set()
    repeats = 0
    while repeats < MOST_REPEATS:
        architecture = settle(space.draw(rng))
        repeats = repeats + 1 if architecture in seen else 0
        if repeats == 0:
            seen.add(architecture)
            yield architecture

"""Costs foretold from the single agents' costs: of an architecture and of the whole study.

Also the baselines that stand beside every pick, as architectures of the same pool.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from statistics import fmean
from typing import Final

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget
from moa_dspy.optimize.early_facts import Cost, StudyEstimate
from moa_dspy.optimize.nodes import Outcome
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.space.programs import ProgramArchitecture
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool

COSTS: Final = ("usd", "seconds", "calls")
"""Objectives that have a price."""
MOST_PER_COST: Final = 0.2
"""Points of score that the dearest single agent's cost is worth at most: beyond that only single
agents would be proposed, and these are all measured at first."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected cost of architectures per question, from what the single agents cost.

    A seat is taken to cost what its agent costs alone: what it reads besides is not known yet.

    Attributes:
        usd: Mean of each agent alone.
        seconds: Mean of each agent alone.
    """

    usd: Mapping[str, float]
    seconds: Mapping[str, float]

    def of_part(self, n: int) -> Forecast:
        """Return the forecast of one of ``n`` mixtures, if each costs an equal part of these."""
        usd = {name: cost / n for name, cost in self.usd.items()}
        return Forecast(usd, {name: cost / n for name, cost in self.seconds.items()})

    def costs(self, one: Architecture) -> dict[str, float]:
        """Return usd, seconds and calls; of seconds the critical path.

        The slowest proposer of each layer, then who does the last step.
        """
        layers = [*one.layers, *one.last_rounds]
        return {
            "usd": sum(self.usd[name] for layer in layers for name in layer),
            "seconds": sum(max(self.seconds[name] for name in layer) for layer in layers),
            "calls": float(sum(map(len, layers))),
        }


@dataclass(frozen=True, slots=True)
class Prices:
    """Weighs costs against the score, otherwise for each proposal: a random scalarisation.

    Every weight is a point of the trade-off, so proposals spread along it (Knowles 2006, ParEGO;
    Paria et al. 2020). A third of proposals look at the score alone: its best is what is picked.

    Args:
        forecast: Of costs.
        objectives: Names of the study's objectives; those without a cost are passed over.
        seed: Of the weights.
    """

    forecast: Forecast
    objectives: Sequence[str]
    seed: int

    def at(self, n_measured: int) -> Callable[[Architecture], float]:
        """Return the price of an architecture for the proposal after so many were measured."""
        counted = [name for name in COSTS if name in self.objectives]
        if not counted or n_measured % 3 == 0:
            return _free
        rng = random.Random(f"prices-{self.seed}-{n_measured}")
        # Of the square of a uniform number half lies below a quarter: cheap ones are few.
        weights = {name: MOST_PER_COST * rng.random() ** 2 / len(counted) for name in counted}
        dearest = self._dearest_singles()

        def price(one: Architecture) -> float:
            costs = self.forecast.costs(one)
            return sum(weight * costs[name] / dearest[name] for name, weight in weights.items())

        return price

    def _dearest_singles(self) -> dict[str, float]:
        return {
            "usd": max(self.forecast.usd.values(), default=0.0) or 1.0,
            "seconds": max(self.forecast.seconds.values(), default=0.0) or 1.0,
            "calls": 1.0,
        }


def _free(_: Architecture) -> float:
    return 0.0


SELF_MOA_SAMPLES = 3
"""Of the mixture that every study tries; on test there are as many as the pick makes calls."""
TOP_K = 3


def top_k(ranking: Sequence[str], k: int, *, combine: str = "vote") -> Architecture:
    """Return the ``k`` best single agents together; the best one decides ties, or synthesizes."""
    return Architecture((tuple(ranking[:k]),), ranking[0], combine).canonical


def self_moa_of(
    ranking: Sequence[str], pool: Pool, *, combine: str = "vote", n: int = SELF_MOA_SAMPLES
) -> Architecture | None:
    """Return ``n`` samples of the best agent (arXiv:2502.00674); None if they are copies.

    A greedy agent gives one answer however often it is asked; the same model under
    another name with a temperature stands in for it.
    """
    best = pool[ranking[0]]
    twins = [name for name in ranking if pool[name].identity == best.identity]
    # Without a temperature of its own an agent samples at its vendor's.
    sampled = [name for name in twins if pool[name].temperature != 0]
    if not sampled:
        return None
    return Architecture(((sampled[0],) * n,), sampled[0], combine)


def baseline_combine(space: SearchSpace) -> str:
    """Return how the baselines combine: a vote where answers can be equal, else the paper's."""
    return "vote" if "vote" in space.combines else "synthesize"


def baseline_architectures(
    ranking: Sequence[str], pool: Pool, space: SearchSpace
) -> list[Architecture]:
    """Return what every study tries first: Self-MoA, each top-k, and the paper's full layers."""
    combine = baseline_combine(space)
    widest = min(space.max_width, len(ranking))
    found = [top_k(ranking, k, combine=combine) for k in range(2, widest + 1)]
    if (samples := self_moa_of(ranking, pool, combine=combine)) is not None:
        found.insert(0, samples)
    if "synthesize" in space.combines:
        layer = tuple(sorted(ranking[:widest]))
        found += [
            Architecture((layer,) * depth, ranking[0]) for depth in range(1, space.max_depth + 1)
        ]
    return found


_EMPTY: Final = 200
"""Known architectures in a row after which the space counts as drawn empty."""


def random_draws(
    space: SearchSpace, canonical: Callable[[Architecture], Architecture], seed: int
) -> Iterator[Architecture]:
    """Yield the architectures of the random baseline, each once, always in the same order."""
    rng = random.Random(f"random-{seed}")
    seen: set[Architecture] = set()
    repeats = 0
    while repeats < _EMPTY:
        architecture = canonical(space.draw(rng))
        repeats = repeats + 1 if architecture in seen else 0
        if repeats == 0:
            seen.add(architecture)
            yield architecture


MOST_DRAWN: Final = 300
"""Architectures drawn at most to see what they ask; of more, each is taken to ask as much."""
_GROUPS_DRAWN: Final = 20
"""Draws of the mixtures whose prompt is tuned, over which their cost is averaged."""
_N_JUDGED_ON_TEST: Final = 5
"""The pick, Self-MoA, top-k and the random one, and the pick against the best single directly."""
_MOST_REPEATS: Final = 50
"""Known architectures in a row after which all are known."""


def forecast(
    singles: Mapping[str, Sequence[Outcome]],
    space: SearchSpace,
    *,
    n_trials: int,
    n_test: int,
    num_threads: int,
    budget: Budget | None = None,
    effort: TuningEffort | None = None,
    judged: Cost | None = None,
    seed: int = 0,
) -> StudyEstimate:
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
        num_threads: Questions answered at the same time; it divides the time.
        budget: What may end the study before: the estimate says which limit, and after how much.
        effort: Of tuning prompts; None where a search has no prompts.
        judged: Cost of one comparison of two answers; None without a judge.
        seed: Of the draws.
    """
    alone = {name: _mean_cost(outcomes) for name, outcomes in singles.items()}
    stages = stage_costs(
        alone,
        space,
        n_trials=n_trials,
        n_val=len(next(iter(singles.values()))),
        n_test=n_test,
        effort=effort,
        judged=judged,
        seed=seed,
    )
    whole = sum(stages.values(), Cost())
    whole = Cost(whole.calls, whole.tokens, whole.usd, whole.seconds / num_threads)
    judging = stages.get("judge", Cost())
    return replace(_within(whole, budget or Budget()), judge_calls=round(judging.calls))


def stage_costs(
    alone: Mapping[str, Cost],
    space: SearchSpace,
    *,
    n_trials: int,
    n_val: int,
    n_test: int,
    effort: TuningEffort | None = None,
    judged: Cost | None = None,
    seed: int = 0,
    reading: Mapping[str, Cost] | None = None,
) -> dict[str, Cost]:
    """Return the cost of each stage of a search, in the order in which they run.

    Args:
        alone: Cost of a question to each agent alone.
        space: As of ``forecast``, like the others.
        n_trials: Most architectures measured on val, single agents included.
        n_val: Val rows.
        n_test: Test rows.
        effort: Of tuning prompts, or None.
        judged: Cost of one comparison of two answers, or None.
        seed: Of the draws.
        reading: Cost of each reference that an agent reads; None is not counted.
    """
    n_measured = n_trials if space.size is None else min(n_trials, space.size)
    n_searched = max(0, n_measured - len(alone))
    # The baseline draws as many as the search measured.
    searched, random_ones, each = _searched(
        space, alone, n=n_searched, n_random=n_measured, seed=seed, reading=reading or {}
    )
    agents = sum(alone.values(), Cost())
    # Besides the agents: the pick, the best random one, and the further samples of Self-MoA.
    compared = each * 2 + agents * ((SELF_MOA_SAMPLES - 1) / len(alone))
    stages = {"single agents": agents * n_val, "search": searched * n_val}
    if effort is not None:
        stages["prompts"] = _tuning(space, alone, effort, seed=seed)
        # On test a picked prompt stands beside the aggregator's own.
        compared += each
    stages["random baseline"] = random_ones * n_val
    stages["test"] = (agents + compared) * n_test
    if judged is not None:
        # On val each trial, here and in the baseline; on test singles, pick, baselines, verdict.
        n_judged = n_val * 2 * n_measured + n_test * (len(alone) + _N_JUDGED_ON_TEST)
        stages["judge"] = judged * n_judged
    return stages


def _tuning(
    space: SearchSpace, alone: Mapping[str, Cost], effort: TuningEffort, *, seed: int
) -> Cost:
    """Return the cost of tuning: references and answers on train rows, and written prompts.

    A written prompt is taken to cost what an answer of its writer costs, or of a mean agent.
    """
    rng, found = random.Random(f"tuning-{seed}"), Cost()
    for _ in range(_GROUPS_DRAWN if effort.mixtures else 0):
        asked: set[Hashable] = set()
        drawn = (space.draw(rng) for _ in range(_MOST_REPEATS * effort.mixtures))
        tuned = (one for one in drawn if one.layers and one.combine == "synthesize")
        for one in islice(tuned, effort.mixtures):
            one = replace(one, prompt=None)
            # References that two mixtures share are asked for once, an aggregator for each.
            asked.discard(one)
            found += _fresh(one, alone, asked, {})
            found += alone[str(one.aggregator)] * (effort.answers_per_row - 1)
    mean = sum(alone.values(), Cost()) * (1 / len(alone))
    writing = alone.get(effort.writer or "", mean) * (effort.written * effort.mixtures)
    return found * (effort.rows / _GROUPS_DRAWN) + writing


def _within(whole: Cost, budget: Budget) -> StudyEstimate:
    """Say which limit of ``budget`` is reached first, if any."""
    limits = {f.name: getattr(budget, f.name) for f in fields(Cost)}
    shares = {
        name: limit / needed
        for name, limit in limits.items()
        if limit is not None and (needed := getattr(whole, name)) > 0
    }
    first = min(shares, key=lambda name: shares[name], default=None)
    found = StudyEstimate(round(whole.calls), whole.usd, whole.seconds)
    if first is None or shares[first] >= 1:
        return found
    return replace(found, capped_by=first, ceiling=float(limits[first]), share=shares[first])


def _mean_cost(outcomes: Sequence[Outcome]) -> Cost:
    rows = [(o.calls, o.tokens, o.usd, o.seconds) for o in outcomes]
    return Cost(*map(fmean, zip(*rows, strict=True)))


def _searched(
    space: SearchSpace,
    alone: Mapping[str, Cost],
    *,
    n: int,
    n_random: int,
    seed: int,
    reading: Mapping[str, Cost],
) -> tuple[Cost, Cost, Cost]:
    """Return what drawn architectures ask of one row beyond the single agents.

    Of ``n`` for the search, then of ``n_random`` more for the random baseline, and a mean one.
    """
    rng = random.Random(f"forecast-{seed}")
    asked: set[Hashable] = {_node((), name, 0) for name in alone}
    known: set[Architecture] = set()
    fresh: list[Cost] = []
    separate, repeats, n_all = Cost(), 0, n + n_random
    while len(known) < min(n_all, MOST_DRAWN) and repeats < _MOST_REPEATS:
        drawn = space.draw(rng)
        repeats = repeats + 1 if drawn in known or not drawn.layers else 0
        if repeats == 0:
            known.add(drawn)
            fresh.append(_fresh(drawn, alone, asked, reading))
            separate += _fresh(drawn, alone, {_node((), name, 0) for name in alone}, reading)
    n_drawn = max(1, len(known))
    scale = n_all / n_drawn if len(known) == MOST_DRAWN else 1.0
    first = round(n / scale)
    searched, random_ones = sum(fresh[:first], Cost()), sum(fresh[first:], Cost())
    return searched * scale, random_ones * scale, separate * (1 / n_drawn)


def _fresh(
    architecture: Architecture,
    alone: Mapping[str, Cost],
    asked: set[Hashable],
    reading: Mapping[str, Cost],
    before: Hashable = (),
) -> Cost:
    """Return what ``architecture`` asks that was not ``asked`` before, and note it there.

    A mixture of a program is taken to read what those ``before`` it answered, and an agent to
    cost in it an equal part of what it costs in all.
    """
    found = Cost()
    if isinstance(architecture, ProgramArchitecture):
        parts = architecture.parts
        share = {name: cost * (1 / len(parts)) for name, cost in alone.items()}
        for place, (_, one) in enumerate(parts):
            found += _fresh(one, share, asked, reading, parts[:place])
        return found
    steps = [
        [
            (name, _node(architecture.layers[:at], name, layer[:seat].count(name), before))
            for seat, name in enumerate(layer)
        ]
        for at, layer in enumerate(architecture.layers)
    ]
    for at, names in enumerate(architecture.last_rounds):
        is_alone = not architecture.layers
        nodes = [
            (name, _node((), name, 0, before) if is_alone else (architecture, at, seat, before))
            for seat, name in enumerate(names)
        ]
        steps.append(nodes)
    for depth, step in enumerate(steps):
        # All rounds of a last step read the last layer.
        n_read = len(architecture.layers[min(depth, architecture.depth) - 1]) if depth else 0
        costs = [
            alone[name] + reading.get(name, Cost()) * n_read
            for name, node in step
            if node not in asked
        ]
        asked.update(node for _, node in step)
        total = sum(costs, Cost())
        # Proposers of a layer are asked at once.
        slowest = max((cost.seconds for cost in costs), default=0.0)
        found += Cost(total.calls, total.tokens, total.usd, slowest)
    return found


def _node(
    read: tuple[tuple[str, ...], ...], name: str, sample: int, before: Hashable = ()
) -> Hashable:
    """Return what is equal for two seats that are asked the same."""
    return (read, name, sample, before)

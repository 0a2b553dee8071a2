"""Verdicts on a pick: better than the best single model, or as good for less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Final, Literal, TypeAlias

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import Interval, Scores, Vector, check_share, paired_vectors
from moa_dspy.winrate.tests import (
    check_level,
    decision_interval,
    examples_needed,
    holm,
    holm_levels,
    non_inferiority_p,
    power_of,
    sign_flip_mid_p,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The advice to use the mixture or not, the numbers behind it, and one sentence with both."""

    kind: Literal["mixture", "single", "not_enough_examples", "judge_cannot_tell"]
    p_value: float | None
    """One-sided mid-p for "the pick is better"; None where the pick is a single model, untested."""
    interval: Interval
    """Of mean(pick - single), at confidence 1 - 2 alpha: above 0 if and only if p <= alpha."""
    n: int
    """Number of examples; includes those of val, each of which counts as 0.4 of an example."""
    n_more: int
    """Examples still needed; 0 where the answer is known, or more examples would not help."""
    text: str

    def by_chance(self, reason: str) -> Verdict:
        """Return the verdict of a judge whose preferences may be chance.

        Args:
            reason: The numbers that show it.
        """
        text = (
            f"The judge cannot tell better answers from worse ones: {reason} So its preferences "
            "neither show a gain nor exclude one. Ask a stronger judge."
        )
        return replace(self, kind="judge_cannot_tell", n_more=0, text=text)


COUNTED: Final = 0.4
"""Weight of a cross-fitted example, where a new one has 1.

Folds share most of the rows that they choose by, so the chance that decides a choice affects the
scores of all folds. Where the choice is stable this adds nothing; where many systems tie, the
variance of the sum is up to three times that of new examples. With this weight a test at 5 %
stays below 6 %, whatever ties (``tests/bench/simulated_cross_fitting.py``).
"""
CrossFitted = tuple[Scores, Scores]
"""Scores of the pick and of the single model per val example, each chosen without it."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The examples of a comparison and their weights; None where each has weight 1."""

    pick: Vector
    single: Vector
    counts: Vector | None = None
    n_val: int = 0

    @classmethod
    def of(
        cls, pick: Scores, single: Scores, val: CrossFitted | None, *, names: tuple[str, str]
    ) -> _Evidence:
        a, b = paired_vectors(pick, single, names=names, unit=True)
        if val is None:
            return cls(a, b)
        c, d = paired_vectors(*val, names=("val[0]", "val[1]"), unit=True)
        counts = np.concatenate([np.full(c.size, COUNTED), np.ones(a.size)])
        return cls(np.concatenate([c, a]), np.concatenate([d, b]), counts, c.size)

    @property
    def gaps(self) -> Vector:
        return self.pick - self.single

    @property
    def rows(self) -> str:
        n = self.pick.size - self.n_val
        new = "1 question it never saw" if n == 1 else f"{n:,} questions it never saw"
        if not self.n_val:
            return new
        return f"{new} and {self.n_val:,} of val, cross-fitted, which count {COUNTED} each"

    def n_more(self, *, min_gain: float, alpha: float) -> int:
        """Return how many new examples are still needed."""
        n_known = self.pick.size if self.counts is None else float(self.counts.sum())
        needed = partial(
            examples_needed, self.gaps, min_gain=min_gain, alpha=alpha, counts=self.counts
        )
        n_needed = needed()
        if n_needed <= n_known:
            # With z_power = z_alpha every estimate either proves a gain or excludes ``min_gain``.
            n_needed = needed(power=1 - alpha)
        return max(ceil(n_needed - n_known), 1)


def verdict(
    pick: Scores,
    single: Scores,
    *,
    pick_is_single: bool,
    val: CrossFitted | None = None,
    names: tuple[str, str] = ("the mixture", "the best single model"),
    alpha: float = 0.05,
    min_gain: float = 0.03,
) -> Verdict:
    """Decide between the pick and the best single model by one interval on unseen examples.

    The interval is ``decision_interval``: it holds the differences that one-sided tests at
    ``alpha`` do not reject. A pick that is a single model needs no test. Else an interval above 0,
    which is p <= alpha, gives "mixture"; one below ``min_gain`` excludes a gain worth having and
    gives "single"; any other gives "not_enough_examples". ``n_more`` then aims at power 0.8 for
    ``min_gain`` or, where there are that many examples already, at 1 - alpha, which decides all.

    Rows of val can be used too, if each is scored by a choice that was made without it
    (cross-fitting): their differences are tested with the others, each as 0.4 of an example.

    The test is paired and takes the mid-p value: of McNemar's test, of the sign-flip test for
    graded scores. Its size is at most 0.0502 at 5 % for 4 to 200 examples of which up to half
    differ (Fagerland, Lydersen & Laake, BMC Medical Research Methodology 13:91, 2013).

    Args:
        pick: Scores in [0, 1] of the search's choice, per example of the test rows.
        single: Scores of the best single model, chosen on other rows, on the same examples.
        pick_is_single: The pick has no layers.
        val: Both scores on val, each example scored by what was chosen without it.
        names: Names of the pick and the single model in the text.
        alpha: Level of the test, below 0.5.
        min_gain: The smallest mean difference worth having, in score units.

    Raises:
        MetricError: lengths differ, no example, a score outside [0, 1], or a bad level.
    """
    check_share(min_gain, name="min_gain")
    if pick_is_single:
        val = None
    evidence = _Evidence.of(pick, single, val, names=("pick", "single"))
    gaps, counts = evidence.gaps, evidence.counts
    interval = decision_interval(evidence.pick, evidence.single, alpha=alpha, counts=counts)
    if pick_is_single:
        reason = f"{names[0]}, a single model, so there is no mixture to compare with it"
        text = f"Keep the single model: the search chose {reason}."
        return Verdict("single", None, interval, gaps.size, 0, text)
    p = sign_flip_mid_p(gaps, counts=counts)
    numbers = _numbers(interval, p, evidence.rows)
    if interval.low > 0:
        text = f"Use the mixture: {names[0]} beats {names[1]} by {numbers}."
        return Verdict("mixture", p, interval, gaps.size, 0, text)
    gap = f"{names[0]} minus {names[1]} is {numbers}"
    if interval.high < min_gain:
        text = f"Keep the single model: {gap}, which excludes a gain of {_points(min_gain)}."
        return Verdict("single", p, interval, gaps.size, 0, text)
    n_more = evidence.n_more(min_gain=min_gain, alpha=alpha)
    needed = f"about {n_more:,} more are needed to see a gain of {_points(min_gain)}"
    text = f"Not enough examples: {gap}; {needed}."
    return Verdict("not_enough_examples", p, interval, gaps.size, n_more, text)


COST_WORDS: Final[Mapping[str, str]] = {"usd": "price", "calls": "calls", "seconds": "time"}
"""The word in a text for each cost of a question."""


CostKind: TypeAlias = Literal["as_good", "not_shown", "worse", "not_cheaper"]


@dataclass(frozen=True, slots=True)
class CostVerdict:
    """The advice on a system that costs less: whether it is as good as the best single model.

    Attributes:
        kind: ``as_good``: cheaper, and not worse by the margin or more; ``worse``: worse by more
            than the margin; ``not_shown``: neither is proven; ``not_cheaper``: it costs as much or
            more.
        estimate: Mean score of the system minus that of the single model.
        interval: Interval of that difference; above ``-margin`` if and only if the test proves it.
        p_value: p-value of the one-sided non-inferiority test; Holm-adjusted among several systems.
        power: Chance that this many examples prove it of two equally good systems.
        n: Number of examples.
        n_more: Examples still needed for a power of 0.8; 0 unless ``kind`` is ``not_shown``.
        margin: The largest loss that still counts as equally good, in score units.
        cost: The cost that is compared: ``usd``, ``calls`` or ``seconds``.
        ratio: The system's cost of a question over the single model's.
        text: One sentence.
    """

    kind: CostKind
    estimate: float
    interval: Interval
    p_value: float
    power: float
    n: int
    n_more: int
    margin: float
    cost: str
    ratio: float
    text: str


def cost_verdict(
    system: Scores,
    single: Scores,
    *,
    costs: Mapping[str, float | None],
    single_costs: Mapping[str, float | None],
    val: CrossFitted | None = None,
    cost: str = "usd",
    names: tuple[str, str] = ("the mixture", "the best single model"),
    alpha: float = 0.05,
    margin: float = 0.03,
) -> CostVerdict:
    """Decide whether a system is as good as the best single model, for less.

    A test of non-inferiority (Tango 1998 for right-or-wrong scores, see ``non_inferiority_p``)
    on the same examples. Only a cheaper system can be "as_good"; one that costs as much or more
    is "not_cheaper", whatever its score. The interval is the one of ``verdict`` on the same scores.

    Args:
        system: Scores in [0, 1] of the system, per example of the test rows.
        single: Scores of the best single model of all, whatever it costs, on the same examples.
        costs: Costs of a question of the system: ``usd``, ``calls``, ``seconds``; None is unknown.
        single_costs: Costs of a question of the single model.
        val: As in ``verdict``.
        cost: Name of the cost that is compared.
        names: Names of the two in the text.
        alpha: Level of the one-sided test, below 0.5.
        margin: The largest loss that still counts as equally good, in score units.

    Raises:
        MetricError: lengths differ, no example, a score outside [0, 1], a bad level, or a cost
            that is unknown, negative, or 0 for the single model.
    """
    ratio = _ratio(costs, single_costs, cost)
    evidence = _Evidence.of(system, single, val, names=("system", "single"))
    return _cost_verdict(
        evidence,
        p=non_inferiority_p(evidence.pick, evidence.single, margin=margin, counts=evidence.counts),
        alpha=alpha,
        level=alpha,
        margin=margin,
        cost=cost,
        ratio=ratio,
        names=names,
    )


def cost_verdicts(
    systems: Mapping[str, Scores],
    single: Scores,
    *,
    costs: Mapping[str, Mapping[str, float | None]],
    single_costs: Mapping[str, float | None],
    cost: str = "usd",
    single_name: str = "the best single model",
    alpha: float = 0.05,
    margin: float = 0.03,
) -> dict[str, CostVerdict]:
    """Decide as ``cost_verdict`` on several systems at once, by name.

    Among those that are cheaper, the chance of any wrong "as_good" stays at ``alpha`` (Holm
    1979): ``p_value`` is adjusted, and each interval has the level at which it was tested.

    Args:
        systems: Scores per example, by name.
        single: Scores of the best single model.
        costs: Costs of a question, by name of the system.
        single_costs: Costs of a question of the single model.
        cost: Name of the cost that is compared.
        single_name: Name of the single model in the text.
        alpha: Level for all of them together.
        margin: The largest loss that still counts as equally good.

    Raises:
        MetricError: as ``cost_verdict``, or a system without costs.
    """
    if missing := [name for name in systems if name not in costs]:
        raise MetricError(f"`costs` must hold every system, but {missing[0]!r} is missing.")
    ratios = {name: _ratio(costs[name], single_costs, cost) for name in systems}
    raw = {name: non_inferiority_p(s, single, margin=margin) for name, s in systems.items()}
    cheaper = {name: p for name, p in raw.items() if ratios[name] < 1}
    levels, adjusted = holm_levels(cheaper, alpha=alpha), holm(cheaper)
    return {
        name: _cost_verdict(
            _Evidence.of(scores, single, None, names=("system", "single")),
            p=adjusted.get(name, raw[name]),
            alpha=alpha,
            level=levels.get(name, alpha),
            margin=margin,
            cost=cost,
            ratio=ratios[name],
            names=(name, single_name),
        )
        for name, scores in systems.items()
    }


def _cost_verdict(
    evidence: _Evidence,
    *,
    p: float,
    alpha: float,
    level: float,
    margin: float,
    cost: str,
    ratio: float,
    names: tuple[str, str],
) -> CostVerdict:
    """Return the verdict of an adjusted p-value and the level at which it was tested."""
    check_level(alpha)
    gaps, counts = evidence.gaps, evidence.counts
    interval = decision_interval(evidence.pick, evidence.single, alpha=level, counts=counts)
    kind = _cost_kind(p <= alpha, interval, margin=margin, ratio=ratio)
    n_more = evidence.n_more(min_gain=margin, alpha=level) if kind == "not_shown" else 0
    head = _cost_headline(kind, names[1], _points(margin), _percent(ratio), COST_WORDS[cost])
    text = f"{head}: {names[0]} minus {names[1]} is {_numbers(interval, p, evidence.rows)}"
    if n_more:
        text += f"; about {n_more:,} more are needed if the two are equally good"
    return CostVerdict(
        kind=kind,
        estimate=interval.estimate,
        interval=interval,
        p_value=p,
        power=power_of(gaps, min_gain=margin, alpha=level, counts=counts),
        n=gaps.size,
        n_more=n_more,
        margin=margin,
        cost=cost,
        ratio=ratio,
        text=f"{text}.",
    )


def _cost_kind(is_shown: bool, interval: Interval, *, margin: float, ratio: float) -> CostKind:
    if ratio >= 1:
        return "not_cheaper"
    if is_shown:
        return "as_good"
    return "worse" if interval.high <= -margin else "not_shown"


def _cost_headline(kind: CostKind, single: str, margin: str, share: str, cost: str) -> str:
    for_less = f"within {margin}, at {share} of its {cost}"
    return {
        "as_good": f"As good as {single} {for_less}",
        "worse": f"Worse than {single} by more than {margin}, at {share} of its {cost}",
        "not_shown": f"Not shown to be as good as {single} {for_less}",
        "not_cheaper": f"Not cheaper than {single}: {share} of its {cost}",
    }[kind]


def _ratio(
    costs: Mapping[str, float | None], single_costs: Mapping[str, float | None], cost: str
) -> float:
    if cost not in COST_WORDS:
        raise MetricError(f"`cost` must be one of {', '.join(COST_WORDS)}, but got {cost!r}.")
    system_cost, single_cost = costs.get(cost), single_costs.get(cost)
    if system_cost is None or single_cost is None:
        raise MetricError(f"The {cost} of a question must be known of both systems.")
    if not system_cost >= 0 or not single_cost > 0:
        raise MetricError(
            f"The {cost} of a question must be at least 0, and above 0 for the single model, "
            f"but got {system_cost} and {single_cost}."
        )
    return system_cost / single_cost


def _percent(ratio: float) -> str:
    share = 100 * ratio
    return f"{share:,.0f} %" if share >= 1 else f"{share:.2g} %"


def _points(share: float) -> str:
    value = f"{100 * share:.3g}"
    return f"{value} point" if value == "1" else f"{value} points"


def _numbers(interval: Interval, p: float, rows: str) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    bounds = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (f"{round(100 * share, 1) + 0.0:.1f}" for share in bounds)
    level = f"{100 * interval.confidence:.3g} % interval {low} to {high}"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{estimate} points ({level}, {shown}) on {rows}"

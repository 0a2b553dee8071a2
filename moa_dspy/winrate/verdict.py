"""One plain answer: use the mixture, keep the single model, or measure more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import (
    Interval,
    Scores,
    Vector,
    check_share,
    paired_interval,
    paired_vectors,
)
from moa_dspy.winrate.tests import examples_needed, superiority_p


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, the numbers behind it, and one English sentence that says both."""

    kind: Literal["mixture", "single", "not_enough_examples"]
    p_value: float | None
    """One-sided mid-p, pick better than single; None where the pick is a single model: no test."""
    interval: Interval
    """Of mean(pick - single), two-sided, at confidence 1 - alpha."""
    n: int
    n_more: int
    """Examples still needed; 0 where the answer is known."""
    text: str


def verdict(
    pick: Scores,
    single: Scores,
    *,
    pick_is_single: bool,
    names: tuple[str, str] = ("the mixture", "the best single model"),
    alpha: float = 0.05,
    gain: float = 0.03,
) -> Verdict:
    """Decide between the pick and the best single model by one test on unseen examples.

    In this order: a pick that is a single model needs no test; p <= alpha is "mixture"; a
    one-sided 1 - alpha bound of the difference below ``gain`` is "single", since a gain worth
    having is excluded; anything else is "not_enough_examples". ``n_more`` then aims at power
    0.8 to find ``gain`` or, where there are that many examples already, at power 1 - alpha:
    with those the test and the bound leave nothing undecided.

    The test is paired and takes the mid-p value: McNemar's exact test never exceeds its level,
    but keeps so far below it that a gain of 8 points at 20 % discordance on 200 examples is
    found in 78.6 % instead of 82.5 %; the mid-p keeps the level in all but rare cases (Fagerland,
    Lydersen & Laake, BMC Medical Research Methodology 13:91, 2013). Its size, summed over all
    outcomes, is at most 0.0502 at 5 % for 4 to 200 examples of which up to half differ; where
    nearly all of fewer than 30 examples differ it can reach 0.073. For graded scores it is the
    mid-p of the sign-flip test.

    Args:
        pick: Scores in [0, 1] of what the search chose, per example of the test rows.
        single: Scores of the best single model, chosen on other rows, on the same examples.
        pick_is_single: The pick has no layers.
        names: What to call the pick and the single model.
        alpha: Level of the test, below 0.5.
        gain: The smallest mean difference worth having, in score units.

    Raises:
        MetricError: lengths differ, no example, a score outside [0, 1], or a bad level.
    """
    check_share(gain, name="gain")
    check_share(alpha, name="alpha")
    if alpha >= 0.5:
        raise MetricError(f"`alpha` must be below 0.5, but got {alpha}.")
    a, b = paired_vectors(pick, single, names=("pick", "single"), unit=True)
    interval = paired_interval(a, b, confidence=1 - alpha)
    if pick_is_single:
        text = f"Keep the single model: the search chose {names[0]}, so no mixture was tested."
        return Verdict("single", None, interval, a.size, 0, text)
    p = superiority_p(a, b, mid_p=True)
    if p <= alpha:
        text = f"Use the mixture: {names[0]} beats {names[1]} by {_numbers(interval, p, a.size)}."
        return Verdict("mixture", p, interval, a.size, 0, text)
    gap = f"{names[0]} minus {names[1]} is {_numbers(interval, p, a.size)}"
    if paired_interval(a, b, confidence=1 - 2 * alpha).high < gain:
        text = f"Keep the single model: {gap}, which excludes a gain of {_points(gain)}."
        return Verdict("single", p, interval, a.size, 0, text)
    n_more = _more(a - b, gain=gain, alpha=alpha)
    text = f"Not enough examples: {gap}; about {n_more} more are needed to see a gain of "
    return Verdict("not_enough_examples", p, interval, a.size, n_more, f"{text}{_points(gain)}.")


def _more(differences: Vector, *, gain: float, alpha: float) -> int:
    needed = examples_needed(differences, gain=gain, alpha=alpha)
    if needed <= differences.size:
        # With z_power = z_alpha every estimate is above the test's bound or below the gain's.
        needed = examples_needed(differences, gain=gain, power=1 - alpha, alpha=alpha)
    return max(needed - differences.size, 1)


def _points(share: float) -> str:
    value = f"{100 * share:.3g}"
    return f"{value} point" if value == "1" else f"{value} points"


def _numbers(interval: Interval, p: float, n: int) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    bounds = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (f"{round(100 * share, 1) + 0.0:.1f}" for share in bounds)
    level = f"{100 * interval.confidence:g} % interval {low} to {high}"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    questions = "1 question" if n == 1 else f"{n:,} questions"
    return f"{estimate} points ({level}, {shown}) on {questions} it never saw"

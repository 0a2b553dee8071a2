"""How many examples a comparison needs."""

from __future__ import annotations

from math import ceil, log2, sqrt
from statistics import NormalDist

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import (
    Scores,
    Vector,
    check_share,
    is_binary,
    score_vector,
)


def examples_needed(
    differences: Scores, *, gain: float = 0.03, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return the total number of paired examples that would show a true mean gain of ``gain``.

    ``n = (z_alpha sqrt(D) + z_power sqrt(D - gain^2))^2 / gain^2`` with the discordance
    ``D = variance of the differences + gain^2`` (Connor, Biometrics 43, 1987; Miettinen 1968).
    Right-or-wrong differences need D >= gain. The test is ``verdict``'s, ``superiority_p`` with
    ``mid_p``: summed over all outcomes its power at this n is 0.80 to 0.84 for gains of 3, 5, 8
    and 10 points and D up to 0.4 (0.87 where D = gain); without mid-p it would be 0.74 to 0.79,
    and 2 / gain examples more would be needed. Where no example differs D is unknown: the upper
    end of its 95 % interval by the rule of three, 3 / n, stands in. Never fewer than the
    examples that could reach ``alpha`` at all: n wins of n have a mid-p of 1 / 2^(n + 1).

    Args:
        differences: Score of one system minus score of the other per example, in [-1, 1].
        gain: The smallest mean difference worth having, in score units, in (0, 1).
        power: Chance to find it, at least 0.5.
        alpha: Level of the one-sided test, below 0.5.

    Raises:
        MetricError: no difference, one outside [-1, 1], or a level out of its range.
    """
    gaps = score_vector(differences, name="differences")
    if np.abs(gaps).max() > 1:
        raise MetricError(f"`differences` must be in [-1, 1], but one is {_widest(gaps)}.")
    check_share(gain, name="gain")
    check_share(power, name="power")
    check_share(alpha, name="alpha")
    if power < 0.5 or alpha >= 0.5:
        raise MetricError(
            f"`power` must be at least 0.5 and `alpha` below it, but got {power} and {alpha}."
        )
    discordance = _discordance(gaps) + gain**2
    if is_binary(gaps):
        discordance = min(max(discordance, gain), 1.0)
    normal = NormalDist()
    by_chance = normal.inv_cdf(1 - alpha) * sqrt(discordance)
    by_gain = normal.inv_cdf(power) * sqrt(discordance - gain**2)
    n = (by_chance + by_gain) ** 2 / gain**2
    return max(ceil(n), ceil(log2(1 / alpha)) - 1)


def _discordance(gaps: Vector) -> float:
    """Return the variance of the differences, or its bound where none was seen."""
    if not np.abs(gaps).max() > 1e-12:
        return min(3 / gaps.size, 1.0)
    return float(gaps.var(ddof=1)) if gaps.size > 1 else float(gaps[0] ** 2)


def _widest(gaps: Vector) -> float:
    return float(gaps[np.abs(gaps).argmax()])

"""The exact chance that random signs do better than what was seen."""

from __future__ import annotations

from math import gcd

import numpy as np

from moa_dspy.winrate._scores import Scores, score_vector

_STEPS_PER_POINT = 1_000
"""Differences in whole thousandths are exact; finer ones are rounded to the nearest."""
_MOST_STEPS = 100_000
"""Sums beyond it use a coarser step: with 2,000 examples that moves a sum by 0.03 of its sd."""


def sign_flip_mid_p(differences: Scores) -> float:
    """Return the one-sided mid-p value for a mean above 0, exact far into the tail.

    Every difference keeps its size and gets its sign from a fair coin (Fisher 1935); the
    distribution of the sum is built up example by example (Pagano & Tritchler 1983), so a value
    of 1e-12 costs no more than one of 0.5, and none depends on a seed. Right-or-wrong scores
    give the binomial mid-p of McNemar's test. Ties say nothing; if all tie the result is 1.

    Time grows with the number of differences times their sum in steps: 10 ms for 200 graded
    examples.

    Raises:
        MetricError: no difference, or one that is not finite.
    """
    gaps = score_vector(differences, name="differences")
    sizes = np.abs(gaps)
    step = max(1 / _STEPS_PER_POINT, float(sizes.sum()) / _MOST_STEPS)
    steps = np.rint(sizes / step).astype(np.int64)
    won = int(steps[gaps > 0].sum())
    steps = steps[steps > 0]
    if not steps.size:
        return 1.0
    unit = gcd(*steps.tolist())
    chances = np.ones(1)
    for size in np.sort(steps // unit).tolist():
        grown = np.zeros(chances.size + size)
        grown[: chances.size] = chances / 2
        grown[size:] += chances / 2
        chances = grown
    won //= unit
    return float(chances[won + 1 :].sum() + chances[won] / 2)

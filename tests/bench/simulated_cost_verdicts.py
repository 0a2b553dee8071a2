"""Simulated cost verdicts: how often "as good" is said where it is wrong, and where it is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moa_dspy.winrate import decision_interval

MARGIN = 0.03
SIZES = (50, 100, 200, 400)
DISCORDANCES = (0.03, 0.05, 0.1, 0.2, 0.3, 0.4)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def _spread(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(-MARGIN, 0.2, n).clip(-1, 1)


def _grades(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    # Mean: -0.5 (0.17 - 0.11) = -0.03.
    return rng.choice([-1, -0.5, 0, 0.5, 1], size=n, p=[0.05, 0.17, 0.62, 0.11, 0.05])


def _rare_losses(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(0, 0.02, n) - 0.5 * (rng.random(n) < 0.06)


def _rare_losses_and_ties(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.where(rng.random(n) < 0.55, 0, rng.normal(0, 0.02, n)) - 0.5 * (rng.random(n) < 0.06)


GRADED: dict[str, Draw] = {
    "spread": _spread,
    "five grades": _grades,
    "rare losses": _rare_losses,
    "rare losses, ties": _rare_losses_and_ties,
}
"""Differences with a mean of -0.03."""


@cache
def _is_shown(wins: int, losses: int, n: int) -> bool:
    ties = [1.0] * (n - wins - losses)
    a, b = [1.0] * wins + [0.0] * losses + ties, [0.0] * wins + [1.0] * losses + ties
    return decision_interval(a, b).low > -MARGIN


def right_or_wrong(n_studies: int, *, worse_by: float) -> list[dict[str, Any]]:
    """Return how often "as good" is said of right-or-wrong scores, by size and discordance."""
    table = []
    for n in SIZES:
        for discordance in DISCORDANCES:
            rng = np.random.default_rng(3)
            chances = [(discordance - worse_by) / 2, (discordance + worse_by) / 2, 1 - discordance]
            counts = rng.multinomial(n, chances, size=n_studies)[:, :2].tolist()
            share = sum(_is_shown(*pair, n) for pair in counts) / n_studies
            row = {"n": n, "discordance": discordance, "worse_by": worse_by, "as_good": share}
            table.append({**row, "se": sqrt(share * (1 - share) / n_studies)})
    return table


def graded(n_studies: int) -> list[dict[str, Any]]:
    """Return how often "as good" is said of graded scores that are worse by the margin."""
    table = []
    for name, draw in GRADED.items():
        for n in SIZES:
            rng = np.random.default_rng(n)
            said = 0
            for _ in range(n_studies):
                gap = draw(rng, n).clip(-1, 1)
                found = decision_interval(np.maximum(gap, 0), np.maximum(-gap, 0))
                said += found.low > -MARGIN
            share = said / n_studies
            row = {"world": name, "n": n, "as_good": share}
            table.append({**row, "se": sqrt(share * (1 - share) / n_studies)})
    return table


def cost_verdict_rates(n_studies: int) -> dict[str, Any]:
    """Return wrong "as good" where a system is worse by the margin, and right ones where equal."""
    # Counts repeat, so that many studies cost little: the standard error is then 0.16 points.
    n_counted = 10 * n_studies
    wrong = right_or_wrong(n_counted, worse_by=MARGIN)
    return {
        "worse_by_the_margin": wrong,
        "most_wrong": max(row["as_good"] for row in wrong),
        "graded_worse_by_the_margin": graded(max(n_studies // 2, 1)),
        "equally_good": right_or_wrong(n_counted, worse_by=0.0),
    }

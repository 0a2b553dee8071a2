"""Simulated races of equal and of bad arms, judged by the library's own race."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from moa_dspy.winrate.tests import Race, look_points

Matrix = NDArray[np.float64]
N_ROWS = 200
EQUAL = 0.6
BAD_BY = (0.08, 0.15, 0.3)
N_GOOD = 3


def latent(rng: np.random.Generator, n_arms: int, correlation: float) -> Matrix:
    """Return normal numbers (arms, rows): what arms have in common is the row's difficulty."""
    shared, own = rng.standard_normal(N_ROWS), rng.standard_normal((n_arms, N_ROWS))
    return sqrt(correlation) * shared + sqrt(1 - correlation) * own


def right_or_wrong(rng: np.random.Generator, gaps: Matrix, correlation: float = 0.5) -> Matrix:
    """Return scores of arms that are right with chance 0.6 less their gap."""
    is_right = latent(rng, len(gaps), correlation) < ndtri(EQUAL - gaps)[:, None]
    return np.asarray(is_right, dtype=np.float64)


def alike(rng: np.random.Generator, gaps: Matrix) -> Matrix:
    """Return arms that agree on most rows, as architectures with common members do."""
    return right_or_wrong(rng, gaps, 0.9)


def graded(rng: np.random.Generator, gaps: Matrix) -> Matrix:
    """Return scores in tenths."""
    spread = 0.6 + 0.3 * latent(rng, len(gaps), 0.5) - gaps[:, None]
    return np.asarray(np.rint(10 * spread.clip(0, 1)) / 10)


def unlike(rng: np.random.Generator, gaps: Matrix) -> Matrix:
    """Return arms with one mean: every other right or wrong, every other always near 0.6."""
    scores = right_or_wrong(rng, gaps)
    near = EQUAL - gaps[:, None] + rng.choice([-0.1, 0.1], scores.shape)
    return np.where(np.arange(len(gaps))[:, None] % 2 == 0, scores, near)


WORLDS: dict[str, Callable[[np.random.Generator, Matrix], Matrix]] = {
    "binary": right_or_wrong,
    "binary_alike": alike,
    "graded": graded,
    "unlike": unlike,
}


def run(arms: Matrix, race: Race) -> list[int]:
    """Return on how many rows each arm was measured, entering one by one in order.

    Rivals are asked in the order of their lead in standard deviations: the first says it.
    """
    ends, rows = look_points(N_ROWS), [N_ROWS]
    leads = [_leads(arms[:, :end]) for end in ends]
    whole = [0]
    for arm in range(1, len(arms)):
        rows.append(_rows(arms, arm, whole, race, list(zip(ends, leads, strict=True))))
        if rows[-1] == N_ROWS:
            whole.append(arm)
    return rows


def _rows(
    arms: Matrix, arm: int, whole: Sequence[int], race: Race, seen: list[tuple[int, Matrix]]
) -> int:
    for end, leads in seen:
        # Below two standard deviations a race says no without a test.
        close = [(-leads[rival, arm], rival) for rival in whole if leads[rival, arm] > 2]
        arm_scores = arms[arm, :end].tolist()
        if any(race.is_lost(arm_scores, arms[rival, :end].tolist()) for _, rival in sorted(close)):
            return end
    return N_ROWS


def _leads(scores: Matrix) -> Matrix:
    """Return by how many standard deviations each arm (line) is ahead of each other one."""
    sums, products = scores.sum(1), scores @ scores.T
    squares = np.diag(products)
    sizes = np.maximum(squares[:, None] + squares - 2 * products, 1e-12)
    return np.asarray((sums[:, None] - sums) / np.sqrt(sizes))


def share(hits: int, n: int) -> dict[str, float]:
    """Return a share with its standard error."""
    rate = hits / n
    return {"share": rate, "se": sqrt(rate * (1 - rate) / n)}


def equal_arms(n_races: int, n_arms: Sequence[int]) -> list[dict[str, Any]]:
    """Return per world and number of arms in how many races an arm was dropped wrongly."""
    found = []
    for world, draw in WORLDS.items():
        for n in n_arms:
            rng, race = np.random.default_rng(n), Race(n, len(look_points(N_ROWS)))
            gaps = np.zeros(n)
            wrong = sum(min(run(draw(rng, gaps), race)) < N_ROWS for _ in range(n_races))
            found.append({"world": world, "arms": n, "races": n_races, **share(wrong, n_races)})
    return found


def uncorrected(n_races: int, n_arms: int) -> dict[str, Any]:
    """Return what the same test does at 5 % per test, as the plain baseline."""
    rng, race = np.random.default_rng(n_arms), Race(1, 1)
    gaps = np.zeros(n_arms)
    wrong = sum(min(run(right_or_wrong(rng, gaps), race)) < N_ROWS for _ in range(n_races))
    return {"world": "binary", "arms": n_arms, "races": n_races, **share(wrong, n_races)}


def bad_arms(n_races: int, n_arms: Sequence[int]) -> list[dict[str, Any]]:
    """Return what bad arms cost where 3 arms are equally good and enter in random order."""
    found = []
    for world in ("binary", "graded"):
        for n in n_arms:
            for gap in BAD_BY:
                rng, race = np.random.default_rng(n), Race(n, len(look_points(N_ROWS)))
                used, wrong = 0.0, 0
                for _ in range(n_races):
                    gaps = rng.permutation(np.repeat([0.0, gap], [N_GOOD, n - N_GOOD]))
                    rows = np.array(run(WORLDS[world](rng, gaps), race))
                    used += float(rows[gaps > 0].mean()) / N_ROWS
                    wrong += bool((rows[gaps == 0] < N_ROWS).any())
                cell = {"world": world, "arms": n, "bad_by": gap, "races": n_races}
                cell["rows_of_bad_arms"] = used / n_races
                found.append({**cell, "good_dropped": share(wrong, n_races)})
    return found

"""Verdicts of val and test where many systems tie: what a cross-fitted example may count.

Scores of systems are normal, so only sums over folds matter: a study is ten draws per system. On
nine folds the best single model and the best mixture are found, the better of them is scored
against the single model on the tenth, and so for each fold; then both are found on all of val and
compared on new examples. No mixture is better than the single models, so every "mixture" is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moa_dspy.winrate.verdict import COUNTED

N_FOLDS = 10
Z = 1.6448536269514722
"""One-sided 5 %."""
COUNTS = (0.9, 0.7, 0.5, COUNTED, 0.3)
RATIOS = (0.25, 0.5, 1.0, 1.5, 3.0)
"""Examples of test over those of val."""
_Floats = NDArray[np.float64]
_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class TiedSystems:
    """Systems whose sums of scores on val are normal.

    Attributes:
        name: Says what they are.
        n_singles: How many of them are single models; the others are mixtures.
        covariance: Of the sums.
        mean: Of the sums, in standard errors; none of a mixture is above that of a single model.
    """

    name: str
    n_singles: int
    covariance: _Floats
    mean: _Floats


def worlds(n_random: int) -> Iterator[TiedSystems]:
    """Yield ties of few and many systems, alike and unlike, then random ones, near-ties too."""
    for n_singles, n_mixtures in ((1, 1), (1, 20), (1, 200), (2, 5), (6, 50), (6, 200), (20, 50)):
        for alike in (0.0, 0.7):
            n = n_singles + n_mixtures
            covariance = alike + (1 - alike) * np.eye(n)
            name = f"{n_singles} single models and {n_mixtures} mixtures tie, correlation {alike}"
            yield TiedSystems(name, n_singles, covariance, np.zeros(n))
    rng = np.random.default_rng(5)
    for number in range(n_random):
        n_singles, n_mixtures = int(rng.integers(1, 12)), int(rng.integers(1, 60))
        n, rank = n_singles + n_mixtures, int(rng.integers(1, 8))
        factors = rng.standard_normal((n, rank)) * rng.uniform(0.2, 2, rank)
        covariance = factors @ factors.T + np.diag(rng.uniform(0.05, 1, n))
        behind = rng.exponential(float(rng.choice([0.0, 0.5, 1.0])), n)
        mean = np.where(np.arange(n) < n_singles, 0.0, -behind) * np.sqrt(np.diag(covariance))
        yield TiedSystems(f"random {number}", n_singles, covariance, mean)


def _picked(scores: _Floats, n_singles: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the best single model and what is best of all, along the last axis."""
    return scores[..., :n_singles].argmax(-1), scores.argmax(-1)


def _gap(world: TiedSystems, left: NDArray[np.intp], right: NDArray[np.intp]) -> _Floats:
    """Return the variance of the difference of two systems on as many examples as val has."""
    c = world.covariance
    found: _Floats = c[left, left] + c[right, right] - 2 * c[left, right]
    return found


def _studies(
    world: TiedSystems, n: int, rng: np.random.Generator
) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Return sum and variance of the cross-fitted differences, and mean and variance on test."""
    size = len(world.mean)
    root = np.linalg.cholesky(world.covariance + 1e-9 * np.eye(size))
    folds = rng.standard_normal((n, N_FOLDS, size)) @ root.T / sqrt(N_FOLDS) + world.mean / N_FOLDS
    total = folds.sum(1)
    single, pick = _picked(total[:, None] - folds, world.n_singles)
    at = np.take_along_axis
    gaps = at(folds, pick[..., None], -1) - at(folds, single[..., None], -1)
    spread = _gap(world, pick, single).sum(1) / N_FOLDS
    single, pick = _picked(total, world.n_singles)
    return (
        gaps[..., 0].sum(1),
        spread,
        world.mean[pick] - world.mean[single],
        _gap(world, pick, single),
    )


def wrong_mixtures(world: TiedSystems, n: int) -> dict[str, Any]:
    """Return how often "mixture" is said, by examples of test over val and by what val's count."""
    rng = np.random.default_rng(0)
    said = np.zeros((len(RATIOS), len(COUNTS)))
    z_of_val: list[_Floats] = []
    for start in range(0, n, _AT_ONCE):
        gaps, spread, mean, variance = _studies(world, min(_AT_ONCE, n - start), rng)
        luck = rng.standard_normal(len(gaps))
        z_of_val.append(gaps[spread > 1e-9] / np.sqrt(spread[spread > 1e-9]))
        for i, ratio in enumerate(RATIOS):
            on_test = ratio * mean + np.sqrt(ratio * variance) * luck
            for j, count in enumerate(COUNTS):
                sums = on_test + count * gaps
                error = np.sqrt(np.maximum(ratio * variance + count * spread, 1e-12))
                # Where a single model is picked nothing is tested: both variances may be 0.
                said[i, j] += ((variance > 1e-9) & (sums > Z * error)).sum()
    rates = said / n
    return {
        "world": world.name,
        "studies": n,
        "sd_of_val": float(np.concatenate(z_of_val).std()),
        "mixture": {
            str(ratio): dict(zip(map(str, COUNTS), row, strict=True))
            for ratio, row in zip(RATIOS, rates.tolist(), strict=True)
        },
        "most_se": float(np.sqrt(rates * (1 - rates) / n).max()),
    }


def tied_verdicts(n: int, *, n_random: int = 40) -> dict[str, Any]:
    """Return the most wrong "mixture" of all worlds by ratio and count, and every world."""
    found = [wrong_mixtures(world, n) for world in worlds(n_random)]
    most = {
        ratio: {
            count: max(row["mixture"][ratio][count] for row in found) for count in map(str, COUNTS)
        }
        for ratio in map(str, RATIOS)
    }
    return {"counted": COUNTED, "worlds": found, "most": most}

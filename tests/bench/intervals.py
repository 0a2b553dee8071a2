"""Simulates how often the paired interval holds the true difference.

Usage: python tests/bench/intervals.py [--json] [--simulations N]

Two systems answer the same n examples; by default 4,000 such experiments for each n (100, 200,
805) and kind of score: right or wrong, graded, and graded where four in five examples tie. Prints
per cell the share of ``paired_interval``s, nominally 95 %, that hold the truth, its own standard
error, and the share of misses on each side; then the lowest and highest share of all, and
seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from math import sqrt
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from moa_dspy.winrate import Interval, paired_interval

Vector = NDArray[np.float64]
Pair = tuple[Vector, Vector]
SIZES = (100, 200, 805)
GRADED_TRUTH = 2 / 3 - 2 / 3.2  # Means of Beta(2, 1) and Beta(2, 1.2).
TIED = 0.8


def right_or_wrong(generator: np.random.Generator, n: int) -> Pair:
    """Wins on 15 % of the examples, loses on 8 %; otherwise both are right or both wrong."""
    kind = generator.choice(4, size=n, p=[0.15, 0.08, 0.5, 0.27])
    return np.isin(kind, [0, 2]).astype(np.float64), np.isin(kind, [1, 2]).astype(np.float64)


def graded(generator: np.random.Generator, n: int) -> Pair:
    """Draws both grades from different Beta distributions."""
    return generator.beta(2, 1, n), generator.beta(2, 1.2, n)


def graded_with_ties(generator: np.random.Generator, n: int) -> Pair:
    """Draws grades that are equal on most examples."""
    a, b = graded(generator, n)
    return a, np.where(generator.random(n) < TIED, a, b)


WORLDS: dict[str, tuple[Callable[[np.random.Generator, int], Pair], float]] = {
    "binary": (right_or_wrong, 0.15 - 0.08),
    "graded": (graded, GRADED_TRUTH),
    "graded_with_ties": (graded_with_ties, (1 - TIED) * GRADED_TRUTH),
}


@cache
def interval_of_counts(wins: int, losses: int, n: int) -> Interval:
    """Right-or-wrong scores matter only through these counts: far fewer than experiments."""
    a, b = np.zeros(n), np.zeros(n)
    a[:wins], b[wins : wins + losses] = 1, 1
    return paired_interval(a, b)


def bounded(a: Vector, b: Vector, *, is_binary: bool) -> Interval:
    if is_binary:
        return interval_of_counts(int((a > b).sum()), int((a < b).sum()), a.size)
    return paired_interval(a, b)


def simulated(kind: str, n: int, n_simulations: int) -> dict[str, float]:
    draw, truth = WORLDS[kind]
    generator = np.random.default_rng(n)
    pairs = (draw(generator, n) for _ in range(n_simulations))
    found = [bounded(a, b, is_binary=kind == "binary") for a, b in pairs]
    low, high = np.array([(i.low, i.high) for i in found]).T
    coverage = float(((low <= truth) & (truth <= high)).mean())
    return {
        "n": n,
        "coverage": coverage,
        "standard_error": sqrt(coverage * (1 - coverage) / n_simulations),
        "truth_below": float((truth < low).mean()),
        "truth_above": float((truth > high).mean()),
        "mean_width": float((high - low).mean()),
    }


def summary(n_simulations: int) -> dict[str, object]:
    started = perf_counter()
    cells = {f"{kind}_{n}": simulated(kind, n, n_simulations) for kind in WORLDS for n in SIZES}
    coverages = [cell["coverage"] for cell in cells.values()]
    return {
        "n_simulations": n_simulations,
        "min_coverage": min(coverages),
        "max_coverage": max(coverages),
        "seconds": perf_counter() - started,
        "cells": cells,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Simulate the coverage of paired intervals.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--simulations", type=int, default=4_000, help="per cell")
    options = parser.parse_args(arguments)
    result = summary(options.simulations)
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Recomputes a folder of recorded AlpacaEval 2 preferences and compares with what was published.

Usage: python tests/bench/alpaca_eval_replay.py FOLDER [--json]

FOLDER holds preferences.parquet, responses.parquet, leaderboard.csv, instruction_difficulty.csv,
lc_gamed_baselines.csv and lc_published_weights.csv. All win rates and differences are percent
points. The k-th judged row of an incomplete model gets the k-th difficulty, as published; its
length-controlled win rate with each row's own difficulty is listed too. Where published
coefficients do not predict the published number, ``diff_lc`` is null. Seconds are with
cross-validation, without the import of scikit-learn.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, nan
from pathlib import Path
from time import perf_counter
from timeit import repeat

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moa_dspy.winrate import (
    Coefficients,
    GamedRows,
    RecordedPreferences,
    length_controlled,
    length_controlled_preference,
    win_rate,
)

Vector = NDArray[np.float64]
Numbers = dict[str, dict[str, float]]
Row = dict[str, float | None]
BELONG_WITHIN = 1e-4  # Published coefficients further from their number are of another fit.


@dataclass(frozen=True)
class Folder:
    """Vectors are by instruction, in the order of the ids; NaN where a model has no row."""

    preferences: dict[str, Vector]
    lengths: dict[str, Vector]
    difficulty: Vector
    gamed: GamedRows
    published: Numbers
    weights: Numbers

    @property
    def baseline(self) -> str:
        """The model that is published without a standard error: it ties with itself."""
        return next(m for m, row in self.published.items() if row["standard_error"] == 0)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def by_model(rows: Iterable[dict[str, str]]) -> Numbers:
    return {row.pop("model"): {k: float(v) if v else nan for k, v in row.items()} for row in rows}


def read_lengths(path: Path, ids: list[int]) -> dict[str, Vector]:
    rows = pq.read_table(path, columns=["instruction_id", "model", "n_chars"]).to_pylist()
    lengths = {row["model"]: np.full(len(ids), nan) for row in rows}
    place = {key: k for k, key in enumerate(ids)}
    for row in rows:
        if row["n_chars"] is not None:
            lengths[row["model"]][place[row["instruction_id"]]] = row["n_chars"]
    return lengths


def read_folder(folder: Path) -> Folder:
    rows = read_csv(folder / "instruction_difficulty.csv")
    hard = {int(row["instruction_id"]): float(row["instruction_difficulty"]) for row in rows}
    ids = sorted(hard)
    rows = read_csv(folder / "lc_gamed_baselines.csv")
    names = ("preference_reconstructed", "std_delta_len")
    wins, gaps = ([float(row[name]) for row in rows] for name in names)
    gamed = GamedRows(wins, gaps, [hard[int(row["instruction_id"])] for row in rows])
    judged = pq.read_table(folder / "preferences.parquet").to_pylist()
    table = RecordedPreferences(judged, example="instruction_id", system="model")
    return Folder(
        {name: table.of(name, ids, missing_as_nan=True) for name in table.systems},
        read_lengths(folder / "responses.parquet", ids),
        np.array([hard[key] for key in ids]),
        gamed,
        by_model(read_csv(folder / "leaderboard.csv")),
        by_model(read_csv(folder / "lc_published_weights.csv")),
    )


def plain(folder: Folder, model: str) -> tuple[int, float, float]:
    """Return the number of judged rows, and win rate and standard error minus published."""
    values, published = folder.preferences[model], folder.published[model]
    result = win_rate(values[~np.isnan(values)])
    diff = 100 * result.value - published["win_rate"]
    return result.n, diff, 100 * result.standard_error - published["standard_error"]


def controlled(folder: Folder, model: str, c: float | None, *, own: bool = False) -> list[float]:
    """Return the length-controlled win rate in percent, and the c; ``own``: own difficulty."""
    result = length_controlled(
        folder.preferences[model],
        folder.lengths[model],
        folder.lengths[folder.baseline],
        difficulty=folder.difficulty,
        gamed=folder.gamed,
        c=c,
        align="instruction" if own else "position",
    )
    return [100 * result.win_rate, result.c]


def replay(folder: Folder, model: str) -> Row:
    """Return one model's numbers; ``diff_`` is recomputed minus published."""
    n, diff, diff_error = plain(folder, model)
    lc = folder.published[model]["length_controlled_winrate"]
    w = folder.weights.get(model, {})
    c = w["implied_C"] if w.get("implied_C", nan) > 0 else None
    known = Coefficients(difficulty=w.get("w_difficulty", nan), model=w.get("w_model", nan))
    implied = length_controlled_preference(known, Coefficients(), difficulty=folder.difficulty[:n])
    belong = not abs(100 * implied - lc) > BELONG_WITHIN
    started = perf_counter()
    by_folds, chosen = controlled(folder, model, None)
    is_whole = n == folder.difficulty.size
    return {
        "seconds": perf_counter() - started,
        "n": n,
        "diff_win_rate": diff,
        "diff_standard_error": diff_error,
        "c_tabulated": c,
        "diff_lc": controlled(folder, model, c)[0] - lc if c and belong else None,
        "c_cross_validated": chosen,
        "diff_lc_cross_validated": by_folds - lc,
        "lc_by_own_difficulty": None if is_whole else controlled(folder, model, c, own=True)[0],
    }


def plain_loop_seconds(folder: Folder, model: str, *, n_steps: int = 8) -> float:
    """Time one fit that walks row by row: Newton's method, without penalty."""
    gaps = folder.lengths[folder.baseline] - folder.lengths[model]
    t, g = np.tanh(gaps / np.nanstd(gaps, ddof=1)), folder.gamed
    none = [0.0] * len(g.difficulty)
    own = zip(t, folder.difficulty, np.ones(t.size), folder.preferences[model], strict=True)
    gamed = zip(np.tanh(g.length_gaps), g.difficulty, none, g.preferences, strict=True)
    rows = [(np.array(x), p, 0.1 + 0.9 * x[2]) for *x, p in (*own, *gamed) if p == p]
    started, w = perf_counter(), np.zeros(3)
    for _ in range(n_steps):
        slope, curvature = np.zeros(3), np.zeros((3, 3))
        for x, p, weight in rows:
            q = 1 / (1 + exp(-float(x @ w)))
            slope += weight * (p - q) * x
            curvature += weight * q * (1 - q) * np.outer(x, x)
        w = w + np.linalg.solve(curvature, slope)
    return perf_counter() - started


def summary(folder: Folder) -> dict[str, object]:
    models = [model for model in folder.published if model != folder.baseline]
    controlled(folder, models[0], 1.0)  # Loads scikit-learn.
    rows = {model: replay(folder, model) for model in models}
    _, diff, diff_error = plain(folder, folder.baseline)
    own = {model: row["lc_by_own_difficulty"] for model, row in rows.items()}
    fit = min(repeat(lambda: controlled(folder, models[0], 1.0), number=1))

    def worst(key: str, *others: float) -> float | None:
        found = [row[key] for row in rows.values()]
        return max((abs(d) for d in (*found, *others) if d is not None), default=None)

    return {
        "max_abs_diff_win_rate": worst("diff_win_rate", diff),
        "max_abs_diff_standard_error": worst("diff_standard_error", diff_error),
        "max_abs_diff_lc": worst("diff_lc"),
        "max_abs_diff_lc_cross_validated": worst("diff_lc_cross_validated"),
        "lc_by_own_difficulty": {m: lc for m, lc in own.items() if lc is not None},
        "lc_seconds_per_model": sum(row["seconds"] or 0 for row in rows.values()) / len(rows),
        "lc_seconds_one_fit": fit,
        "ratio_plain_loop_to_one_fit": plain_loop_seconds(folder, models[0]) / fit,
        "models": rows,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Recompute recorded AlpacaEval 2 win rates.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    options = parser.parse_args(arguments)
    print(json.dumps(summary(read_folder(options.folder)), indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

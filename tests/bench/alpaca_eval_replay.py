"""Recompute a folder of recorded AlpacaEval 2 preferences and compare with what was published.

Run as ``python tests/bench/alpaca_eval_replay.py FOLDER [--json]``. The folder holds
preferences.parquet, responses.parquet, leaderboard.csv, instruction_difficulty.csv,
lc_gamed_baselines.csv and lc_published_weights.csv. All numbers are percent points. Timing
excludes scikit-learn's import and is not asserted anywhere.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict, dataclass
from math import exp, nan
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moa_dspy.winrate import (
    Coefficients,
    GamedRows,
    LengthControlled,
    length_controlled,
    length_controlled_preference,
    win_rate,
)

Vector = NDArray[np.float64]
# Published coefficients that miss their own published number by more are of another run.
_BELONG_WITHIN = 1e-4


@dataclass(frozen=True, slots=True)
class Folder:
    """Everything in the folder; vectors are by instruction, NaN where a model has no row."""

    preferences: dict[str, Vector]
    lengths: dict[str, Vector]
    difficulty: Vector
    gamed: GamedRows
    published: dict[str, dict[str, float]]
    weights: dict[str, dict[str, float]]

    @property
    def baseline(self) -> str:
        """The model whose published coefficients are all 0."""
        return next(m for m, w in self.weights.items() if w["w_model"] == w["w_difficulty"] == 0)

    def control(
        self, model: str, *, c: float | None, own_difficulty: bool = False
    ) -> LengthControlled:
        return length_controlled(
            self.preferences[model],
            self.lengths[model],
            self.lengths[self.baseline],
            difficulty=self.difficulty,
            gamed=self.gamed,
            c=c,
            align="instruction" if own_difficulty else "position",
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One model, recomputed minus published except where it says otherwise."""

    model: str
    n: int
    win_rate: float
    diff_win_rate: float
    diff_standard_error: float
    published_lc: float
    diff_lc: float | None
    """At the tabulated C; None without one, or where ``coefficients_belong`` is False."""
    coefficients_belong: bool
    diff_lc_cross_validated: float
    c_tabulated: float | None
    c_cross_validated: float
    lc_by_own_difficulty: float | None
    """At the tabulated C, else by cross-validation; only for a model with missing rows."""
    seconds: float
    """Of the fit with cross-validation."""


def read_csv(path: Path) -> dict[str, dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row.pop("model"): {key: float(value) if value else nan for key, value in row.items()}
            for row in csv.DictReader(file)
        }


def read_columns(path: Path, value: str, place: dict[int, int]) -> dict[str, Vector]:
    table = pq.read_table(path, columns=["instruction_id", "model", value]).to_pydict()
    columns: dict[str, Vector] = {}
    for key, model, number in zip(
        table["instruction_id"], table["model"], table[value], strict=True
    ):
        column = columns.setdefault(model, np.full(len(place), nan))
        column[place[key]] = nan if number is None else number
    return columns


def read_folder(folder: Path) -> Folder:
    with (folder / "instruction_difficulty.csv").open(encoding="utf-8", newline="") as file:
        hard = {
            int(row["instruction_id"]): float(row["instruction_difficulty"])
            for row in csv.DictReader(file)
        }
    place = {key: k for k, key in enumerate(sorted(hard))}
    with (folder / "lc_gamed_baselines.csv").open(encoding="utf-8", newline="") as file:
        gamed = list(csv.DictReader(file))
    return Folder(
        read_columns(folder / "preferences.parquet", "preference", place),
        read_columns(folder / "responses.parquet", "n_chars", place),
        np.array([hard[key] for key in place]),
        GamedRows(
            [float(row["preference_reconstructed"]) for row in gamed],
            [float(row["std_delta_len"]) for row in gamed],
            [hard[int(row["instruction_id"])] for row in gamed],
        ),
        read_csv(folder / "leaderboard.csv"),
        read_csv(folder / "lc_published_weights.csv"),
    )


def replay(folder: Folder, model: str) -> Row:
    published, judged = folder.published[model], ~np.isnan(folder.preferences[model])
    plain = win_rate(folder.preferences[model][judged])
    lc = published["length_controlled_winrate"]
    weights = folder.weights.get(model, {})
    tabulated = weights.get("implied_C", nan)
    c = None if np.isnan(tabulated) else tabulated
    own = Coefficients(0, weights.get("w_difficulty", nan), weights.get("w_model", nan))
    n = int(judged.sum())
    implied = 100 * length_controlled_preference(
        own, Coefficients(), difficulty=folder.difficulty[:n]
    )
    belong = not abs(implied - lc) > _BELONG_WITHIN
    started = time.perf_counter()
    chosen = folder.control(model, c=None)
    seconds = time.perf_counter() - started
    at_c = None if c is None or not belong else 100 * folder.control(model, c=c).win_rate - lc
    fair = None if judged.all() else 100 * folder.control(model, c=c, own_difficulty=True).win_rate
    return Row(
        model,
        n,
        100 * plain.value,
        100 * plain.value - published["win_rate"],
        100 * plain.standard_error - published["standard_error"],
        lc,
        at_c,
        belong,
        100 * chosen.win_rate - lc,
        c,
        chosen.c,
        fair,
        seconds,
    )


def plain_loop_seconds(folder: Folder, model: str, *, n_steps: int = 8) -> float:
    """Time a fit that walks row by row in plain Python: Newton's method without a penalty."""
    gaps = folder.lengths[folder.baseline] - folder.lengths[model]
    spread = float(np.nanstd(gaps, ddof=1))
    own = zip(np.tanh(gaps / spread), folder.difficulty, folder.preferences[model], strict=True)
    rows = [(t, d, 1.0, p, 1.0) for t, d, p in own if p == p]
    g = folder.gamed
    gamed = zip(np.tanh(g.length_gaps), g.difficulty, g.preferences, strict=True)
    rows += [(t, d, 0.0, p, 0.1) for t, d, p in gamed]
    started = time.perf_counter()
    w = [0.0, 0.0, 0.0]
    for _ in range(n_steps):
        slope, curvature = np.zeros(3), np.zeros((3, 3))
        for *x, p, s in rows:
            q = 1 / (1 + exp(-sum(a * b for a, b in zip(x, w, strict=True))))
            for i in range(3):
                slope[i] += s * (p - q) * x[i]
                for j in range(3):
                    curvature[i, j] += s * q * (1 - q) * x[i] * x[j]
        w = (np.array(w) + np.linalg.solve(curvature, slope)).tolist()
    return time.perf_counter() - started

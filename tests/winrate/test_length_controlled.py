from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from moa_dspy.errors import MetricError
from moa_dspy.winrate import (
    Coefficients,
    GamedRows,
    LengthControlled,
    length_controlled,
    length_controlled_preference,
    standardised_length_gaps,
)

Vector = NDArray[np.float64]
NAN = float("nan")
ROOT = Path(__file__).parents[2]
WINS = np.array([0.9, 0.2, 0.7, 1.0, 0.4, 0.6, 0.1, 0.8])
LENGTHS = np.array([300.0, 100, 260, 420, 150, 240, 90, 310])
BASELINE = np.array([200.0, 180, 220, 200, 210, 190, 200, 230])
DIFFICULTY = np.array([0.0, -1.0, 0.5, 1.0, -0.5, 0.2, -1.5, 0.8])
GAMED = GamedRows([0.8, 0.7, 0.3, 0.2], [-1.5, -0.8, 0.9, 1.2], [0.0, 0.5, -1.0, 1.0])
FLIPPED = GamedRows([0.2, 0.3, 0.7, 0.8], GAMED.length_gaps, GAMED.difficulty)


def controlled(
    wins: Vector = WINS, *, gamed: GamedRows = GAMED, c: float | None = 2.0
) -> LengthControlled:
    return length_controlled(wins, LENGTHS, BASELINE, difficulty=DIFFICULTY, gamed=gamed, c=c)


def minimised(c: float) -> Vector:
    """Minimise |w| + c x cross-entropy on w = u - v with u, v >= 0, where |w| is smooth."""
    gaps = (BASELINE - LENGTHS) / np.std(BASELINE - LENGTHS, ddof=1)
    own = np.column_stack([np.tanh(gaps), DIFFICULTY, np.ones(8)])
    gamed = np.column_stack([np.tanh(GAMED.length_gaps), GAMED.difficulty, np.zeros(4)])
    x, p = np.vstack([own, gamed]), np.concatenate([WINS, GAMED.preferences])
    weights = np.repeat([1, 0.1], [8, 4])

    def loss(parts: Vector) -> float:
        odds = x @ (parts[:3] - parts[3:])
        entropy = p * np.logaddexp(0, -odds) + (1 - p) * np.logaddexp(0, odds)
        return float(parts.sum() + c * (weights * entropy).sum())

    found = minimize(loss, np.full(6, 0.1), bounds=[(0, None)] * 6, tol=1e-14)
    best: Vector = found.x[:3] - found.x[3:]
    return best


@pytest.mark.parametrize("c", [0.5, 2.0, 50.0])
def test_is_the_minimum_of_the_published_loss(c: float) -> None:
    result, best = controlled(c=c), minimised(c)
    w = result.coefficients
    # liblinear stops at its own tolerance of 1e-4
    assert (w.length, w.difficulty, w.model) == pytest.approx(best, abs=5e-3)
    predicted = 1 / (1 + np.exp(-(best[1] * DIFFICULTY + best[2])))
    assert result.win_rate == pytest.approx(predicted.mean(), abs=1e-3)
    assert result.standard_error == pytest.approx(predicted.std(ddof=1) / 8**0.5, abs=1e-3)
    assert result.c == c


def test_longer_responses_that_win_lose_what_length_gave_them() -> None:
    result = controlled()
    assert result.coefficients.length < 0
    assert result.win_rate < WINS.mean()


def test_mirrored_judgements_mirror_the_win_rate() -> None:
    there, back = controlled(), controlled(1 - WINS, gamed=FLIPPED)
    assert back.win_rate == pytest.approx(1 - there.win_rate, abs=1e-6)


def test_the_baseline_is_at_one_half() -> None:
    ties = GamedRows([0.5] * 4, GAMED.length_gaps, GAMED.difficulty)
    result = length_controlled(
        [0.5] * 8, BASELINE, BASELINE, difficulty=DIFFICULTY, gamed=ties, c=2.0
    )
    assert (result.win_rate, result.standard_error) == (0.5, 0.0)
    assert result.coefficients == Coefficients()


def test_preferences_between_models_are_antisymmetric() -> None:
    a, b = Coefficients(-1.0, 0.7, 0.4), Coefficients(-2.0, 0.9, -1.1)
    there = length_controlled_preference(a, b, difficulty=DIFFICULTY)
    assert length_controlled_preference(b, a, difficulty=DIFFICULTY) == pytest.approx(1 - there)
    assert length_controlled_preference(a, a, difficulty=DIFFICULTY) == 0.5
    # sigmoid(1.5 - 0.2 d) at d = 0: 1 / (1 + e^-1.5)
    assert length_controlled_preference(a, b, difficulty=[0.0]) == pytest.approx(0.817574)


def test_against_the_baseline_it_is_the_win_rate() -> None:
    result = controlled()
    own = length_controlled_preference(result.coefficients, Coefficients(), difficulty=DIFFICULTY)
    assert own == pytest.approx(result.win_rate)


def test_cross_validation_refits_with_what_it_chose() -> None:
    chosen = controlled(c=None)
    assert any(chosen.c == pytest.approx(10.0**k) for k in np.linspace(-4, 4, 10))
    assert controlled(c=chosen.c) == chosen


@pytest.mark.parametrize("align", ["position", "instruction"])
def test_missing_rows_are_aligned_as_published_or_as_is_right(
    align: Literal["position", "instruction"],
) -> None:
    wins, rest = WINS.copy(), np.arange(8) != 2
    wins[~rest] = NAN
    holed = length_controlled(
        wins,
        np.where(rest, LENGTHS, NAN),
        BASELINE,
        difficulty=DIFFICULTY,
        gamed=GAMED,
        c=2.0,
        align=align,
    )
    # Published: the seven rows left get the first seven difficulties
    difficulty = DIFFICULTY[rest] if align == "instruction" else DIFFICULTY[:7]
    whole = length_controlled(
        WINS[rest], LENGTHS[rest], BASELINE[rest], difficulty=difficulty, gamed=GAMED, c=2.0
    )
    assert holed == whole


def test_length_gaps_by_hand() -> None:
    # Gaps 2 and -4, mean -1, sample sd sqrt((9 + 9) / 1) = 4.2426
    assert standardised_length_gaps([8, 14], [10, 10]) == pytest.approx(
        [0.47140, -0.94281], abs=1e-5
    )
    assert standardised_length_gaps([10, 10], [10, 10]).tolist() == [0.0, 0.0]
    assert standardised_length_gaps([11, 11], [10, 10]).tolist() == [-np.inf, -np.inf]


def test_wins_throughout_stay_finite() -> None:
    assert 0.9 < controlled(np.ones(8), c=1e4).win_rate <= 1


def test_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(MetricError, match=r"`preferences` must be in \[0, 1\], but example 1 is 2"):
        controlled(np.array([0.5, 2, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(MetricError, match=r"have shapes \(7,\), \(8,\) and \(8,\)"):
        controlled(WINS[:7])
    with pytest.raises(MetricError, match="same 2 or more examples, but there are 1 and 1"):
        controlled(np.array([0.5, *[NAN] * 7]))
    with pytest.raises(MetricError, match="`c` must be positive and finite, but got 0"):
        controlled(c=0)
    with pytest.raises(MetricError, match="All preferences are 1: nothing can be fitted"):
        controlled(np.ones(8), gamed=GamedRows([1.0], [0.0], [0.0]))
    with pytest.raises(MetricError, match="2 preferences, 1 length gaps and 2 difficulties"):
        GamedRows([0.5, 0.5], [1.0], [0.0, 0.0])
    with pytest.raises(MetricError, match=r"`gamed\.preferences` must be in"):
        GamedRows([1.5], [1.0], [0.0])


def test_an_unknown_alignment_is_refused() -> None:
    align: Any = "row"
    with pytest.raises(MetricError, match="must be 'position' or 'instruction', but got 'row'"):
        length_controlled(WINS, LENGTHS, BASELINE, difficulty=DIFFICULTY, gamed=GAMED, align=align)


@pytest.mark.slow
def test_replays_the_published_leaderboard() -> None:
    default = ROOT.parent / "shared" / "alpaca_eval"
    folder = Path(os.environ.get("MOA_DSPY_ALPACA_EVAL", default))
    if not (folder / "preferences.parquet").exists():
        pytest.skip(f"no recorded preferences in {folder}: set MOA_DSPY_ALPACA_EVAL")
    script = ROOT / "tests" / "bench" / "alpaca_eval_replay.py"
    out = subprocess.run(
        [sys.executable, str(script), str(folder), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(out.stdout)
    assert printed["max_abs_diff_win_rate"] < 1e-6
    assert printed["max_abs_diff_standard_error"] < 1e-6
    assert printed["max_abs_diff_lc"] < 1e-5
    assert printed["max_abs_diff_lc_cross_validated"] < 0.15

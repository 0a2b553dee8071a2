from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate import selection_optimism

Matrix = NDArray[np.float64]


def noise(n_candidates: int, n_examples: int, seed: int) -> Matrix:
    """Right-or-wrong scores of candidates that all have a true mean of 0.6."""
    generator = np.random.default_rng(seed)
    return (generator.random((n_candidates, n_examples)) < 0.6).astype(np.float64)


def test_pure_noise_gives_the_true_optimism() -> None:
    matrices = [noise(50, 200, seed) for seed in range(60)]
    true = np.mean([m.mean(axis=1).max() for m in matrices]) - 0.6
    estimate = np.mean([selection_optimism(m, n_repeats=100) for m in matrices])
    # The maximum of 50 normal errors of sd sqrt(.24 / 200) = .0346 is 2.25 sd = 7.8 points
    assert true == pytest.approx(0.078, abs=0.005)
    assert estimate == pytest.approx(true, abs=0.006)


def test_one_candidate_has_no_optimism() -> None:
    assert selection_optimism(noise(1, 200, 0)) == pytest.approx(0, abs=1e-12)


def test_a_clear_winner_has_hardly_any() -> None:
    matrix = np.vstack([noise(5, 400, 1) * 0.5, np.ones((1, 400))])
    # The winner is always picked and always scores 1: only the others' luck is left
    assert abs(selection_optimism(matrix)) < 0.005


def test_a_choice_without_looking_has_none() -> None:
    estimates = [selection_optimism(noise(20, 100, s), choose=lambda _: 7) for s in range(30)]
    assert np.mean(estimates) == pytest.approx(0, abs=0.004)


def test_choosing_by_argmax_is_the_default() -> None:
    matrix = noise(8, 60, 2)
    chosen = selection_optimism(matrix, choose=lambda means: int(means.argmax()), seed=5)
    assert chosen == selection_optimism(matrix, seed=5)
    assert chosen != selection_optimism(matrix, seed=6)


def test_two_examples_are_enough() -> None:
    assert np.isfinite(selection_optimism(np.array([[0.0, 1.0], [1.0, 0.0]]), n_repeats=1))


def test_refuses_what_cannot_be_resampled() -> None:
    with pytest.raises(MetricError, match=r"but has shape \(3, 1\)"):
        selection_optimism(np.ones((3, 1)))
    with pytest.raises(MetricError, match="must be finite, but 1 are not"):
        selection_optimism(np.array([[1.0, np.nan]]))
    with pytest.raises(MetricError, match="`n_repeats` must be at least 1, but got 0"):
        selection_optimism(np.ones((1, 2)), n_repeats=0)
    with pytest.raises(MetricError, match="an index below 2, but returned 2 to 2"):
        selection_optimism(np.ones((2, 3)), choose=lambda _: 2)

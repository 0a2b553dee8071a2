from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate import shrunk_means

Matrix = NDArray[np.float64]
NAN = float("nan")


def world(truths: list[float], n: int, seed: int, *, noise: float = 0.2) -> Matrix:
    """Scores with a strong example effect that all candidates share, and noise of their own."""
    generator = np.random.default_rng(seed)
    own = noise * generator.standard_normal((len(truths), n))
    scores: Matrix = np.array(truths)[:, None] + generator.standard_normal(n) + own
    return scores


def test_equal_means_stay_and_spread_within_noise_vanishes() -> None:
    # Rows 1010 and 0101, 1001: means all 1/2; any spread is noise
    matrix = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
    assert shrunk_means(matrix).means == pytest.approx([0.5, 0.5, 0.5])


def test_equal_truths_shrink_to_nearly_one_value() -> None:
    left = []
    for seed in range(40):
        matrix = world([0.5] * 30, 100, seed)
        left.append(shrunk_means(matrix).means.var() / matrix.mean(axis=1).var())
    # Shrunken variance over raw: 0 where the moment estimate is 0, small else
    assert np.median(left) < 0.05


def test_separated_truths_hardly_move() -> None:
    matrix = world([0.1, 0.3, 0.5, 0.7, 0.9], 400, 0)
    # sd of truths .32, of noise .01: the pull is .001
    assert shrunk_means(matrix).means == pytest.approx(matrix.mean(axis=1), abs=0.001)


def test_noise_is_the_paired_one() -> None:
    # Example effects have sd 1, own noise 0.2: the error is 0.2 / sqrt(400) = 0.01, not 0.05
    errors = shrunk_means(world([0.1, 0.3, 0.5, 0.7, 0.9], 400, 0)).standard_errors
    assert errors == pytest.approx([0.01] * 5, rel=0.1)


def test_shrinking_comes_closer_to_the_truth() -> None:
    raw, shrunk = 0.0, 0.0
    generator = np.random.default_rng(9)
    for seed in range(30):
        truths = (0.5 + 0.02 * generator.standard_normal(20)).tolist()
        matrix = world(truths, 100, seed)
        means, centre = matrix.mean(axis=1), matrix.mean() - np.mean(truths)
        raw += float(((means - centre - truths) ** 2).sum())
        shrunk += float(((shrunk_means(matrix).means - centre - truths) ** 2).sum())
    # Equal variances: the ideal pull halves the error; 20 candidates get most of that
    assert shrunk < 0.65 * raw


def test_fewer_examples_are_shrunk_more() -> None:
    matrix = world([0.0, 0.5, 1.0, 0.0, 0.5, 1.0], 200, 3, noise=1.0)
    matrix[2, 20:] = NAN
    full = world([0.0, 0.5, 1.0, 0.0, 0.5, 1.0], 200, 3, noise=1.0)
    result = shrunk_means(matrix)
    assert result.standard_errors[2] > 1.5 * result.standard_errors[5]
    assert shrunk_means(full).standard_errors == pytest.approx(result.standard_errors[5], rel=0.2)


def test_missing_cells_are_compared_on_common_examples() -> None:
    # Example effects 0, 0, 10, 10; candidate effects 0, 1, 2; no noise at all
    complete = np.array([[0.0, 0, 10, 10]]) + np.array([[0.0], [1], [2]])
    matrix = complete.copy()
    matrix[1, :2] = NAN  # saw the easy half only: its raw mean is 11
    matrix[2, 3] = NAN
    result = shrunk_means(matrix)
    assert result.means == pytest.approx(complete.mean(axis=1))
    assert result.standard_errors == pytest.approx([0, 0, 0])


def test_prior_differences_are_what_noise_shrinks_to() -> None:
    # Surprises of equal means against priors 0, .1, .2 are -.1 apart; noise here is far larger
    matrix = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
    means = shrunk_means(matrix, [0.0, 0.1, 0.2]).means
    assert means == pytest.approx([0.4, 0.5, 0.6])


def test_a_lone_candidate_keeps_its_mean() -> None:
    # Variance of 0, 1 is 1/2; over 2 examples 1/4
    result = shrunk_means(np.array([[0.0, 1.0, NAN]]))
    assert (result.means.tolist(), result.standard_errors.tolist()) == ([0.5], [0.5])


@pytest.mark.parametrize("n", [2, 3, 100, 200])
@pytest.mark.parametrize("n_candidates", [2, 3, 7, 100])
def test_errors_are_finite_and_positive(n: int, n_candidates: int) -> None:
    errors = shrunk_means(world([0.5] * n_candidates, n, 0)).standard_errors
    assert np.all(np.isfinite(errors) & (errors > 0))


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(MetricError, match="some groups share no examples"):
        shrunk_means(np.array([[1.0, 0, 1, NAN, NAN, NAN], [NAN, NAN, NAN, 1, 0, 1]]))
    with pytest.raises(MetricError, match="candidate 1 has none"):
        shrunk_means(np.array([[1.0, 0], [NAN, NAN]]))
    with pytest.raises(MetricError, match="2 scores of 2 candidates on 1 examples are too few"):
        shrunk_means(np.array([[1.0], [0.0]]))
    with pytest.raises(MetricError, match="must not be infinite, but 1 are"):
        shrunk_means(np.array([[1.0, np.inf]]))
    with pytest.raises(MetricError, match=r"but has shape \(2,\)"):
        shrunk_means(np.array([1.0, 0.0]))
    with pytest.raises(MetricError, match="one number per candidate, 2, but got 1"):
        shrunk_means(np.array([[1.0, 0], [0, 1]]), [0.5])

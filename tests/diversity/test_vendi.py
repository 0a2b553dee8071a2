"""Vendi score, by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moa_dspy.diversity import EmbeddingDistance, TfidfDistance, VendiScore
from moa_dspy.errors import MetricError

busy = settings(deadline=None)  # a busy machine is no failure
Kernel = Callable[[Sequence[str]], NDArray[np.float64]]


def entropy(*shares: float) -> float:
    return -sum(p * log(p) for p in shares)


def test_two_groups_of_copies_are_two_answers() -> None:
    # Eigenvalues 1/2, 1/2, 0, 0: VS = 2 of 4
    assert VendiScore()(["x", "x", "y", "y"]) == pytest.approx((2 - 1) / (4 - 1))


def test_groups_of_unequal_size() -> None:
    # Eigenvalues 3/4 and 1/4
    expected = (exp(entropy(3 / 4, 1 / 4)) - 1) / 3
    assert VendiScore()(["x", "x", "x", "y"]) == pytest.approx(expected)


def test_two_responses_with_a_given_kernel() -> None:
    # Eigenvalues (1 + 0.6) / 2 and (1 - 0.6) / 2
    metric = VendiScore(kernel=lambda _: np.array([[1, 0.6], [0.6, 1]]))
    assert metric(["x", "y"]) == pytest.approx(exp(entropy(0.8, 0.2)) - 1)


def test_three_equally_similar_responses() -> None:
    # Eigenvalues (1 + 2 x 0.4) / 3 and twice (1 - 0.4) / 3
    metric = VendiScore(kernel=lambda _: np.full((3, 3), 0.4) + 0.6 * np.eye(3))
    assert metric(["x", "y", "z"]) == pytest.approx((exp(entropy(0.6, 0.2, 0.2)) - 1) / 2)


@pytest.mark.parametrize(
    "kernel",
    [
        EmbeddingDistance().similarities,
        TfidfDistance().similarities,
        TfidfDistance.fitted_on(["a b", "b c"]).similarities,
    ],
)
@busy
@given(texts=st.lists(st.text("ab c!\n\ud800", max_size=8), max_size=6))
def test_the_rooms_kernels_are_kernels(kernel: Kernel, texts: list[str]) -> None:
    assert 0.0 <= VendiScore(kernel=kernel)(texts) <= 1.0
    matrix = kernel(texts)
    assert np.all(np.diag(matrix) == 1.0)
    assert np.linalg.eigvalsh(matrix).min(initial=0.0) > -1e-12


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (np.eye(3), r"shape \(2, 2\), but returned \(3, 3\)"),
        (np.array([[1, np.nan], [np.nan, 1]]), "finite"),
        (np.array([[1, 0.5], [0.5, 0.9]]), "1 between a text and itself"),
        (np.array([[1, 0.5], [0.4, 1]]), "symmetric"),
        (np.array([[1, 1.5], [1.5, 1]]), "eigenvalue -0.5; none may be below 0"),
    ],
)
def test_refuses_what_is_not_a_kernel(matrix: np.ndarray, complaint: str) -> None:
    with pytest.raises(MetricError, match=complaint):
        VendiScore(kernel=lambda _: matrix)(["x", "y"])

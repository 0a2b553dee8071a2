"""How differently agents fail, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moa_dspy.diversity import double_fault, error_correlation, pairwise_disagreement
from moa_dspy.errors import MetricError

Matrix = NDArray[np.float64]
NAN = float("nan")
# Wrong: first on examples 2, 3; second on 1, 2; third never.
SCORES = np.array([[1, 1, 0, 0.4], [1, 0, 0.2, 1], [1, 0.5, 1, 1]])
every_matrix = pytest.mark.parametrize(
    "measure", [pairwise_disagreement, double_fault, error_correlation]
)


def test_disagreement_counts_examples_where_one_is_wrong() -> None:
    # first-second: examples 1 and 3; first-third: 2 and 3; second-third: 1 and 2
    expected = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert pairwise_disagreement(SCORES).tolist() == expected


def test_double_fault_counts_examples_where_both_are_wrong() -> None:
    # first-second: example 2 of 4; the diagonal holds error rates
    assert double_fault(SCORES).tolist() == [[0.5, 0.25, 0], [0.25, 0.5, 0], [0, 0, 0]]


def test_error_correlation_of_independent_and_constant_agents() -> None:
    # first-second: both .25 = .5 x .5 -> 0; the third is never wrong -> NaN
    expected = np.array([[1, 0, NAN], [0, 1, NAN], [NAN, NAN, NAN]])
    np.testing.assert_allclose(error_correlation(SCORES), expected, atol=1e-12)


def test_error_correlation_of_opposites_is_minus_one() -> None:
    assert error_correlation(np.array([[1.0, 0, 1], [0, 1, 0]]))[0, 1] == pytest.approx(-1)


def test_error_correlation_by_hand() -> None:
    # Wrong shares 1/2 and 1/4, both 1/4: (1/4 - 1/8) / sqrt(1/4 x 3/16) = 1 / sqrt(3)
    scores = np.array([[0.0, 0, 1, 1], [0, 1, 1, 1]])
    assert error_correlation(scores)[0, 1] == pytest.approx(1 / np.sqrt(3))


def test_pairs_are_compared_on_common_examples() -> None:
    # Common: examples 0 and 2; wrong there: (no, yes) and (yes, yes)
    scores = np.array([[1, 0, 0, NAN], [0, NAN, 0, 1]])
    assert pairwise_disagreement(scores)[0, 1] == 0.5
    assert double_fault(scores)[0, 1] == 0.5


@every_matrix
def test_no_common_example_gives_nan(measure: Callable[[Matrix], Matrix]) -> None:
    assert np.isnan(measure(np.array([[1, NAN], [NAN, 0.0]]))[0, 1])


@pytest.mark.slow
@every_matrix
@given(data=st.data())
def test_is_symmetric_and_bounded(measure: Callable[[Matrix], Matrix], data: st.DataObject) -> None:
    cells = st.sampled_from([0.0, 0.3, 0.5, 1.0, NAN])
    rows = data.draw(st.lists(st.lists(cells, min_size=5, max_size=5), min_size=1, max_size=4))
    result = measure(np.array(rows))
    np.testing.assert_allclose(result, result.T)
    known = result[~np.isnan(result)]
    assert np.all((known >= -1) & (known <= 1))


@every_matrix
def test_refuses_what_is_not_a_matrix_of_scores(measure: Callable[[Matrix], Matrix]) -> None:
    with pytest.raises(MetricError, match=r"\(agents, examples\), but has shape \(2,\)"):
        measure(np.array([1.0, 0.0]))
    with pytest.raises(MetricError, match=r"in \[0, 1\], but 2.0 is not"):
        measure(np.array([[1.0, 2.0]]))

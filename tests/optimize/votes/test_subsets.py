from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.optimize.votes.smoothing import LARGEST_POOL, AnswerGroups, count_right
from tests.optimize.votes.worlds import plain_vote


def masks_of(layers: list[tuple[int, ...]]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array([sum(1 << i for i in layer) for layer in layers], np.uint32)


@given(
    st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9999)
)
def test_every_vote_of_random_tables_as_counted_in_plain_python(
    n_agents: int, n_rows: int, n_each: int, n_answers: int, seed: int
) -> None:
    # Being right is drawn per agent, so that agents of one group may differ in it
    random = np.random.default_rng(seed)
    codes = random.integers(-1, n_answers, (n_agents, n_rows * n_each)).astype(np.int16)
    right = random.random(codes.shape) < 0.5
    rows = np.arange(n_rows).repeat(n_each)
    layers = [s for k in range(1, n_agents + 1) for s in combinations(range(n_agents), k)]
    counted = count_right(AnswerGroups.of(rows, codes, right), masks_of(layers), n_rows=n_rows)
    wanted = [np.bincount(rows, plain_vote(codes, right, s), n_rows).tolist() for s in layers]
    assert counted.tolist() == wanted


def test_the_largest_pool_is_counted_exactly() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-1, 6, (LARGEST_POOL, 400)).astype(np.int16)
    right = random.random(codes.shape) < 0.5
    chosen = random.integers(1, 1 << LARGEST_POOL, 300)
    layers = [tuple(i for i in range(LARGEST_POOL) if int(m) >> i & 1) for m in chosen]
    layers += [tuple(range(LARGEST_POOL))]
    rows = np.zeros(400, np.intp)
    counted = count_right(AnswerGroups.of(rows, codes, right), masks_of(layers), n_rows=1)
    assert counted[:, 0].tolist() == [int(sum(plain_vote(codes, right, s))) for s in layers]


@pytest.mark.parametrize("n_columns", [254, 255, 256, 511, 2047, 2048, 2049, 5000])
def test_counts_beyond_a_byte_and_a_block_do_not_wrap(n_columns: int) -> None:
    codes = np.zeros((2, n_columns), np.int16)
    right = np.ones((2, n_columns), np.bool_)
    groups = AnswerGroups.of(np.zeros(n_columns, np.intp), codes, right)
    counted = count_right(groups, masks_of([(0,), (0, 1)]), n_rows=1)
    assert counted.tolist() == [[n_columns], [n_columns]]


def test_columns_in_which_nobody_is_right_are_dropped_and_count_nothing() -> None:
    codes = np.array([[0, 0, -1], [1, 0, 0]], np.int16)
    right = np.array([[0, 0, 1], [0, 1, 0]], np.bool_)
    groups = AnswerGroups.of(np.array([0, 1, 2]), codes, right)
    assert groups.rows.tolist() == [1]
    # The group {0, 1} is right by agent 1 only, and agent 0 speaks for it where both sit
    layers = masks_of([(0,), (1,), (0, 1)])
    assert count_right(groups, layers, n_rows=3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_camps_of_a_column_by_hand() -> None:
    # Agents 0, 2 and 3 agree, of whom 2 is right; agent 1 stands alone; agent 4 is silent
    codes = np.array([[5], [1], [5], [5], [-1]], np.int16)
    right = np.array([[0], [0], [1], [0], [1]], np.bool_)
    groups = AnswerGroups.of(np.array([7]), codes, right)
    assert groups.rows.tolist() == [7]
    assert groups.groups.tolist() == [[0b01101 | 0b00100 << 16, 0b00010, 0, 0, 0]]


def test_no_column_at_all_counts_nothing() -> None:
    groups = AnswerGroups.of(np.arange(0), np.zeros((2, 0), np.int16), np.zeros((2, 0), np.bool_))
    assert count_right(groups, masks_of([(0, 1)]), n_rows=2).tolist() == [[0, 0]]

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.data.splits import balanced_order
from moa_dspy.errors import StudyError
from moa_dspy.winrate.tests import look_points


def test_looks_are_at_the_ends_of_equal_blocks() -> None:
    assert look_points(200) == (40, 80, 120, 160)
    # 19 is below 20 rows
    assert look_points(99) == (39, 59, 79)
    assert look_points(24) == ()


@given(n=st.integers(1, 60), seed=st.integers(0, 9))
def test_every_row_comes_once_whatever_its_difficulty(n: int, seed: int) -> None:
    rng = random.Random(seed)
    scores = {name: [rng.choice([0.0, 1.0]) for _ in range(n)] for name in "abc"}
    assert sorted(balanced_order(scores, seed=seed)) == list(range(n))


def test_every_block_is_about_as_hard_as_all_rows() -> None:
    rng = random.Random(1)
    hard = [rng.random() for _ in range(200)]
    scores = {k: [float(rng.random() > h) for h in hard] for k in "abcdefgh"}
    means = [sum(column) / 8 for column in zip(*scores.values(), strict=True)]
    order, whole = balanced_order(scores, seed=0), sum(means) / 200
    for start in range(0, 200, 40):
        block = [means[row] for row in order[start : start + 40]]
        # Rows at random: sd of a block's mean 0.3 / sqrt(40) = 0.05
        assert sum(block) / 40 == pytest.approx(whole, abs=0.02)


def test_rows_that_all_agents_solve_are_spread_as_well() -> None:
    # 60 of 100 rows say nothing: 12 of each block of 20, one more or less
    scores = {"a": [1.0] * 60 + [0.0] * 40, "b": [1.0] * 60 + [0.0] * 40}
    order = balanced_order(scores, seed=3)
    for start in range(0, 100, 20):
        assert abs(sum(row < 60 for row in order[start : start + 20]) - 12) <= 1


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    rng = random.Random(2)
    scores = {name: [rng.random() for _ in range(50)] for name in "abc"}
    turned = {name: scores[name] for name in "cba"}
    assert balanced_order(scores, seed=1) == balanced_order(turned, seed=1)
    renamed = {"x": scores["b"], "y": scores["a"], "z": scores["c"]}
    assert balanced_order(scores, seed=1) == balanced_order(renamed, seed=1)
    assert balanced_order(scores, seed=1) != balanced_order(scores, seed=2)


def test_agents_with_fewer_rows_do_not_count() -> None:
    rng = random.Random(2)
    scores = {name: [rng.random() for _ in range(50)] for name in "ab"}
    assert balanced_order(scores | {"c": [1.0] * 20}, seed=1) == balanced_order(scores, seed=1)


def test_refuses_to_order_by_nothing() -> None:
    with pytest.raises(StudyError, match="scores of at least one single agent"):
        balanced_order({}, seed=0)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.data.splits import make_splits
from moa_dspy.errors import DataError

Make = Callable[..., Any]


def ids(rows: tuple[dspy.Example, ...]) -> list[str]:
    return [row.id for row in rows]


def test_given_splits_stay_as_they_are(rows: Make) -> None:
    splits = make_splits(rows("train", 2), rows("val", 3), rows("test", 4), seed=0)
    assert ids(splits.train) == ["train-0", "train-1"]
    assert (len(splits.val), len(splits.test)) == (3, 4)
    assert ids(splits.val) == ["val-0", "val-1", "val-2"]


def test_train_alone_is_cut_in_a_half_and_two_quarters(rows: Make) -> None:
    # 21 // 4 = 5 rows each for val and test
    splits = make_splits(rows("all", 21), None, None, seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [11, 5, 5]
    together = ids(splits.train) + ids(splits.val) + ids(splits.test)
    assert sorted(together) == sorted(ids(tuple(rows("all", 21))))


def test_a_missing_test_is_half_of_val_and_a_missing_val_half_of_train(rows: Make) -> None:
    splits = make_splits(rows("train", 2), rows("val", 7), None, seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 4, 3]
    splits = make_splits(rows("train", 7), None, rows("test", 2), seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 3, 2]


def test_the_seed_decides_the_cut(rows: Make) -> None:
    cuts = [ids(make_splits(rows("all", 40), None, None, seed=s).val) for s in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_rows_without_an_id_get_one_and_the_caller_keeps_theirs(rows: Make) -> None:
    val = [dspy.Example(question=f"q{i}", answer="x").with_inputs("question") for i in range(2)]
    splits = make_splits([], val, rows("test", 1), seed=0)
    assert ids(splits.val) == ["val-0", "val-1"]
    assert "id" not in val[0]
    assert splits.val[0].inputs().toDict() == {"question": "q0"}


@pytest.mark.parametrize(
    ("trainset", "valset", "testset", "message"),
    [
        (3, None, None, "Split 'val' is empty"),
        (0, 1, None, "Split 'test' is empty|Split 'val' is empty"),
        (0, 0, 2, "Split 'val' is empty"),
        (0, 2, 0, "Split 'test' is empty"),
    ],
)
def test_too_few_rows_are_an_error(
    rows: Make, trainset: int, valset: int | None, testset: int | None, message: str
) -> None:
    val = None if valset is None else rows("val", valset)
    test = None if testset is None else rows("test", testset)
    with pytest.raises(DataError, match=message):
        make_splits(rows("train", trainset), val, test, seed=0)


def test_overlaps_and_foreign_rows_are_errors(rows: Make) -> None:
    with pytest.raises(DataError, match="Id 'val-0' is in 'val' and in 'test'"):
        make_splits([], rows("val", 1), rows("val", 1), seed=0)
    other: Any = ["a text"]
    with pytest.raises(DataError, match=r"Row 0 of train must be a dspy\.Example, but is a str"):
        make_splits(other, rows("val", 1), rows("test", 1), seed=0)
    bare = [dspy.Example(question="?", answer="x")]
    with pytest.raises(DataError, match="Row 0 of val has no inputs; set them"):
        make_splits([], bare, rows("test", 1), seed=0)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.data import Splits, fingerprint, split_rows
from moa_dspy.errors import DataError


def row(name: str, question: str | None = None, **fields: str) -> dspy.Example:
    content = {"id": name, "question": question or f"What is {name}?", **fields}
    return dspy.Example(content).with_inputs("question")


def rows(n_rows: int) -> list[dspy.Example]:
    return [row(f"row-{number}") for number in range(n_rows)]


def ids(part: tuple[dspy.Example, ...]) -> list[str]:
    return [str(example.id) for example in part]


def test_train_may_be_empty() -> None:
    assert Splits(train=(), val=(row("a"),), test=(row("b"),)).train == ()


@pytest.mark.parametrize("empty", ["val", "test"])
def test_val_and_test_may_not_be_empty(empty: str) -> None:
    parts: dict[str, Any] = {"train": (), "val": (row("a"),), "test": (row("b"),), empty: ()}
    with pytest.raises(DataError, match=f"Split '{empty}' is empty"):
        Splits(**parts)


def test_an_id_in_two_splits_is_named() -> None:
    with pytest.raises(DataError, match="Id 'a' is in 'val' and in 'test'"):
        Splits(train=(), val=(row("a", "x"),), test=(row("a", "y"),))
    with pytest.raises(DataError, match="Id 'b' is twice in 'val'"):
        Splits(train=(), val=(row("b", "x"), row("b", "y")), test=(row("a"),))


def test_a_question_in_two_splits_is_an_overlap() -> None:
    with pytest.raises(DataError, match=r"overlap: train \('a'\) and test \('c'\) have the same"):
        Splits(train=(row("a", "Who?"),), val=(row("b"),), test=(row("c", " who? "),))


def test_a_question_may_come_twice_in_one_split() -> None:
    splits = Splits(train=(), val=(row("a", "x"), row("b", "x")), test=(row("c"),))
    assert len(splits.val) == 2


def test_rows_need_inputs_but_no_ids() -> None:
    plain = [dspy.Example(question=text).with_inputs("question") for text in "xy"]
    assert Splits(train=(), val=(plain[0],), test=(plain[1],)).val == (plain[0],)
    with pytest.raises(DataError, match=r"val \('row 1'\) has no inputs; set them"):
        Splits(train=(), val=(dspy.Example(question="x"),), test=(plain[1],))


def test_a_column_says_where_rows_go_and_keeps_their_order() -> None:
    where = ["test", "val", "train", "val"]
    splits = split_rows([row(str(i), at=name) for i, name in enumerate(where)], column="at")
    assert [ids(splits.train), ids(splits.val), ids(splits.test)] == [["2"], ["1", "3"], ["0"]]


def test_a_value_that_is_no_split_is_named() -> None:
    with pytest.raises(DataError, match=r"Row 1 \(id 'a'\): column 'at' is 'rest'; choices are tr"):
        split_rows([row("a", at="rest")], column="at")
    with pytest.raises(DataError, match="column 'at' has no value"):
        split_rows([row("a")], column="at")
    with pytest.raises(DataError, match="Row 1: column 'at' has no value"):
        split_rows([dspy.Example(question="x").with_inputs("question")], column="at")


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers())
def test_sizes_are_kept_and_no_row_is_used_twice(
    n_train: int, n_val: int, n_test: int, seed: int
) -> None:
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    splits = split_rows(rows(9), sizes=sizes, seed=seed)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (n_train, n_val, n_test)
    assert len({*ids(splits.train), *ids(splits.val), *ids(splits.test)}) == sum(sizes.values())
    assert splits == split_rows(rows(9), sizes=sizes, seed=seed)
    assert splits.n_left_out == splits.limit(n_train=0).n_left_out == 9 - sum(sizes.values())
    assert splits.with_ids() == splits


def test_another_seed_gives_other_splits() -> None:
    sizes = {"val": 10, "test": 10}
    assert split_rows(rows(20), sizes=sizes, seed=1) != split_rows(rows(20), sizes=sizes, seed=2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val": 3, "test": 2}, "`sizes` asks for 5 rows, but there are 4"),
        ({"val": 1, "test": -1}, r"`sizes\['test'\]` must be at least 0, but got -1"),
        ({"dev": 1}, "Unknown split 'dev' in `sizes`; choices are train, val, test"),
        ({"val": 2}, "Split 'test' is empty"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(sizes: Mapping[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_rows(rows(4), sizes=sizes)


def test_splitting_takes_one_way_exactly() -> None:
    with pytest.raises(DataError, match="either `column` or `sizes`"):
        split_rows(rows(4))
    with pytest.raises(DataError, match="either `column` or `sizes`"):
        split_rows(rows(4), column="split", sizes={"val": 1, "test": 1})


def test_a_limit_takes_the_first_of_each() -> None:
    splits = Splits(train=tuple(rows(9)[:3]), val=tuple(rows(9)[3:6]), test=tuple(rows(9)[6:]))
    small = splits.limit(n_train=0, n_val=2)
    assert [ids(small.train), ids(small.val)] == [[], ["row-3", "row-4"]]
    assert small.test == splits.test


@pytest.mark.parametrize("n_val", [4, -1])
def test_a_limit_beyond_the_split_is_an_error(n_val: int) -> None:
    splits = Splits(train=(), val=tuple(rows(3)), test=(row("a"),))
    with pytest.raises(DataError, match=f"between 0 and 3, the rows of 'val', but got {n_val}"):
        splits.limit(n_val=n_val)


def test_the_fingerprint_is_of_the_content() -> None:
    val, test = row("a", answer="1"), row("b")
    first = fingerprint(Splits(train=(), val=(val,), test=(test,)))
    reordered = dspy.Example(answer="1", question="What is a?", id="a").with_inputs("question")
    changed = [row("a", answer="2"), val.with_inputs("question", "answer")]
    assert len(first) == 64
    assert fingerprint(Splits(train=(), val=(reordered,), test=(test,))) == first
    assert fingerprint(Splits(train=(val,), val=(row("c"),), test=(test,))) != first
    for other in changed:
        assert fingerprint(Splits(train=(), val=(other,), test=(test,))) != first

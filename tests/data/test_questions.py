from __future__ import annotations

import dspy
import pytest

from moa_dspy.data import Splits, find_duplicates
from moa_dspy.errors import DataError


def row(name: str, question: str, **fields: str) -> dspy.Example:
    return dspy.Example(id=name, question=question, **fields).with_inputs("question")


def test_each_repeated_question_is_paired_with_the_first() -> None:
    rows = [row("a", "Who?"), row("b", "What?"), row("c", " who? "), row("d", "WHO?", answer="x")]
    assert find_duplicates(rows) == [("a", "c"), ("a", "d")]
    assert find_duplicates(rows[:2]) == []


def test_rows_without_ids_go_by_number() -> None:
    rows = [dspy.Example(q="x").with_inputs("q") for _ in range(2)]
    assert find_duplicates(rows) == [("1", "2")]


def test_splits_refuse_a_question_that_is_written_a_little_otherwise() -> None:
    a, b = [row("a", "Who is  it?")], [row("b", "who is it?")]
    with pytest.raises(DataError, match="Splits overlap"):
        Splits(train=(), val=tuple(a), test=tuple(b))


def test_a_row_without_inputs_is_named() -> None:
    with pytest.raises(DataError, match=r"Row 2 \('b'\) has no inputs"):
        find_duplicates([row("a", "x"), dspy.Example(id="b", question="y")])

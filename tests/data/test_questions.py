from __future__ import annotations

import dspy
import pytest

from moa_dspy.data import Splits, find_duplicates, find_overlap
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


def test_overlap_names_the_row_of_either_side() -> None:
    a = [row("a1", "Who?"), row("a2", "What?"), row("a3", "Who?")]
    b = [row("b1", "Where?"), row("b2", "who?"), row("b3", "what?"), row("b4", "who?")]
    assert find_overlap(a, b) == [("a1", "b2"), ("a2", "b3"), ("a1", "b4")]
    assert find_overlap(a, []) == []


def test_overlap_is_what_splits_refuse() -> None:
    a, b = [row("a", "Who is  it?")], [row("b", "who is it?")]
    assert find_overlap(a, b)
    with pytest.raises(DataError, match="Splits overlap"):
        Splits(train=(), val=tuple(a), test=tuple(b))


def test_a_row_without_inputs_is_named() -> None:
    with pytest.raises(DataError, match=r"Row 2 \('b'\) has no inputs"):
        find_duplicates([row("a", "x"), dspy.Example(id="b", question="y")])

"""Questions that are the same but for blanks and case are found, in one set or between two."""

from __future__ import annotations

import json
from collections.abc import Sequence

import dspy

from moa_dspy.errors import DataError


def find_duplicates(rows: Sequence[dspy.Example]) -> list[tuple[str, str]]:
    """Every row that repeats an earlier question, as (id of the first that asks it, its own id).

    Args:
        rows: Examples with inputs; a row without `id` goes by its number, from 1.

    Raises:
        DataError: A row has no inputs set.
    """
    firsts: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for key, name in _keys(rows):
        if key in firsts:
            pairs.append((firsts[key], name))
        else:
            firsts[key] = name
    return pairs


def find_overlap(a: Sequence[dspy.Example], b: Sequence[dspy.Example]) -> list[tuple[str, str]]:
    """Every row of `b` whose question is in `a`, as (id of the first in `a`, id in `b`).

    The same questions count as equal that `Splits` would refuse in two splits.

    Raises:
        DataError: A row has no inputs set.
    """
    firsts: dict[str, str] = {}
    for key, name in _keys(a):
        firsts.setdefault(key, name)
    return [(firsts[key], name) for key, name in _keys(b) if key in firsts]


def question_key(example: dspy.Example, place: str) -> str:
    """Return all inputs as one text, without what does not make another question.

    Raises:
        DataError: The example has no inputs set; `place` says which it is.
    """
    try:
        inputs = example.inputs()
    except ValueError as error:
        raise DataError(f"{place} has no inputs; set them with `.with_inputs(...)`.") from error
    folded = {key: " ".join(str(value).split()).casefold() for key, value in inputs.items()}
    return json.dumps(folded, sort_keys=True)


def _keys(rows: Sequence[dspy.Example]) -> list[tuple[str, str]]:
    """The question and the id of each row."""
    keys: list[tuple[str, str]] = []
    for number, example in enumerate(rows, start=1):
        name = str(example.get("id", number))
        keys.append((question_key(example, f"Row {number} ({name!r})"), name))
    return keys

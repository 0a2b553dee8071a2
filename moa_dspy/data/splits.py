"""Splits of rows into train, val and test without common questions, and the check for overlaps.

Questions are equal if they differ only in blanks and case. Prompts are tuned on train, a search
uses val, and test is read once, after the pick.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Final

import dspy

from moa_dspy.data.tables import is_absent, plain_text
from moa_dspy.errors import DataError, StudyError

_logger = logging.getLogger(__name__)


def find_duplicates(rows: Sequence[dspy.Example]) -> list[tuple[str, str]]:
    """Return the rows that repeat a question, as (id of the first such row, own id).

    Args:
        rows: Examples with inputs; a row without `id` is named by its number, from 1.

    Raises:
        DataError: If a row has no inputs set.
    """
    firsts: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for key, name in _keys(rows):
        if key in firsts:
            pairs.append((firsts[key], name))
        else:
            firsts[key] = name
    return pairs


def without_repeated(rows: Sequence[dspy.Example], source: str) -> list[dspy.Example]:
    """Return the rows with new questions; the number of the others is logged.

    Args:
        rows: Examples with inputs and ids.
        source: Name of the rows in the message.
    """
    repeated = {name for _, name in find_duplicates(rows)}
    if repeated:
        _logger.warning(
            "%s: %d of %d rows are left out, because an earlier row has the same inputs.",
            source, len(repeated), len(rows),
        )  # fmt: skip
    return [row for row in rows if str(row.id) not in repeated]


def question_key(example: dspy.Example, place: str) -> str:
    """Return all inputs as one text, without differences in blanks and case.

    Raises:
        DataError: If the example has no inputs set; `place` names it in the message.
    """
    try:
        inputs = example.inputs()
    except ValueError as error:
        raise DataError(f"{place} has no inputs; set them with `.with_inputs(...)`.") from error
    folded = {key: " ".join(str(value).split()).casefold() for key, value in inputs.items()}
    return json.dumps(folded, sort_keys=True)


def _keys(rows: Sequence[dspy.Example]) -> list[tuple[str, str]]:
    """Return the question and the id of each row."""
    keys: list[tuple[str, str]] = []
    for number, example in enumerate(rows, start=1):
        name = str(example.get("id", number))
        keys.append((question_key(example, f"Row {number} ({name!r})"), name))
    return keys


_NAMES = ("train", "val", "test")
_SHOWN_VALUES: Final = 5
_WRITTEN: Final = {name: name for name in _NAMES} | {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("dev", "development", "valid", "validation"), "val"),
    **dict.fromkeys(("testing",), "test"),
}
"""Other names of the splits in tables, as data sets on the hub have them."""


def split_of(value: Any) -> str | None:
    """Return the split that a cell names, in any case; None if it names none."""
    return _WRITTEN.get(value.strip().casefold()) if isinstance(value, str) else None


def split_fault(values: Sequence[Any]) -> str | None:
    """Return a column's values, with what they lack to divide the rows; None if they do divide."""
    texts = {"" if is_absent(value) else plain_text(value): split_of(value) for value in values}
    lists = {
        "missing": [split for split in ("val", "test") if split not in texts.values()],
        "unknown": [repr(text) for text, split in texts.items() if split is None],
    }
    faults = [f"{key}: {', '.join(held[:_SHOWN_VALUES])}" for key, held in lists.items() if held]
    shown = ", ".join([repr(text) for text in texts][:_SHOWN_VALUES])
    return f"{shown} ({'; '.join(faults)})" if faults else None


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows of train, val and test without common ids or questions; val and test are not empty.

    Attributes:
        train: Rows on which prompts are tuned; may be empty.
        val: Rows that a search uses.
        test: Rows that are read once, after the pick.
        n_left_out: Number of rows that the sizes of the splits left out of all three.

    Raises:
        DataError: `val` or `test` is empty, an example has no inputs set, an id comes twice, or
            the inputs of two splits overlap (blanks and case aside).
    """

    train: tuple[dspy.Example, ...]
    val: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]
    n_left_out: int = 0

    def __post_init__(self) -> None:
        check_disjoint({name: getattr(self, name) for name in _NAMES}, may_be_empty="train")

    def check_inputs(self, names: Collection[str], *, of: str) -> None:
        """Check that every row has these inputs; DSPy would only warn, and send empty ones.

        Args:
            names: Inputs that are needed.
            of: What needs them, as the error begins.

        Raises:
            DataError: If a row lacks one.
        """
        for split in _NAMES:
            for row in getattr(self, split):
                if missing := [name for name in names if name not in row.inputs()]:
                    raise DataError(
                        f"{of} has the input {missing[0]!r}, but row {row.id!r} of {split} has "
                        f"only {', '.join(sorted(row.inputs().keys()))}."
                    )

    def limit(
        self, *, n_train: int | None = None, n_val: int | None = None, n_test: int | None = None
    ) -> Splits:
        """Return the first n rows of each split, in order; None keeps all rows.

        Raises:
            DataError: If n is negative or larger than the split.
        """
        sizes = {"train": n_train, "val": n_val, "test": n_test}
        parts: dict[str, tuple[dspy.Example, ...]] = {}
        for split, n_rows in sizes.items():
            rows: tuple[dspy.Example, ...] = getattr(self, split)
            if n_rows is not None and not 0 <= n_rows <= len(rows):
                raise DataError(
                    f"`n_{split}` must be between 0 and {len(rows)}, the rows of {split!r}, "
                    f"but got {n_rows}."
                )
            parts[split] = rows[:n_rows]
        return replace(self, train=parts["train"], val=parts["val"], test=parts["test"])

    def with_ids(self) -> Splits:
        """Return the splits with a text as the id of each row, which a row without one gets."""
        train, val, test = (tuple(with_ids(getattr(self, name), name)) for name in _NAMES)
        return replace(self, train=train, val=val, test=test)


def split_rows(
    rows: Sequence[dspy.Example],
    *,
    column: str | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Splits:
    """Split rows by a column, or at random into splits of the given sizes.

    Args:
        rows: Any examples with inputs; `column` keeps their order, `sizes` does not.
        column: A field whose value is train, val or test. Either this or `sizes`.
        sizes: Split -> number of rows; a split that is not named gets none.
        seed: Seed of the permutation; equal seeds and rows give equal splits. Not used with
            `column`.

    Raises:
        DataError: If both or neither of `column` and `sizes` are given, a value or a name is not a
            split, `sizes` exceed the rows, or the splits are not valid `Splits`.
    """
    if (column is None) == (sizes is None):
        raise DataError("Give either `column` or `sizes`, and not both.")
    if column is not None:
        parts = _parts_of_column(rows, column)
    else:
        parts = _random_parts(rows, dict(sizes or {}), seed)
    train, val, test = (tuple(parts[split]) for split in _NAMES)
    n_left_out = len(rows) - len(train) - len(val) - len(test)
    return Splits(train, val, test, n_left_out=n_left_out)


def fingerprint(splits: Splits) -> str:
    """Return the sha256, in hex, of all fields of all rows in order."""
    content = [
        [split, [[_content(example), sorted(example.inputs().keys())] for example in rows]]
        for split, rows in ((split, getattr(splits, split)) for split in _NAMES)
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(example: dspy.Example) -> dict[str, Any]:
    return dict(example.items())


def check_disjoint(splits: Mapping[str, Sequence[dspy.Example]], *, may_be_empty: str) -> None:
    """Check that no id and no question is in two splits, and that they have rows.

    Raises:
        DataError: If a split other than ``may_be_empty`` has no row, an example has no inputs
            set, an id comes twice, or the inputs of two splits overlap (blanks and case aside).
    """
    places: dict[str, str] = {}
    questions: dict[str, tuple[str, str]] = {}
    for split, rows in splits.items():
        if not rows and split != may_be_empty:
            raise DataError(f"Split {split!r} is empty, but it must have at least one row.")
        for number, example in enumerate(rows, start=1):
            _check_id(example, split, places)
            place = f"{split} ({example.get('id', f'row {number}')!r})"
            first_split, first = questions.setdefault(question_key(example, place), (split, place))
            if first_split != split:
                raise DataError(
                    f"Splits overlap: {first} and {place} have the same inputs. Keep one of them; "
                    "in a study file `data.drops_repeated = true` keeps the first."
                )


def _check_id(example: dspy.Example, split: str, places: dict[str, str]) -> None:
    name = example.get("id", None)
    if name is None:
        return
    if str(name) in places:
        first = places[str(name)]
        where = f"twice in {split!r}" if first == split else f"in {first!r} and in {split!r}"
        raise DataError(f"Id {name!r} is {where}.")
    places[str(name)] = split


def _parts_of_column(rows: Sequence[dspy.Example], column: str) -> dict[str, list[dspy.Example]]:
    parts: dict[str, list[dspy.Example]] = {split: [] for split in _NAMES}
    for number, example in enumerate(rows, start=1):
        value = example.get(column, None)
        if (split := split_of(value)) is None:
            named = f" (id {example['id']!r})" if "id" in example else ""
            shown = "has no value" if value is None else f"is {value!r}"
            raise DataError(
                f"Row {number}{named}: column {column!r} {shown}; choices are {', '.join(_NAMES)}."
            )
        parts[split].append(example)
    return parts


def _random_parts(
    rows: Sequence[dspy.Example], sizes: Mapping[str, int], seed: int
) -> dict[str, list[dspy.Example]]:
    for split, n_rows in sizes.items():
        if split not in _NAMES:
            raise DataError(f"Unknown split {split!r} in `sizes`; choices are {', '.join(_NAMES)}.")
        if n_rows < 0:
            raise DataError(f"`sizes[{split!r}]` must be at least 0, but got {n_rows}.")
    if sum(sizes.values()) > len(rows):
        raise DataError(f"`sizes` asks for {sum(sizes.values())} rows, but there are {len(rows)}.")
    left = random.Random(seed).sample(rows, len(rows))
    parts: dict[str, list[dspy.Example]] = {}
    for split in _NAMES:
        n_rows = sizes.get(split, 0)
        parts[split], left = left[:n_rows], left[n_rows:]
    return parts


def make_splits(
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    testset: Sequence[dspy.Example] | None,
    *,
    seed: int,
) -> Splits:
    """Return train, val and test; missing splits are cut from the others, by seed.

    Without a ``valset``, half of the train rows stay and a quarter each becomes val
    and test; without a ``testset``, half of val is kept back for it.

    Raises:
        DataError: If rows are too few, share an id, or occur in two splits.
    """
    train, val, test = list(trainset), list(valset or ()), list(testset or ())
    rng = random.Random(f"splits-{seed}")
    if valset is None:
        rng.shuffle(train)
        n = len(train) // 4 if testset is None else len(train) // 2
        val, train = train[:n], train[n:]
        if testset is None:
            test, train = train[:n], train[n:]
    elif testset is None:
        rng.shuffle(val)
        test, val = val[: len(val) // 2], val[len(val) // 2 :]
    named = {"train": train, "val": val, "test": test}
    train_rows, val_rows, test_rows = (tuple(with_ids(named[name], name)) for name in _NAMES)
    return Splits(train_rows, val_rows, test_rows)


def with_ids(rows: Sequence[dspy.Example], split: str) -> list[dspy.Example]:
    """Return copies of the rows with texts as ids; new ids contain the split's name.

    Raises:
        DataError: If a row is not an example, or has no inputs.
    """
    named = []
    for number, row in enumerate(rows):
        if not isinstance(row, dspy.Example):
            kind = type(row).__name__
            raise DataError(f"Row {number} of {split} must be a dspy.Example, but is a {kind}.")
        has_id = row.get("id", None) is not None
        try:
            inputs = row.inputs().keys()
        except ValueError as error:
            raise DataError(
                f"Row {number} of {split} has no inputs; set them with `.with_inputs(...)`."
            ) from error
        copy = row.copy(id=str(row.id) if has_id else f"{split}-{number}")
        named.append(copy.with_inputs(*inputs))
    return named


_GOLDEN: Final = (sqrt(5) - 1) / 2


def balanced_order(scores: Mapping[str, Sequence[float]], *, seed: int) -> tuple[int, ...]:
    """Return an order of rows in which every prefix has about the same difficulty.

    The difficulty of a row is the mean score of the single agents. Rows sorted by it are drawn
    along a golden-ratio sequence: of any run of neighbours in difficulty, a prefix holds its share
    of the rows up to a number that grows like log n (Kuipers & Niederreiter 1974, ch. 2), so no
    number of strata has to be chosen. Only single agents are used, all in the same way, and no row
    is left out, so the order favours no architecture.

    Args:
        scores: Scores of each agent on the rows, in their order. An agent with fewer rows than the
            others does not count: its rows would look harder, or easier, than the rest.
        seed: Seed for ties between equally difficult rows, and for the start of the sequence.

    Raises:
        StudyError: If there is no score.
    """
    n_rows = max(map(len, scores.values()), default=0)
    if n_rows == 0:
        raise StudyError("Rows can only be ordered by the scores of at least one single agent.")
    whole = [values for _, values in sorted(scores.items()) if len(values) == n_rows]
    rng = random.Random(f"blocks-{seed}")
    means = [round(sum(column) / len(whole), 12) for column in zip(*whole, strict=True)]
    ties = rng.sample(range(n_rows), n_rows)
    by_difficulty = sorted(range(n_rows), key=lambda row: (means[row], ties[row]))
    start = rng.random()
    places = {row: (start + rank * _GOLDEN) % 1.0 for rank, row in enumerate(by_difficulty)}
    return tuple(sorted(range(n_rows), key=places.__getitem__))


def with_turns(splits: Splits, field: str) -> Splits:
    """Return the splits with the turns of conversations, in ``field``, as the input.

    Raises:
        DataError: If a row has no list of turns.
    """
    for row in (*splits.train, *splits.val, *splits.test):
        if not isinstance(row.get(field, None), list | tuple) or not row[field]:
            raise DataError(
                f"`task.turns`: row {row.id!r} has no list of turns in {field!r}; it has "
                f"{', '.join(map(str, row.keys()))}."
            )
    train, val, test = (
        tuple(row.with_inputs(field) for row in getattr(splits, name)) for name in _NAMES
    )
    return replace(splits, train=train, val=val, test=test)

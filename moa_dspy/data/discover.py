"""The profile of a new table: columns for questions and answers, and faulty rows."""

from __future__ import annotations

import json
import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from moa_dspy.data.answers import normalise_answer, normalise_text
from moa_dspy.data.splits import split_of
from moa_dspy.data.tables import Record, accepted_answers, holds_answer, is_absent, plain_text
from moa_dspy.errors import DataError

INPUT_NAMES: Final = frozenset(
    {"article", "body", "choices", "comment", "content", "context", "description", "document"}
    | {"email", "input", "instruction", "message", "options", "passage", "premise", "hypothesis"}
    | {"problem", "prompt"}
    | {"query", "question", "request", "review", "sentence", "source", "subject", "text", "ticket"}
    | {"title", "tweet", "utterance"}
)
"""Usual names of columns with questions."""
OUTPUT_NAMES: Final = frozenset(
    {"answer", "answers", "category", "class", "completion", "expected", "gold", "intent", "label"}
    | {"output", "reference", "response", "result", "score", "sentiment", "solution", "target"}
    | {"topic", "y"}
)
"""Usual names of columns with right answers."""
ID_NAMES: Final = frozenset({"", "id", "idx", "index", "no", "nr", "split", "uuid"})
"""Names of columns that identify a row."""
SPLITS: Final = ("train", "val", "test")
_TAKEN: Final = frozenset(
    {"config", "copy", "demos", "get", "inputs", "items", "keys", "labels", "lm", "references"}
    | {"signature", "toDict", "values", "with_inputs", "without", "split", "id"}
)
"""Names reserved by methods of ``dspy.Example`` and by this library."""
MOST_CHOICES: Final = 12
"""Most distinct answers of a column that is treated as a choice."""
MOST_ROWS: Final = {"val": 200, "test": 300}
"""Rows per split in the study file for a large table."""
SMALLEST_TABLE: Final = 8
"""Fewest rows for a study."""
FEW_ROWS: Final = 100
"""Rows below which a verdict is rarely possible."""


@dataclass(frozen=True, slots=True)
class TableProfile:
    """A table whose columns have no roles yet.

    Attributes:
        source: Name of the table in errors.
        columns: Names of the columns, in the table's order.
        values: The cells of each column, in the rows' order; None for a missing cell.
    """

    source: str
    columns: tuple[str, ...]
    values: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, records: Sequence[Record], source: str) -> TableProfile:
        """Return the profile of a table.

        Raises:
            DataError: If it has fewer rows than a study needs.
        """
        if len(records) < SMALLEST_TABLE:
            raise DataError(
                f"{source} has {len(records)} rows, but a study needs at least {SMALLEST_TABLE}, "
                f"and about {FEW_ROWS} for a verdict."
            )
        columns = tuple(dict.fromkeys(name for _, row in records for name in row))
        values = {name: [row.get(name) for _, row in records] for name in columns}
        return cls(source, columns, values)

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return len(self.values[self.columns[0]])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, without missing cells."""
        for row in zip(*(self.values[name] for name in self.columns), strict=True):
            yield {
                n: value for n, value in zip(self.columns, row, strict=True) if value is not None
            }

    def flat(self, names: Sequence[str]) -> TableProfile | None:
        """Return the profile with a column ``outer.inner`` for each key of an object in a cell.

        None if there is no object, or if it is not needed, as the table already has columns of
        these names and a column named like right answers, which may be objects.
        """
        profile = TableProfile.of([("", dict(_flat(row))) for row in self.rows()], self.source)
        is_named = any(name in profile.columns and name not in self.columns for name in names)
        is_called = any(_words(name) & OUTPUT_NAMES for name in self.candidates)
        is_needed = is_named or not (names or is_called)
        return profile if is_needed and profile.columns != self.columns else None

    @property
    def split_column(self) -> str | None:
        """The column with train, val or test in every row, if there is one."""
        for name in self.columns:
            held = set(map(split_of, self.values[name]))
            if {"val", "test"} <= held <= set(SPLITS):
                return name
        return None

    @property
    def candidates(self) -> tuple[str, ...]:
        """Possible input or output columns: neither an id nor a split, nor empty."""
        return tuple(
            name
            for name in self.columns
            if name.strip().casefold() not in ID_NAMES
            and name != self.split_column
            and any(map(holds_answer, self.values[name]))
        )

    def guess_output(self) -> str | None:
        """Return the only column named like right answers, or the last of two."""
        named = [name for name in self.candidates if _words(name) & OUTPUT_NAMES]
        if len(named) == 1:
            return named[0]
        exact = [name for name in named if name.strip().casefold() in OUTPUT_NAMES]
        if len(exact) == 1:
            return exact[0]
        return self.candidates[-1] if not named and len(self.candidates) == 2 else None

    def guess_inputs(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """Return the columns named like questions, or the only remaining column; else none.

        With a question, the columns whose names are right answers, such as A to D, are its options.
        """
        left = [name for name in self.candidates if name not in outputs]
        answers = {plain_text(value) for name in outputs for value in self.values[name]}
        named = [name for name in left if _words(name) & INPUT_NAMES]
        options = [name for name in left if name in answers] if named else []
        shown = [name for name in left if name in {*named, *options}]
        return tuple(left if len(left) == 1 else shown)

    def check_columns(self, names: Sequence[str], option: str) -> None:
        """Check that the table has these columns.

        Raises:
            DataError: If a column is missing; the message names the option and the columns.
        """
        for name in names:
            if name not in self.columns:
                raise DataError(
                    f"`{option}` {name!r} is not a column of {self.source}; it has "
                    f"{', '.join(self.columns)}."
                )


_AMOUNT: Final = re.compile(
    r"([$\u20ac\u00a3\u00a5]?) ?[-+]?\d[\d.,]* ?(%|[$\u20ac\u00a3\u00a5]|[^\W\d_]{1,12})?"
    r"|[-+]([$\u20ac\u00a3\u00a5])\d[\d.,]*|[.,]\d+"
)
"""A number, perhaps with a currency or a unit."""
_ACCEPTED: Final = frozenset({"answer_start", "aliases"})
"""Keys of the accepted answers to a question in the forms of SQuAD and TriviaQA."""
_SEPARATED: Final = re.compile(r"\s*[,;|]\s*")


def _words(column: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).casefold()))


def field_names(columns: Sequence[str]) -> dict[str, str]:
    """Return a signature field for each column: the column's own name if possible."""
    fields: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"\W+", "_", column.strip(), flags=re.ASCII).strip("_") or "column"
        name = f"n{name}" if name[0].isdigit() else name
        name = name if name == column else name.lower()
        while keyword.iskeyword(name) or name in _TAKEN or name in fields.values():
            name += "_text"
        fields[column] = name
    return fields


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """The kind of one column's right answers, with fitting settings.

    Attributes:
        metric: Name of a metric.
        normalise: Comparison of answers in a vote.
        instruction: The end of the task's instructions.
        choices: All distinct answers, if they are few.
    """

    metric: str
    normalise: str
    instruction: str
    choices: tuple[str, ...] = ()

    def task(self, input_columns: Sequence[str], output_columns: Sequence[str]) -> str:
        """Return the task's instructions for output columns that are all of this kind.

        A choice is worded as a question: SmolLM2-135M found the mood of 18 of 20 reviews with a
        question, and of none with the instruction to give it.

        Args:
            input_columns: Input columns.
            output_columns: Output columns, with right answers.
        """
        asked = [column for column in input_columns if column not in self.choices]
        of, names = (" and the ".join(map(_bare, columns)) for columns in (asked, output_columns))
        if not self.choices or len(output_columns) > 1:
            return f"Give the {names}. {self.instruction}"
        *others, last = self.choices
        shown = f"{', '.join(others)} or {last}" if others else last
        return f"What is the {names} of the {of}: {shown}? Answer with one of these."


def _bare(column: str) -> str:
    return column.rpartition(".")[2].strip(" ?!:*#") or column


def answer_kind(values: Sequence[Any]) -> AnswerKind:
    """Return the kind of the answers in a column; empty cells are ignored."""
    held = [value for value in values if holds_answer(value)]
    if labels := _labels(held):
        return AnswerKind("labels", "text", f"Reply with all that apply of: {', '.join(labels)}.")
    if are_alternatives(held):
        return answer_kind([value[0] for value in held])
    if held and all(isinstance(v, dict) and _ACCEPTED & v.keys() for v in held):
        return answer_kind([accepted_answers(value)[0] for value in held])
    texts = [plain_text(value) for value in held if not isinstance(value, list | dict)]
    if len(texts) < len(held) or (texts and all(map(_is_object, texts))):
        return AnswerKind("json_match", "text", "Reply with JSON only.")
    distinct = Counter(map(normalise_text, texts))
    if all(amounts := [_AMOUNT.fullmatch(text.strip()) for text in texts]):
        units = {"".join(filter(None, found.groups())) for found in amounts if found}
        if units <= {"", "%"} or len(units) == 1:
            unit = f" in {units.pop()}" if units.isdisjoint({"", "%"}) else ""
            return AnswerKind("numeric_match", "answer", f"Reply with the number{unit} only.")
    if len(distinct) <= min(MOST_CHOICES, len(texts) // 2) and max(map(len, texts)) <= 40:
        shown = sorted({text.strip() for text in texts}, key=str.casefold)
        instruction = f"Reply with one of: {', '.join(shown)}."
        # Models put a choice into a sentence, whose last word identifies it if all choices end
        # differently.
        has_own_end = len(set(map(normalise_answer, shown))) == len(distinct)
        return AnswerKind("choice", "answer" if has_own_end else "text", instruction, tuple(shown))
    if fmean(len(text.split()) for text in texts) <= 4:
        return AnswerKind("exact_match", "text", "Reply with the answer only.")
    return AnswerKind("f1", "text", "Reply with the answer only.")


def _labels(held: Sequence[Any]) -> tuple[str, ...]:
    """Return the labels of cells that hold several of a few; () for other cells."""
    lists = [value if isinstance(value, list) else None for value in held]
    if not any(lists):
        if all(isinstance(value, str) and _AMOUNT.fullmatch(value.strip()) for value in held):
            return ()
        lists = [_SEPARATED.split(value) if isinstance(value, str) else None for value in held]
    if any(cell is None or any(isinstance(item, list | dict) for item in cell) for cell in lists):
        return ()
    items = Counter(plain_text(item).strip() for cell in lists for item in cell or ())
    n_lists = sum(len(cell or ()) > 1 for cell in lists)
    # Alternatives of one answer, and words of a sentence, hardly recur in other rows.
    recur = len(items) <= MOST_CHOICES and min(items.values(), default=0) > 2
    # A choice may hold a comma, but then its parts occur only together.
    is_mixed = len({tuple(map(plain_text, cell or ())) for cell in lists}) > len(items)
    is_label = recur and is_mixed and max(map(len, items)) <= 40 and n_lists > len(held) / 5
    return tuple(sorted(items)) if is_label else ()


def are_alternatives(values: Sequence[Any]) -> bool:
    """Return whether cells are lists of texts or numbers, each of which is accepted."""
    held = [value for value in values if holds_answer(value)]
    return (
        bool(held)
        and not _labels(held)
        and all(
            isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
            for value in held
        )
    )


def _flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def split_sizes(n_rows: int) -> dict[str, int]:
    """Return the most rows per split: two fifths for val, the rest for test, none for train."""
    val = min(MOST_ROWS["val"], 2 * n_rows // 5)
    return {"val": val, "test": min(MOST_ROWS["test"], n_rows - val)}


@dataclass(frozen=True, slots=True)
class TableFaults:
    """Counts of faults in a table's rows.

    Attributes:
        n_rows: All rows.
        n_blank: Rows without a right answer.
        n_repeated: Rows with the question of an earlier row.
        n_contradicting: Repeated rows with another right answer.
        commonest: The most common right answer.
        n_commonest: Rows with that answer.
    """

    n_rows: int
    n_blank: int
    n_repeated: int
    n_contradicting: int
    commonest: str
    n_commonest: int

    @classmethod
    def of(
        cls, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> TableFaults:
        """Count the faults of rows.

        Args:
            inputs: The inputs of each row.
            outputs: The right answers of each row.
        """
        firsts: dict[tuple[str, ...], tuple[str, ...]] = {}
        n_blank = n_repeated = n_contradicting = 0
        answers: Counter[tuple[str, ...]] = Counter()
        for row, right in zip(inputs, outputs, strict=True):
            answer = tuple(normalise_text(plain_text(value)) for value in right.values())
            if not all(map(holds_answer, right.values())):
                n_blank += 1
                continue
            answers[answer] += 1
            key = tuple(" ".join(str(value).split()).casefold() for value in row.values())
            if key in firsts:
                n_repeated += 1
                n_contradicting += firsts[key] != answer
            firsts.setdefault(key, answer)
        commonest, n = answers.most_common(1)[0] if answers else ((), 0)
        return cls(len(inputs), n_blank, n_repeated, n_contradicting, ", ".join(commonest), n)

    @property
    def n_usable(self) -> int:
        """Rows with a right answer and a new question."""
        return self.n_rows - self.n_blank - self.n_repeated

    def lines(self) -> Iterator[str]:
        """Yield a line for each fault."""
        n_rows, other = self.n_rows, self.n_contradicting
        if self.n_blank:
            yield f"Rows without a right answer, which are left out: {self.n_blank} of {n_rows}."
        if self.n_repeated:
            yield f"Rows that ask what an earlier row asks, which are left out: {self.n_repeated}."
        if other:
            yield f"Of these, rows with another right answer than the earlier one: {other}."
        n_labelled = self.n_rows - self.n_blank
        if n_labelled and self.n_commonest == n_labelled:
            yield (
                f"All {n_labelled} right answers are {self.commonest!r}: nothing can be compared "
                "on such rows."
            )
        elif n_labelled and self.n_commonest > 0.9 * n_labelled:
            yield (
                f"{self.n_commonest} of {n_labelled} right answers are {self.commonest!r}: a "
                "program that always gives this answer is hard to beat."
            )
        if self.n_usable < FEW_ROWS:
            yield (
                f"Rows that can be used: {self.n_usable}. This is few: a verdict becomes likely "
                f"with about {FEW_ROWS} or more."
            )


def shown_cell(value: Any, *, longest: int = 40) -> str:
    """Return the beginning of a cell, for a user who must choose a column's role."""
    text = " ".join(plain_text(value).split()) if not is_absent(value) else ""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

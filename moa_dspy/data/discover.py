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
from moa_dspy.data.rows import is_incomplete
from moa_dspy.data.splits import split_fault, split_of
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

    def as_json_lines(self) -> tuple[TableProfile, str]:
        """Return the profile of a JSONL file of the rows, and its text: half a letter escaped."""
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in self.rows()]
        profile = TableProfile.of([("", json.loads(line)) for line in lines], self.source)
        return profile, "\n".join(lines).encode("utf-8", "backslashreplace").decode() + "\n"

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
        return next((n for n in self.columns if split_fault(self.values[n]) is None), None)

    def split_of_rows(
        self, rows: Sequence[int], roles: Sequence[str]
    ) -> tuple[str | None, str | None]:
        """Return the column that divides rows into splits, and a note on one that almost does.

        Args:
            rows: Numbers of the rows that a study can use.
            roles: Columns that are inputs or outputs.
        """
        note = None
        for name in (name for name in self.columns if name not in roles):
            fault = split_fault([self.values[name][row] for row in rows])
            if fault is None:
                return name, None
            n_named = len({*map(split_of, self.values[name])} - {None})
            if note is None and (n_named > 1 or name.strip().casefold() == "split"):
                note = (
                    f"Column {name!r} is not used, as its values in the rows to use are {fault}: "
                    "val and test are drawn from all rows, also from those that it marks as test."
                )
        return None, note

    @property
    def id_fault(self) -> str | None:
        """The reason why a column ``id`` does not identify the rows; None if it does."""
        ids = self.values.get("id", ())
        if any(map(is_absent, ids)):
            return "has no value in some rows"
        counts = Counter(map(plain_text, ids)).most_common(1)
        return next((f"is {name!r} in {n} rows" for name, n in counts if n > 1), None)

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
        """
        asked = [column for column in input_columns if column not in self.choices]
        of, names = (" and the ".join(map(_bare, columns)) for columns in (asked, output_columns))
        if not self.choices or len(output_columns) > 1:
            return f"Give the {names}. {self.instruction}"
        *others, last = self.choices
        shown = f"{', '.join(others)} or {last}" if others else last
        return f"What is the {names} of the {of}: {shown}? Answer with one of these."


def _bare(column: str) -> str:
    name = " ".join(column.split())
    return name.rpartition(".")[2].strip(" ?!:*#") or name


def answer_kind(columns: Mapping[str, Sequence[Any]]) -> AnswerKind:
    """Return the kind of the answers in columns; empty cells are ignored.

    Raises:
        DataError: If no metric compares them all, as objects are mixed with texts.
    """
    kinds = {_kind_of(values, name) for name, values in columns.items()}
    if len(kinds) == 1:
        return kinds.pop()
    cells = [value for values in columns.values() for value in values]
    if "json_match" in {kind.metric for kind in kinds} and any(isinstance(c, dict) for c in cells):
        raise DataError(
            f"The columns {', '.join(map(repr, columns))} have objects and other answers, and no "
            "metric compares both: give fewer of them with --output."
        )
    return AnswerKind("exact_match", "text", "Reply with the answers only.")


def _kind_of(values: Sequence[Any], column: str) -> AnswerKind:
    held = [value for value in values if holds_answer(value)]
    if labels := _labels(held):
        return AnswerKind("labels", "text", f"Reply with all that apply of: {', '.join(labels)}.")
    is_squad = bool(held) and all(isinstance(v, dict) and _ACCEPTED & v.keys() for v in held)
    if is_squad or are_alternatives(held):
        return _kind_of([accepted_answers(value)[0] for value in held], column)
    texts = [plain_text(value) for value in held if not isinstance(value, list | dict)]
    if len(texts) < len(held) or (texts and {*map(_json_type, texts)} <= {dict, list}):
        if wrong := _no_json(held):
            raise DataError(
                f"Column {column!r} mixes objects or nested lists with texts that are not JSON, "
                f"such as {shown_cell(wrong[0])!r}: no metric compares both."
            )
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
    """Return whether cells are lists of texts or numbers, each of which is accepted.

    Other cells may be texts and numbers, if these are not all JSON, as lists are.
    """
    held = [value for value in values if holds_answer(value)]
    lists = [value for value in held if isinstance(value, list)]
    items = [item for cell in held for item in (cell if isinstance(cell, list) else [cell])]
    is_flat = bool(lists) and not any(isinstance(item, list | dict) for item in items)
    is_mixed = len(lists) < len(held)
    return is_flat and not _labels(held) and (not is_mixed or bool(_no_json(held)))


def _no_json(held: Sequence[Any]) -> list[str]:
    return [text for text in held if isinstance(text, str) and _json_type(text) is None]


def _flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _json_type(text: str) -> type | None:
    try:
        return type(json.loads(text))
    except (ValueError, RecursionError):
        return None


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
        n_unasked: Other rows without a question.
        n_repeated: Rows with the question of an earlier row.
        n_contradicting: Repeated rows with another right answer.
        commonest: The most common right answer.
        n_commonest: Rows with that answer.
        usable: Numbers, from 0, of the rows with a right answer and a new question.
    """

    n_rows: int
    n_blank: int
    n_unasked: int
    n_repeated: int
    n_contradicting: int
    commonest: str
    n_commonest: int
    usable: tuple[int, ...]

    @classmethod
    def of(
        cls, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> TableFaults:
        """Count the faults of rows, given the inputs and the right answers of each row."""
        firsts: dict[tuple[str, ...], tuple[str, ...]] = {}
        usable: list[int] = []
        n_blank = n_unasked = n_contradicting = 0
        answers: Counter[tuple[str, ...]] = Counter()
        for number, (row, right) in enumerate(zip(inputs, outputs, strict=True)):
            if not all(map(holds_answer, right.values())):
                n_blank += 1
                continue
            if is_incomplete(row, inputs=[*row], outputs=()):
                n_unasked += 1
                continue
            answer = tuple(normalise_text(plain_text(value)) for value in right.values())
            answers[answer] += 1
            key = tuple(" ".join(str(value).split()).casefold() for value in row.values())
            if key not in firsts:
                usable.append(number)
            n_contradicting += firsts.setdefault(key, answer) != answer
        commonest, n = answers.most_common(1)[0] if answers else ((), 0)
        n_repeated = answers.total() - len(usable)
        return cls(
            len(inputs), n_blank, n_unasked, n_repeated, n_contradicting,
            ", ".join(commonest), n, tuple(usable),
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Yield a line for each fault."""
        n_rows, other = self.n_rows, self.n_contradicting
        if self.n_blank:
            yield f"Rows without a right answer, which are left out: {self.n_blank} of {n_rows}."
        if self.n_unasked:
            yield f"Rows without a question, which are left out: {self.n_unasked} of {n_rows}."
        if self.n_repeated:
            yield f"Rows that ask what an earlier row asks, which are left out: {self.n_repeated}."
        if other:
            yield f"Of these, rows with another right answer than the earlier one: {other}."
        n_labelled = len(self.usable) + self.n_repeated
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
        if len(self.usable) < FEW_ROWS:
            yield (
                f"Rows that can be used: {len(self.usable)}. This is few: a verdict becomes likely "
                f"with about {FEW_ROWS} or more."
            )


def shown_cell(value: Any, *, longest: int = 40) -> str:
    """Return the beginning of a cell, for a user who must choose a column's role."""
    text = " ".join(plain_text(value).split()) if not is_absent(value) else ""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

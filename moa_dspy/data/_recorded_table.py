"""A table of responses becomes `RecordedResponses`, or one line says what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moa_dspy.data._files import SUFFIXES, find_file, records_of
from moa_dspy.data._recorded import RecordedResponses
from moa_dspy.errors import DataError

_NOT_IN_A_NAME = re.compile(r"[\s>+*()]+")


def read_recorded(
    path: Path,
    *,
    question: str,
    model: str | Sequence[str],
    response: str,
    score: str | None = None,
    preference: str | None = None,
    questions: Path | None = None,
    text: str = "question",
) -> RecordedResponses:
    """Every row of the table is one model's response to one question.

    Args:
        path: A Parquet, CSV, JSONL or JSON table; or a folder with a table `responses`.
        question: Column of the question's id.
        model: Column of the model's name; or, of a table with one row per question, the
            columns of its models, whose cells are responses or objects that hold them.
            Blanks and the signs of an architecture's notation in a name become "-".
        response: Column (or key of such an object) of the response; null is none given.
        score: Column of the response's score in [0, 1]; true and false are 1 and 0.
        preference: Column of a preference over a baseline in [0, 1], instead of `score`.
        questions: Table with one row per question; default: `questions` in the folder of a
            `path` that is a folder.
        text: Column of the question's text, in the questions table or in the responses'.

    Raises:
        DataError: A file cannot be read, lacks a column, has a model answer a question
            twice, or holds a score that is no number in [0, 1].
    """
    if score is not None and preference is not None:
        raise DataError("Give either `score` or `preference`, and not both.")
    path = Path(path)
    if questions is None and any((path / f"questions{suffix}").is_file() for suffix in SUFFIXES):
        questions = find_file(path, "questions")
    file = find_file(path, "responses")
    models = () if isinstance(model, str) else tuple(model)
    table = _Table(question, str(model), response, score or preference, text)
    for where, row in records_of(file):
        for cells in _long(row, models, table):
            table.add(cells, f"{file}, {where}")
    if questions is not None:
        table.describe(Path(questions))
    return RecordedResponses(table.responses, table.questions, table.columns, table.scores)


@dataclass(slots=True)
class _Table:
    """Column names, and what the rows so far hold."""

    question: str
    model: str
    response: str
    score: str | None
    text: str
    responses: dict[str, dict[str, str | None]] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], place: str) -> None:
        """Take one response in."""
        name = str(_cell(row, self.question, place))
        model = _NOT_IN_A_NAME.sub("-", str(_cell(row, self.model, place)).strip())
        given = self.responses.setdefault(model, {})
        if name in given:
            raise DataError(f"{place}: {model} answers question {name!r} a second time.")
        value = _cell(row, self.response, place)
        given[name] = None if value is None else str(value)
        self.questions.setdefault(name, str(row.get(self.text) or name))
        if self.score is None:
            return
        score = _score(_cell(row, self.score, place), self.score, place)
        if score is not None:
            self.scores[name, model] = score

    def describe(self, path: Path) -> None:
        """Take the questions table in; a question that nobody answered is left out."""
        texts: dict[str, str] = {}
        for where, row in records_of(path):
            name = str(_cell(row, self.question, f"{path}, {where}"))
            if name in self.questions:
                texts[name] = str(row.get(self.text) or name)
                self.columns[name] = {k: v for k, v in row.items() if k != self.question}
        if missing := self.questions.keys() - texts.keys():
            raise DataError(f"{path} lacks question {min(missing)!r}, which models answer.")
        self.questions = texts


def _long(
    row: Mapping[str, Any], models: Sequence[str], table: _Table
) -> Iterator[Mapping[str, Any]]:
    """One mapping per response: the row itself, or one per column that is a model."""
    if not models:
        yield row
        return
    rest = {name: value for name, value in row.items() if name not in models}
    for model in models:
        cell = row.get(model)
        held = cell if isinstance(cell, Mapping) else {table.response: cell}
        yield {**rest, **held, table.model: model}


def _cell(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DataError(f"{place}: no column {column!r}; the row has {', '.join(map(str, row))}.")
    return row[column]


def _score(value: Any, column: str, place: str) -> float | None:
    """The score as a number, None where there is none."""
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not -1e-9 <= score <= 1 + 1e-9:
        raise DataError(f"{place}: {column!r} must be a number in [0, 1], but is {value!r}.")
    # Means of floats stray by a rounding error; beyond that it is another scale.
    return min(max(score, 0.0), 1.0)

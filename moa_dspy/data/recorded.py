"""Recorded responses of models with scores and costs, and readers of tables of them."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import dspy

from moa_dspy.data.tables import (
    SUFFIXES,
    cost_in,
    find_file,
    is_absent,
    is_container,
    plain_text,
    records_of,
    score_in,
)
from moa_dspy.errors import DataError, MetricError


@dataclass(frozen=True, slots=True)
class RecordedCost:
    """The cost of one recorded response; None for values that the table lacks."""

    usd: float | None = None
    seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedResponses:
    """Responses of several models to the same questions, some with scores.

    `moa_dspy.testing.recorded_pool` makes agents from it.

    Attributes:
        responses: Model -> question id -> response; None if the model gave none.
        questions: Question id -> its text; without a text in the table, the id.
        columns: Question id -> its other columns in the questions table.
        scores: (question id, model) -> score, or preference over a baseline, in [0, 1].
        costs: (question id, model) -> cost of the response, if known.

    Raises:
        DataError: If there is no response, a response is to an unknown question, or a score is not
            a number in [0, 1].
    """

    responses: Mapping[str, Mapping[str, str | None]] = field(repr=False)
    questions: Mapping[str, str] = field(repr=False)
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    scores: Mapping[tuple[str, str], float] = field(default_factory=dict, repr=False)
    costs: Mapping[tuple[str, str], RecordedCost] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not any(self.responses.values()):
            raise DataError("A recording must hold at least one response, but got none.")
        for model, responses in self.responses.items():
            if unknown := responses.keys() - self.questions.keys():
                raise DataError(
                    f"{model} answers question {min(unknown)!r}, which is not among the questions."
                )
        for (name, model), score in self.scores.items():
            if not (math.isfinite(score) and 0 <= score <= 1):
                raise DataError(
                    f"The score of {model} on question {name!r} must be in [0, 1], but is {score}."
                )

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the table's order."""
        return tuple(self.responses)

    def knows(self, cost: str) -> bool:
        """Return whether all responses have this kind of cost: ``usd``, ``seconds``, ..."""
        n = sum(map(len, self.responses.values()))
        return n == sum(getattr(record, cost) is not None for record in self.costs.values())

    def examples(self, *, columns: Mapping[str, str] | None = None) -> list[dspy.Example]:
        """Return an example for every question for which all models have a row, in table order.

        Args:
            columns: Field name -> column of the questions table, if they differ.

        Returns:
            Examples with `id`, the input `question`, and the questions table's columns.

        Raises:
            DataError: If a question lacks one of the `columns`.
        """
        names = dict(columns or {})
        complete = set.intersection(*(set(responses) for responses in self.responses.values()))
        self._note_incomplete([name for name in self.questions if name not in complete])
        rows: list[dspy.Example] = []
        for name, text in self.questions.items():
            if name not in complete:
                continue
            cells = dict(self.columns.get(name, {}))
            if missing := [column for column in names.values() if column not in cells]:
                raise DataError(f"Question {name!r} has no column {missing[0]!r}.")
            renamed = {target: cells.pop(column) for target, column in names.items()}
            content = {**cells, **renamed, "id": name, "question": text}
            rows.append(dspy.Example(content).with_inputs("question"))
        return rows

    def _note_incomplete(self, names: Sequence[str]) -> None:
        if names:
            lacking = [model for model in self.models if names[0] not in self.responses[model]]
            _logger.warning(
                "Questions left out, as not every agent has an answer with a score to them: %d of "
                "%d, such as %r, which lacks %s.",
                len(names), len(self.questions), names[0], ", ".join(lacking[:3]),
            )  # fmt: skip

    def with_questions(
        self, rows: Sequence[dspy.Example], *, question: str = "question"
    ) -> RecordedResponses:
        """Return the same responses with the questions' texts from these examples, by id.

        For rows of another reader, which may add options or a task to the question.

        Raises:
            DataError: If no example has the id of a recorded question.
        """
        texts = {str(row.get("id", None)): str(row[question]) for row in rows}
        shared = {name: text for name, text in texts.items() if name in self.questions}
        if not shared:
            raise DataError("No example has the id of a recorded question.")
        return replace(self, questions={**self.questions, **shared})

    def metric(self, *, answer: str = "answer") -> Callable[..., float]:
        """Return a DSPy metric that gives the recorded score of the chosen answer.

        The answer of a known agent has that agent's score; it may lack the thought and the end
        tokens of the recorded response, which an agent does not return. Any other text has the mean
        score of the models that gave it, ignoring outer blanks.

        Args:
            answer: Field of the prediction with the answer.

        Raises:
            MetricError: When called, if no model gave this answer, or it has no score.
        """
        by_text = self._by_text()

        def recorded_score(
            example: dspy.Example,
            prediction: dspy.Prediction,
            trace: Any = None,
            pred_name: str | None = None,
            pred_trace: Any = None,
        ) -> float:
            reply, author = prediction[answer], _author(prediction)
            name, text = str(example.id), "" if is_absent(reply) else plain_text(reply).strip()
            rest = iter(self.responses.get(author, {}).get(name) or "")
            # What an agent returns is its response without some parts: their order is kept.
            if text and (name, author) in self.scores and all(c in rest for c in text):
                return self.scores[name, author]
            if not (scores := by_text.get((name, text), [])):
                raise MetricError(
                    f"Example {name!r}: no score is recorded for the answer {text[:60]!r}."
                )
            return sum(scores) / len(scores)

        return recorded_score

    def _by_text(self) -> dict[tuple[str, str], list[float]]:
        """Return the scores by (question id, stripped response)."""
        by_text: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (name, model), score in self.scores.items():
            text = self.responses.get(model, {}).get(name)
            if text is not None:
                by_text[name, text.strip()].append(score)
        return by_text


def _author(prediction: dspy.Prediction) -> str:
    """Return the agent whose response a mixture returned; "" for other programs."""
    return str(getattr(getattr(getattr(prediction, "mixture", None), "final", None), "agent", ""))


_logger = logging.getLogger(__name__)

_NOT_IN_A_NAME = re.compile(r"[\s>+*()]+")


def read_recorded(
    path: Path | str,
    *,
    question: str,
    model: str | Sequence[str],
    response: str,
    score: str | None = None,
    preference: str | None = None,
    questions: Path | None = None,
    text: str = "question",
) -> RecordedResponses:
    """Return the responses of a table with one row per model and question.

    A cell has no value if it is null, NaN, pandas' NA or blank.

    Args:
        path: A Parquet, CSV, JSONL or JSON table; or a folder with a table `responses`.
        question: Column of the question's id.
        model: Column of the model's name; or, of a table with one row per question, the columns of
            its models, whose cells are responses or objects that hold them. Blanks and signs of the
            architecture notation in a name become "-".
        response: Column (or key of such an object) of the response; no value means no response.
        score: Column of the response's score in [0, 1]; true and false are 1 and 0, as texts too.
            NaN is allowed only without a response, and means no score.
        preference: Column of a preference over a baseline in [0, 1], instead of `score`.
        questions: Table with one row per question; default: `questions` in the folder of a
            `path` that is a folder.
        text: Column of the question's text, in the questions or the responses table.

    Raises:
        DataError: If a file cannot be read, lacks a column, a name or an id, has two answers of a
            model to a question, two models whose names become equal, a response that is a list, or
            a score that is not a number in [0, 1].
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
    if unknown := set(models) - table.seen.keys():
        present = ", ".join(map(repr, table.seen))
        raise DataError(f"{file}: no column {min(unknown)!r} for a model; the rows have {present}.")
    if questions is not None:
        table.describe(Path(questions))
    return RecordedResponses(table.responses, table.questions, table.columns, table.scores)


NEEDED: Final = ("question", "agent", "answer")
GRADED: Final = ("score", "gold")
MEASURED: Final = ("usd", "seconds", "prompt_tokens", "completion_tokens")
ANSWER_COLUMNS: Final = (*NEEDED, *GRADED, *MEASURED, "split")
"""Columns of a table of answers; ``score`` or ``gold`` is required, the last five are optional."""


def read_answers(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    matches: Callable[[Any, str], float] | None = None,
) -> RecordedResponses:
    """Return the content of a table of (question, agent, answer, score or gold, costs).

    Args:
        path: A Parquet, CSV, JSONL or JSON table; one row per answer.
        columns: One of ``ANSWER_COLUMNS`` -> the table's column, if they differ.
        matches: Function of gold and answer to the score; required for a table without scores.

    Raises:
        DataError: As ``read_recorded``; or if a column is missing: the message names the columns
            found, the columns required, and the option for other names.
    """
    path, named = Path(path), dict(columns or {})
    if unknown := named.keys() - set(ANSWER_COLUMNS):
        raise DataError(
            f"`columns` has an unknown key {min(unknown)!r}; known ones are "
            f"{', '.join(ANSWER_COLUMNS)}."
        )
    records = list(records_of(path))
    # A row of JSON may lack a key, which is a cell without a value.
    header = dict.fromkeys(name for _, row in records for name in row)
    rows = [(f"{path}, {where}", {**header, **row}) for where, row in records]
    names = _found_columns(path, header, named)
    table = _Table(names["question"], names["agent"], names["answer"], names.get("score"), "")
    costs: dict[tuple[str, str], RecordedCost] = {}
    for place, row in rows:
        table.add(row, place)
        name, agent = _name(row, names["question"], place), table.agent_of(row, place)
        measured: dict[str, Any] = {
            key: cost_in(row[column], f"{place}: {column!r}", is_count=key.endswith("tokens"))
            for key, column in names.items()
            if key in MEASURED
        }
        costs[name, agent] = RecordedCost(**measured)
        for key in ("gold", "split"):
            if key in names and (value := _text(row, names[key], place, key)) is not None:
                first = table.columns.setdefault(name, {}).setdefault(key, value)
                _agree(first, value, key=key, place=place)
    scores = table.scored(costs) if "score" in names else _matched(table, path, matches)
    used = costs if any(key in names for key in MEASURED) else {}
    return RecordedResponses(table.responses, table.questions, table.columns, scores, used)


def _found_columns(path: Path, row: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str]:
    """Return the table's column for each of ``ANSWER_COLUMNS`` that it has."""
    known = {c.strip().casefold(): c for c in reversed([*row])} | {c: c for c in row}
    columns = {key: known.get(name := named.get(key, key), name) for key in ANSWER_COLUMNS}
    present = {key: column for key, column in columns.items() if column in row}
    missing = [key for key in (*NEEDED, *named) if key not in present]
    if missing or not present.keys() & set(GRADED):
        names = ", ".join(dict.fromkeys(missing)) or "score or gold"
        raise DataError(
            f"{path}: no column for {names}. A table of answers needs question, agent, answer, "
            f"and score or gold; it may have {', '.join((*MEASURED, 'split'))}. Found: "
            f"{', '.join(map(str, row)) or 'no row'}. If its columns have other names, give "
            'these in `data.columns`, such as { question = "question_id", agent = "model" }. Each '
            "row is one answer: make a table with a column per agent long first (pandas: `melt`)."
        )
    return present


def _matched(
    table: _Table, path: Path, matches: Callable[[Any, str], float] | None
) -> dict[tuple[str, str], float]:
    if matches is None:
        raise DataError(
            f"{path} has no column `score`, so it needs a metric that compares answers with `gold`."
        )
    scores: dict[tuple[str, str], float] = {}
    for name in table.questions:
        gold = table.columns.get(name, {}).get("gold")
        if gold is None:
            raise DataError(f"{path}: question {name!r} has no gold.")
        for agent, responses in table.responses.items():
            if (answer := responses.get(name)) is not None:
                scores[name, agent] = matches(gold, answer)
    return scores


def _agree(first: Any, value: Any, *, key: str, place: str) -> None:
    if first != value:
        raise DataError(
            f"{place}: all rows of a question must have the same {key}, but have {first!r} and "
            f"{value!r}."
        )


@dataclass(slots=True)
class _Table:
    """Column names, and the content of the rows read so far."""

    question: str
    model: str
    response: str
    score: str | None
    text: str
    responses: dict[str, dict[str, str | None]] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[tuple[str, str], float] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], place: str) -> None:
        """Add one response."""
        name, model = _name(row, self.question, place), self.agent_of(row, place)
        responses = self.responses.setdefault(model, {})
        if name in responses:
            raise DataError(
                f"{place}: {model} answers question {name!r} a second time: keep one, or give "
                f"each sample an agent of its own, such as {model + '-2'!r}."
            )
        responses[name] = _text(row, self.response, place)
        self._ask(name, row)
        if self.score is None:
            return
        cell, where = _cell(row, self.score, place), f"{place}: {self.score!r}"
        score = score_in(cell, where, has_response=responses[name] is not None)
        if score is not None:
            self.scores[name, model] = score

    def scored(self, costs: dict[tuple[str, str], RecordedCost]) -> dict[tuple[str, str], float]:
        """Return the scores; remove answers without one, as if the table had no row for them."""
        for model, responses in self.responses.items():
            for name in [key for key, text in responses.items() if text is not None]:
                if (name, model) not in self.scores:
                    del responses[name]
                    costs.pop((name, model), None)
        return self.scores

    def agent_of(self, row: Mapping[str, Any], place: str) -> str:
        """Return the model of a row, as a valid name in architectures."""
        written = _name(row, self.model, place).strip()
        model = _NOT_IN_A_NAME.sub("-", written)
        first = self.names.setdefault(model, written)
        if first != written:
            raise DataError(f"{place}: models {first!r} and {written!r} would both be {model!r}.")
        return model

    def _ask(self, name: str, row: Mapping[str, Any]) -> None:
        text = row.get(self.text) if self.text else None
        self.questions.setdefault(name, name if is_absent(text) else plain_text(text))

    def describe(self, path: Path) -> None:
        """Add the questions table, without questions that no model answered."""
        answered = self.questions
        self.questions = {}
        for where, row in records_of(path):
            name = _name(row, self.question, f"{path}, {where}")
            if name in answered:
                self._ask(name, row)
                self.columns[name] = {k: v for k, v in row.items() if k != self.question}
        if missing := answered.keys() - self.questions.keys():
            raise DataError(f"{path} lacks question {min(missing)!r}, which models answer.")


def _long(
    row: Mapping[str, Any], models: Sequence[str], table: _Table
) -> Iterator[Mapping[str, Any]]:
    """Yield one mapping per response: the row itself, or one per model column."""
    if not models:
        yield row
        return
    table.seen.update(dict.fromkeys(row))
    rest = {name: value for name, value in row.items() if name not in models}
    for model in models:
        cell = row.get(model)
        held = cell if isinstance(cell, Mapping) else {table.response: cell}
        yield {**rest, **held, table.model: model}


def _cell(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise DataError(f"{place}: no column {column!r}; the row has {', '.join(map(str, row))}.")
    return row[column]


def _name(row: Mapping[str, Any], column: str, place: str) -> str:
    value = _cell(row, column, place)
    if is_absent(value) or is_container(value):
        shown = "a list or an object" if is_container(value) else "missing"
        raise DataError(f"{place}: {column!r} must be a name, but is {shown}.")
    return plain_text(value)


def _text(row: Mapping[str, Any], column: str, place: str, kind: str = "") -> Any:
    value = _cell(row, column, place)
    is_list = is_container(value)
    if is_list and kind != "gold":  # which may be a list of right answers
        raise DataError(f"{place}: {column!r} must be a text, but is {value!r:.60}.")
    return value if is_list else None if is_absent(value) else plain_text(value)

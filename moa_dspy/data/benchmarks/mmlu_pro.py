"""The letter that a response settles on, A to J."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import Record, find_file, records_of
from moa_dspy.data.values import is_absent, plain_text
from moa_dspy.errors import DataError, MetricError

_LETTERS = "ABCDEFGHIJ"
_ORIGIN = BenchmarkOrigin(
    "TIGER-Lab/MMLU-Pro", ("test", "validation"), "https://arxiv.org/abs/2406.01574"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MMLUPro(Benchmark):
    """Questions with up to ten options: `question`, `answer`, `options`, `category`, `source`.

    The question shows the options, lettered; the answer is a letter.
    A folder has a table `questions`, or `test` as on the hub; its right letters are in
    `gold` or `answer`. Marks in columns `revised` and `repeated` are read; without these
    columns, questions that occur twice with the same options are found.

    Attributes:
        keep_flagged: Whether questions are kept that were corrected after models had answered,
            or that occur twice.
        keep_textless: Whether questions are kept whose text the source lacks, for replays of
            recorded letters; their id stands for the text.
    """

    name: str = "mmlu_pro"
    title: str = "MMLU-Pro, multiple choice among up to ten options"
    origin: BenchmarkOrigin = _ORIGIN
    licence: str = "MIT (the data set's card)"
    scoring: str = (
        'Share of questions whose letter is right. `mmlu_pro_match` reads "answer is (X)", then '
        '"Answer: X", then the last letter that stands alone; a response without one is wrong, '
        "where the official script guesses."
    )
    citation: str = (
        "Wang et al., MMLU-Pro: A More Robust and Challenging Multi-Task Language Understanding "
        "Benchmark, 2024, arXiv:2406.01574"
    )
    inputs: tuple[str, ...] = ("question",)
    metric: str | None = "mmlu_pro_match"
    keep_flagged: bool = False
    keep_textless: bool = False

    def _hub(self, split: str | None) -> Iterator[Record]:
        # Not super(): a dataclass with slots is another class than the one it was written as.
        return _marked(Benchmark._hub(self, split))

    def _local(self, source: Path, split: str | None) -> Iterator[Record]:
        file = find_file(source, *([split] if split else ["questions", "test"]))
        return _marked(records_of(file))

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any] | None:
        columns, name = row.columns, str(row.columns.get("question_id", number))
        has_text = columns.get("has_text") is not False
        is_flagged = columns.get("revised") or columns.get("repeated")
        if (is_flagged and not self.keep_flagged) or not (has_text or self.keep_textless):
            return None
        return {
            "id": name,
            "question": _lettered(row) if has_text else f"{self.name} question {name}",
            "answer": row.text("gold", "answer"),
            "options": columns.get("options"),
            "category": columns.get("category"),
            "source": columns.get("source", columns.get("src")),
        }


def _lettered(row: PublishedRow) -> str:
    """The question, then one option per line: "A. ...".

    Raises:
        DataError: There are no options, or more than ten.
    """
    options = row.texts("options")
    if not 1 <= len(options) <= len(_LETTERS):
        raise DataError(f"{row.place}: 'options' must be 1 to 10 texts, but are {len(options)}.")
    lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return "\n".join([row.text("question"), "Options:", *lines])


def _marked(records: Iterable[Record]) -> Iterator[Record]:
    """Mark repeated questions where the source does not."""
    rows = list(records)
    counts = Counter(_content(row) for _, row in rows)
    for where, row in rows:
        is_repeated = row.get("question") is not None and counts[_content(row)] > 1
        yield where, {"repeated": is_repeated, **row}


def _content(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("question")), str(row.get("options"))


_PATTERNS = (
    re.compile(r"(?i:answer is)[\s:*]*\(?([A-J])\b"),
    re.compile(r"(?i:answer)\s*:[\s*]*\(?([A-J])\b"),
)
_LETTER = re.compile(r"(?<![\w'])[A-J](?![\w'])")


def answer_letter(text: str) -> str | None:
    """The option a response chooses, or None if it names none.

    In this order, as the benchmark's own script does: the first "answer is (X)", since base
    models run on into questions of their own; else the first "Answer: X"; else the last
    capital A to J that stands alone, so that a stray "I" may count as option I.
    """
    for pattern in _PATTERNS:
        if found := pattern.search(text):
            return found[1]
    alone = _LETTER.findall(text)
    return alone[-1] if alone else None


def mmlu_pro_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if the letter of `prediction.answer` is `example.answer`, else 0.0; none is wrong.

    A response without a letter scores 0; the benchmark's own script guesses at random there.

    Args:
        example: Has a field `answer`, a letter A to J.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.

    Raises:
        MetricError: The right answer is no letter A to J.
    """
    if not re.fullmatch("[A-J]", str(example.answer)):
        raise MetricError(f"The right answer must be a letter A to J, but is {example.answer!r}.")
    given = "" if is_absent(prediction.answer) else plain_text(prediction.answer)
    return float(answer_letter(given) == example.answer)

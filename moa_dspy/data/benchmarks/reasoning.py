"""Benchmarks whose answers can be checked: GSM8K, BIG-Bench Hard and MMLU-Pro."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.answers import normalise_text
from moa_dspy.data.rows import Benchmark, BenchmarkOrigin, PublishedRow, hub_records
from moa_dspy.data.tables import (
    Record,
    accepted_answers,
    find_file,
    is_absent,
    plain_text,
    records_of,
)
from moa_dspy.errors import DataError, MetricError

_NUMBER = re.compile(
    r"(?:(?<![\w)\].%])(?P<minus>[-\u2212]))?"  # a sign, not the minus of "5-3"
    r"(?:[$\u00a3\u00a5\u20ac]\s?(?P<late_minus>[-\u2212])?)?"  # "$-5" as well as "-$5"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.(?P<part>[0-9]+))?"
)


def last_number(text: str) -> str | None:
    """Return the last number of the text in canonical spelling, or None.

    Thousands commas (also LaTeX's ``{,}``), currency signs, a trailing point and idle zeros
    are left out: "$1,200.50." and "1200.5" are both "1200.5".
    """
    plain = unicodedata.normalize("NFKC", text).replace("{,}", ",").replace("\\", "")
    matches = [m for m in _NUMBER.finditer(plain) if m["whole"] or m["part"]]
    if not matches:
        return None
    number = matches[-1]
    # As text: a float would round, and int() refuses more than 4300 digits.
    whole = (number["whole"] or "0").replace(",", "").lstrip("0") or "0"
    part = (number["part"] or "").rstrip("0")
    value = f"{whole}.{part}" if part else whole
    is_negative = bool(number["minus"] or number["late_minus"]) and value != "0"
    return f"-{value}" if is_negative else value


def gsm8k_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """Return 1.0 if the last number of `prediction.answer` is that of `example.answer`, else 0.0.

    So the answer may be a whole solution; a text without a number is wrong.

    Args:
        example: Has a field `answer` with a number, or a list of accepted numbers.
        prediction: Has a field `answer`; None and other types are converted to text.
        trace: Not used; present for DSPy's optimizers, like the next two.
        pred_name: Not used.
        pred_trace: Not used.

    Raises:
        MetricError: If the right answer contains no number.
    """
    rights = [last_number(plain_text(right)) for right in accepted_answers(example.answer)]
    if None in rights:
        raise MetricError(f"The right answer must hold a number, but is {example.answer!r}.")
    return float(last_number(plain_text(prediction.answer)) in rights)


_ANNOTATION = re.compile(r"<<[^<>]*>>")
_GSM8K = BenchmarkOrigin(
    "openai/gsm8k", ("test", "train"), "https://arxiv.org/abs/2110.14168", config="main"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GSM8K(Benchmark):
    """Grade-school word problems: `question`, `answer` (a number), `rationale` (how to get it).

    A folder has test.jsonl and train.jsonl (or a file that starts with the split's name);
    ids are "test-1", "train-1", ... in file order.
    """

    name: str = "gsm8k"
    title: str = "GSM8K, grade-school mathematics word problems"
    origin: BenchmarkOrigin = _GSM8K
    licence: str = "MIT"
    scoring: str = (
        "Share of problems whose final number is right. `gsm8k_match` compares the last number of "
        "the response with the number after ####, whatever commas and currency signs it has."
    )
    citation: str = (
        "Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021, arXiv:2110.14168"
    )
    inputs: tuple[str, ...] = ("question",)
    metric: str | None = "gsm8k_match"

    def _local(self, source: Path, split: str | None) -> Iterable[Record]:
        return records_of(find_file(source, split or self.origin.splits[0]))

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        solution, mark, final = row.text("answer").rpartition("####")
        answer = last_number(final)
        if not mark or answer is None:
            raise DataError(f"{row.place}: 'answer' must end in '#### ' and a number.")
        return {
            "id": f"{split or self.origin.splits[0]}-{number + 1}",
            "question": row.text("question"),
            "answer": answer,
            "rationale": _ANNOTATION.sub("", solution).strip(),
        }


TASKS = (
    *("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa"),
    *("dyck_languages", "formal_fallacies", "geometric_shapes", "hyperbaton"),
    *("logical_deduction_five_objects", "logical_deduction_seven_objects"),
    *("logical_deduction_three_objects", "movie_recommendation", "multistep_arithmetic_two"),
    *("navigate", "object_counting", "penguins_in_a_table", "reasoning_about_colored_objects"),
    *("ruin_names", "salient_translation_error_detection", "snarks", "sports_understanding"),
    *("temporal_sequences", "tracking_shuffled_objects_five_objects"),
    *("tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects"),
    *("web_of_lies", "word_sorting"),
)
_BBH = BenchmarkOrigin("lukaemon/bbh", TASKS, "https://arxiv.org/abs/2210.09261")


@dataclass(frozen=True, slots=True, kw_only=True)
class BigBenchHard(Benchmark):
    """Tasks that models once found hard: `question`, `answer`, `task`. Its splits are its tasks.

    Without a split all tasks are read: the 27 of the hub, or those of a folder, each in a file with
    the task's name. Ids are "hyperbaton-1", ... per task.
    """

    name: str = "bbh"
    title: str = "BIG-Bench Hard"
    origin: BenchmarkOrigin = _BBH
    licence: str = "MIT"
    scoring: str = (
        "Exact match per task, then the mean over tasks. `bbh_match` compares what follows "
        '"answer is", or the last line; of an option only its letter, "(B)".'
    )
    citation: str = (
        "Suzgun et al., Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them, "
        "2022, arXiv:2210.09261"
    )
    inputs: tuple[str, ...] = ("question",)
    metric: str | None = "bbh_match"

    def _hub(self, split: str | None) -> Iterator[Record]:
        for task in (split,) if split else self.origin.splits:
            records = hub_records(self.origin.repository, config=task, split="test")
            yield from _named(task, records)

    def _local(self, source: Path, split: str | None) -> Iterator[Record]:
        if not source.is_dir() or split is not None:
            file = find_file(source, split or "")
            yield from _named(split or file.stem, records_of(file))
            return
        files = {file.stem: file for file in sorted(source.iterdir()) if file.stem in TASKS}
        if not files:
            raise DataError(f"{source} has no file with a task's name, such as {TASKS[0]}.json.")
        for task, file in files.items():
            yield from _named(task, records_of(file))

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        return {
            "id": row.text("id"),
            "question": row.text("input"),
            "answer": row.text("target"),
            "task": row.text("task"),
        }


def _named(task: str, records: Iterable[Record]) -> Iterator[Record]:
    """Add the task, and the number within the task, to each row."""
    for number, (where, row) in enumerate(records, start=1):
        yield f"{task}, {where}", {**row, "task": task, "id": f"{task}-{number}"}


_LEAD = re.compile(r"(?i)\banswer(?:\s+is|\s*:)[\s:*]*")
_OPTION = re.compile(r"\(([A-Z])\)")
_BARE_OPTION = re.compile(r"[*\s]*([A-Z])[*\s]*(?:[).:].*)?")


def bbh_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """Return 1.0 if the final answer equals `example.answer` exactly, else 0.0.

    The final answer is what follows the last "answer is" or "answer:" on its line; without these
    words it is the last line. Case, blanks, quotes, markdown and a closing point are ignored. Where
    the right answer is an option, "(B)", the first "(X)" of the final answer counts, or a bare
    letter that it starts with, "B" or "B) ...".

    Args:
        example: Has a field `answer`; a list holds all accepted answers.
        prediction: Has a field `answer`; None and other types are converted to text.
        trace: Not used; present for DSPy's optimizers, like the next two.
        pred_name: Not used.
        pred_trace: Not used.

    Raises:
        MetricError: If the right answer is missing.
    """
    answer = "" if is_absent(prediction.answer) else _final(plain_text(prediction.answer))
    rights = accepted_answers(example.answer)
    return float(any(_is_right(answer, plain_text(right).strip()) for right in rights))


def _is_right(answer: str, right: str) -> bool:
    if _OPTION.fullmatch(right):
        return _option(answer) == right[1]
    return bool(_bare(answer)) and _bare(answer) == _bare(right)


def _final(text: str) -> str:
    """Return the text after the last "answer is", or else the last line that is not blank."""
    # "answer is" at the very end has no text after it: the answer is before it.
    led = [rest for part in _LEAD.split(text)[1:] if (rest := part.strip())]
    lines = (led[-1] if led else text).strip().splitlines()
    return "" if not lines else lines[0 if led else -1]


def _option(text: str) -> str | None:
    match = _OPTION.search(text) or _BARE_OPTION.fullmatch(text)
    return match[1] if match else None


def _bare(text: str) -> str:
    return normalise_text(normalise_text(text).strip("*_`\"' ").removesuffix(".").strip("*_`\"' "))


_LETTERS = "ABCDEFGHIJ"
_MMLU_PRO = BenchmarkOrigin(
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
        keep_flagged: Whether to keep questions that were corrected after models had answered, or
            that occur twice.
        keep_textless: Whether questions are kept whose text the source lacks, for replays of
            recorded letters; their id replaces the text.
    """

    name: str = "mmlu_pro"
    title: str = "MMLU-Pro, multiple choice among up to ten options"
    origin: BenchmarkOrigin = _MMLU_PRO
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
        # Not super(), as a dataclass with slots is a new class.
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
    """Return the question, then one option per line: "A. ...".

    Raises:
        DataError: If there are no options, or more than ten.
    """
    options = row.texts("options")
    if not 1 <= len(options) <= len(_LETTERS):
        raise DataError(f"{row.place}: 'options' must be 1 to 10 texts, but are {len(options)}.")
    lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return "\n".join([row.text("question"), "Options:", *lines])


def _marked(records: Iterable[Record]) -> Iterator[Record]:
    """Mark repeated questions if the source does not."""
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
    """Return the option that a response chooses, or None.

    In this order, as in the benchmark's own script: the first "answer is (X)", as base models
    continue with questions of their own; else the first "Answer: X"; else the last single capital A
    to J, so the word "I" may count as option I.
    """
    for pattern in _PATTERNS:
        if match := pattern.search(text):
            return match[1]
    alone = _LETTER.findall(text)
    return alone[-1] if alone else None


def mmlu_pro_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """Return 1.0 if the letter of `prediction.answer` is `example.answer`, else 0.0; none is wrong.

    A response without a letter scores 0; the benchmark's own script guesses at random instead.

    Args:
        example: Has a field `answer`, a letter A to J.
        prediction: Has a field `answer`; None and other types are converted to text.
        trace: Not used; present for DSPy's optimizers, like the next two.
        pred_name: Not used.
        pred_trace: Not used.

    Raises:
        MetricError: If the right answer is not a letter A to J.
    """
    if not re.fullmatch("[A-J]", str(example.answer)):
        raise MetricError(f"The right answer must be a letter A to J, but is {example.answer!r}.")
    answer = "" if is_absent(prediction.answer) else plain_text(prediction.answer)
    return float(answer_letter(answer) == example.answer)

"""BIG-Bench Hard: its reader and its metric, exact match of the final answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.answers import normalise_text
from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import Record, find_file, hub_records, records_of
from moa_dspy.data.values import accepted_answers, is_absent, plain_text
from moa_dspy.errors import DataError

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
_ORIGIN = BenchmarkOrigin("lukaemon/bbh", TASKS, "https://arxiv.org/abs/2210.09261")


@dataclass(frozen=True, slots=True, kw_only=True)
class BigBenchHard(Benchmark):
    """Tasks that models once found hard: `question`, `answer`, `task`. Its splits are its tasks.

    Without a split all tasks are read: on the hub 27, in a folder those it has, each in a
    file with the task's name. Ids are "hyperbaton-1", ... per task.
    """

    name: str = "bbh"
    title: str = "BIG-Bench Hard"
    origin: BenchmarkOrigin = _ORIGIN
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
    """Add to each row its task and its number in it."""
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
    """1.0 if the final answer equals `example.answer` exactly, else 0.0.

    The final answer is what follows the last "answer is" or "answer:" on its line; without
    these words it is the last line. Case, blanks, quotes, markdown and a closing point do not
    count. Where the right answer is an option, "(B)", the first "(X)" of the final answer
    counts, or a bare letter that it starts with, "B" or "B) ...".

    Args:
        example: Has a field `answer`; a list holds every answer that is accepted.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.

    Raises:
        MetricError: The right answer is missing.
    """
    given = "" if is_absent(prediction.answer) else _final(plain_text(prediction.answer))
    rights = accepted_answers(example.answer)
    return float(any(_is_right(given, plain_text(right).strip()) for right in rights))


def _is_right(given: str, right: str) -> bool:
    if _OPTION.fullmatch(right):
        return _option(given) == right[1]
    return bool(_bare(given)) and _bare(given) == _bare(right)


def _final(text: str) -> str:
    """The last line that is not blank, or what "answer is" announces."""
    # A lead at the very end announces nothing: the answer stands before it.
    led = [rest for part in _LEAD.split(text)[1:] if (rest := part.strip())]
    lines = (led[-1] if led else text).strip().splitlines()
    return "" if not lines else lines[0 if led else -1]


def _option(text: str) -> str | None:
    found = _OPTION.search(text) or _BARE_OPTION.fullmatch(text)
    return found[1] if found else None


def _bare(text: str) -> str:
    return normalise_text(normalise_text(text).strip("*_`\"' ").removesuffix(".").strip("*_`\"' "))

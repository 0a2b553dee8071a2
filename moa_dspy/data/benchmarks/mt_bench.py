"""MT-Bench: two-turn questions for chat models, some with reference answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import Record, find_file, records_of
from moa_dspy.errors import DataError

REFERENCED = frozenset({"coding", "math", "reasoning"})
"""The categories whose answers the judge compares with a reference."""
_REFERENCES = ("reference_answer_gpt-4.jsonl", "reference_answer/gpt-4.jsonl")
_ORIGIN = BenchmarkOrigin("lighteval/mt-bench", ("train",), "https://arxiv.org/abs/2306.05685")


@dataclass(frozen=True, slots=True, kw_only=True)
class MTBench(Benchmark):
    """Two-turn questions of eight kinds: `question`, `turns`, `category`, `reference`.

    The question is the first turn; the reference is one answer per turn for coding, math and
    reasoning, and None elsewhere.
    A folder has question.jsonl and, for the references the official judge reads, GPT-4's,
    reference_answer_gpt-4.jsonl; without it, and on the hub, they are the question file's own.
    """

    name: str = "mt_bench"
    title: str = "MT-Bench, two-turn questions for chat models"
    origin: BenchmarkOrigin = _ORIGIN
    licence: str = "Apache-2.0 (lm-sys/FastChat)"
    scoring: str = (
        "A judge gives each turn 1 to 10, for coding, math and reasoning beside a reference "
        "answer; the mean over both turns of 80 questions is reported."
    )
    citation: str = (
        "Zheng et al., Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, 2023, "
        "arXiv:2306.05685"
    )
    inputs: tuple[str, ...] = ("question",)

    def _local(self, source: Path, split: str | None) -> Iterator[Record]:
        file = find_file(source, "question")
        answers = _answers(file.parent)
        for where, row in records_of(file):
            name = str(row.get("question_id"))
            yield where, row | ({"reference": answers[name]} if name in answers else {})

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        turns, category = row.texts("turns"), row.text("category")
        if len(turns) != 2:
            raise DataError(f"{row.place}: 'turns' must be two turns, but there are {len(turns)}.")
        reference = row.texts("reference") if category in REFERENCED else []
        return {
            "id": str(row.columns.get("question_id", number + 81)),
            "question": turns[0],
            "turns": turns,
            "category": category,
            "reference": reference or None,
        }


def _answers(folder: Path) -> dict[str, list[str]]:
    """Question id -> the reference answers of both turns, from the file beside the questions."""
    for name in _REFERENCES:
        if (path := folder / name).is_file():
            return {
                str(row.get("question_id")): _turns(row, f"{path}, {where}")
                for where, row in records_of(path)
            }
    return {}


def _turns(row: dict[str, Any], place: str) -> list[str]:
    try:
        return list(row["choices"][0]["turns"])
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{place}: no 'choices' with one answer per turn.") from error

"""Benchmarks without right answers, which judges score: AlpacaEval 2, MT-Bench and FLASK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.data.rows import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import SUFFIXES, Record, find_file, records_of
from moa_dspy.errors import DataError

_BASELINE = "alpaca_eval_gpt4_baseline"
_ALPACA_EVAL = BenchmarkOrigin(
    "tatsu-lab/alpaca_eval",
    ("eval",),
    "https://arxiv.org/abs/2404.04475",
    config=_BASELINE,
    # The repository's own loader is a script, which `datasets` 4 no longer runs.
    files={"eval": f"hf://datasets/tatsu-lab/alpaca_eval/{_BASELINE}.json"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaEval(Benchmark):
    """Instructions with the baseline's response: `instruction`, `dataset`, `reference` or None.

    A folder has alpaca_eval_gpt4_baseline.json as published; or a table `instructions`
    (instruction_id, dataset, instruction), and beside it a table `responses`
    (instruction_id, model, response) that may hold the baseline. Ids are "0", "1", ... in
    the published order.

    Attributes:
        baseline: The model, in such a table, whose response is the reference.
    """

    name: str = "alpaca_eval"
    title: str = "AlpacaEval 2, instructions judged against GPT-4 Turbo's responses"
    origin: BenchmarkOrigin = _ALPACA_EVAL
    licence: str = "CC BY-NC 4.0 (data), Apache-2.0 (code); non-commercial use, with attribution"
    scoring: str = (
        "A judge compares each response with the baseline's; reported are the win rate and the "
        "length-controlled win rate, in percent, over 805 instructions."
    )
    citation: str = (
        "Li et al., AlpacaEval: An Automatic Evaluator of Instruction-following Models, 2023; "
        "Dubois et al., Length-Controlled AlpacaEval, 2024, arXiv:2404.04475"
    )
    inputs: tuple[str, ...] = ("instruction",)
    baseline: str = "gpt4_1106_preview"

    def _local(self, source: Path, split: str | None) -> Iterator[Record]:
        file = find_file(source, _BASELINE, "instructions", "alpaca_eval")
        answers = self._answers(file.parent) if file.stem == "instructions" else {}
        for where, row in records_of(file):
            yield where, {"output": answers.get(str(row.get("instruction_id"))), **row}

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        return {
            "id": str(row.columns.get("instruction_id", number)),
            "instruction": row.text("instruction"),
            "dataset": row.columns.get("dataset"),
            "reference": row.columns.get("output"),
        }

    def _answers(self, folder: Path) -> dict[str, Any]:
        """Return the baseline's responses by instruction id, if the folder has any."""
        if not any((folder / f"responses{suffix}").is_file() for suffix in SUFFIXES):
            return {}
        rows = (row for _, row in records_of(find_file(folder, "responses")))
        return {
            str(row.get("instruction_id")): row.get("response")
            for row in rows
            if row.get("model") == self.baseline
        }


_REFERENCED = frozenset({"coding", "math", "reasoning"})
"""The categories whose answers the judge compares with a reference."""
_REFERENCES = ("reference_answer_gpt-4.jsonl", "reference_answer/gpt-4.jsonl")
_MT_BENCH = BenchmarkOrigin("lighteval/mt-bench", ("train",), "https://arxiv.org/abs/2306.05685")


@dataclass(frozen=True, slots=True, kw_only=True)
class MTBench(Benchmark):
    """Two-turn questions of eight kinds: `question`, `turns`, `category`, `reference`.

    The question is the first turn; the reference is one answer per turn for coding, math and
    reasoning, and None elsewhere. A folder has question.jsonl and, for the official judge's
    references by GPT-4, reference_answer_gpt-4.jsonl; without it, and on the hub, they are those of
    the question file.
    """

    name: str = "mt_bench"
    title: str = "MT-Bench, two-turn questions for chat models"
    origin: BenchmarkOrigin = _MT_BENCH
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
        answers = _reference_answers(file.parent)
        for where, row in records_of(file):
            name = str(row.get("question_id"))
            yield where, row | ({"reference": answers[name]} if name in answers else {})

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        turns, category = row.texts("turns"), row.text("category")
        if len(turns) != 2:
            raise DataError(f"{row.place}: 'turns' must be two turns, but there are {len(turns)}.")
        reference = row.texts("reference") if category in _REFERENCED else []
        return {
            "id": str(row.columns.get("question_id", number + 81)),
            "question": turns[0],
            "turns": turns,
            "category": category,
            "reference": reference or None,
        }


def _reference_answers(folder: Path) -> dict[str, list[str]]:
    """Return the reference answers of both turns by question id, from the file in the folder."""
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


_FLASK_FILE = "flask_evaluation"
_FLASK = BenchmarkOrigin(
    "kaistAI/FLASK on GitHub (the authors publish it there, not on the hub)",
    ("evaluation",),
    "https://arxiv.org/abs/2307.10928",
    files={
        "evaluation": "https://raw.githubusercontent.com/kaistAI/FLASK/main/evaluation_set/"
        "flask_evaluation.jsonl"
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flask(Benchmark):
    """Instructions with the skills they take: `instruction`, `reference`, `skills`, ...

    Also `domains`, `difficulty` and `task`, the data set that an instruction is from. The authors
    write -1 where there is no judgement: such a difficulty is read as None, such a domain is left
    out. A folder has flask_evaluation.jsonl.
    """

    name: str = "flask"
    title: str = "FLASK, fine-grained evaluation by skill"
    origin: BenchmarkOrigin = _FLASK
    licence: str = (
        "Apache-2.0 as redistributed by togethercomputer/MoA; the instructions come from other "
        "data sets, each under its own licence"
    )
    scoring: str = (
        "A judge gives each annotated skill 1 to 5, reading the reference; the mean per skill, of "
        "twelve skills, is reported."
    )
    citation: str = (
        "Ye et al., FLASK: Fine-grained Language Model Evaluation based on Alignment Skill Sets, "
        "2023, arXiv:2307.10928"
    )
    inputs: tuple[str, ...] = ("instruction",)

    def _local(self, source: Path, split: str | None) -> Iterable[Record]:
        return records_of(find_file(source, _FLASK_FILE))

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any]:
        skills = row.texts("skill")
        if not skills:
            raise DataError(f"{row.place}: 'skill' must name at least one skill.")
        difficulty = str(row.columns.get("difficulty"))
        return {
            "id": str(row.columns.get("idx", number + 1)),
            "instruction": row.text("instruction"),
            "reference": row.text("answer"),
            "task": row.columns.get("task"),
            "skills": skills,
            "domains": [domain for domain in row.texts("domain") if domain != "-1"],
            "difficulty": None if difficulty in ("-1", "None") else difficulty,
        }

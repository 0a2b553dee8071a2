"""FLASK: instructions annotated with the skills that an answer is rated on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import Record, find_file, records_of
from moa_dspy.errors import DataError

_FILE = "flask_evaluation"
_ORIGIN = BenchmarkOrigin(
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

    Also `domains`, `difficulty` and `task`, the data set that an instruction is from.
    The authors write -1 where nobody judged: such a difficulty is None, such a domain is left
    out. A folder has flask_evaluation.jsonl.
    """

    name: str = "flask"
    title: str = "FLASK, fine-grained evaluation by skill"
    origin: BenchmarkOrigin = _ORIGIN
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
        return records_of(find_file(source, _FILE))

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

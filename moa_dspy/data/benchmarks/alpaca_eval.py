"""AlpacaEval 2: instructions with the responses of the baseline that answers are judged against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.data.benchmarks.base import Benchmark, BenchmarkOrigin, PublishedRow
from moa_dspy.data.tables import SUFFIXES, Record, find_file, records_of

_BASELINE = "alpaca_eval_gpt4_baseline"
_ORIGIN = BenchmarkOrigin(
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
    origin: BenchmarkOrigin = _ORIGIN
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
        """Instruction id -> the baseline's response, where the folder has one."""
        if not any((folder / f"responses{suffix}").is_file() for suffix in SUFFIXES):
            return {}
        rows = (row for _, row in records_of(find_file(folder, "responses")))
        return {
            str(row.get("instruction_id")): row.get("response")
            for row in rows
            if row.get("model") == self.baseline
        }

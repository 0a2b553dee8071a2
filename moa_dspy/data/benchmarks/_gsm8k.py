from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.data._files import find_file, records_of
from moa_dspy.data._rows import Record
from moa_dspy.data.benchmarks._base import Benchmark, Origin, Row
from moa_dspy.data.metrics import last_number
from moa_dspy.errors import DataError

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_ORIGIN = Origin(
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
    origin: Origin = _ORIGIN
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

    def _fields(self, row: Row, number: int, split: str | None) -> dict[str, Any]:
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

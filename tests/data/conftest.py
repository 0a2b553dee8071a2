"""Tiny files in every benchmark's format, and real ones where this machine has them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SHARED = Path(os.environ.get("MOA_DSPY_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Return what finds a folder of published files, or skips and says what is missing."""

    def find(name: str) -> Path:
        folder = SHARED / name
        if not folder.is_dir():
            pytest.skip(f"NOT CHECKED ON REAL FILES: no {name} in ../shared or $MOA_DSPY_SHARED")
        return folder

    return find


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """Return what writes a benchmark of one to three rows, as it is published, into a folder."""

    def write(name: str) -> Path:
        WRITERS[name](tmp_path)
        return tmp_path

    return write


def jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def parquet(path: Path, *rows: dict[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def alpaca_eval(folder: Path) -> None:
    rows = [{"instruction_id": i, "dataset": "koala", "instruction": f"Do {i}."} for i in range(2)]
    parquet(folder / "instructions.parquet", *rows)
    answers = [("gpt4_1106_preview", "Done."), ("other", "No.")]
    parquet(
        folder / "responses.parquet",
        *({"instruction_id": 0, "model": model, "response": text} for model, text in answers),
    )


def bbh(folder: Path) -> None:
    for task in ("hyperbaton", "navigate"):
        examples = [{"input": f"{task}?", "target": "(A)"}]
        content = {"canary": "x", "examples": examples}
        (folder / f"{task}.json").write_text(json.dumps(content), encoding="utf-8")


def flask(folder: Path) -> None:
    row = {"idx": 1, "instruction": "Explain.", "answer": "So.", "task": "Set", "skill": ["Logic"]}
    known = {**row, "domain": ["Math"], "difficulty": "expert level knowledge"}
    unknown = {**row, "idx": 2, "domain": ["-1"], "difficulty": -1}
    jsonl(folder / "flask_evaluation.jsonl", known, unknown)


def gsm8k(folder: Path) -> None:
    solution = "3*4=<<3*4=12>>12 and 12*100 = $<<12*100=1200>>1,200\n#### 1,200"
    jsonl(folder / "test.jsonl", {"question": "How much?", "answer": solution})
    jsonl(folder / "train_head.jsonl", {"question": "How many?", "answer": "None.\n#### -7"})


def mmlu_pro(folder: Path) -> None:
    row = {"category": "law", "source": "s", "gold": "B", "revised": False, "repeated": False}
    asked = {"question": "Which?", "options": ["this", "that"], "has_text": True}
    untold = {"question": None, "options": None, "has_text": False}
    parquet(
        folder / "questions.parquet",
        {"question_id": 7, **row, **asked},
        {"question_id": 8, **row, **asked, "revised": True},
        {"question_id": 9, **row, **untold},
    )


def mt_bench(folder: Path) -> None:
    turns = ["First?", "Second?"]
    rows = [
        {"question_id": 81, "category": "writing", "turns": turns, "reference": ["a", "b"]},
        {"question_id": 111, "category": "math", "turns": turns, "reference": ["own", "own"]},
        {"question_id": 112, "category": "math", "turns": turns, "reference": ["own", "own"]},
    ]
    jsonl(folder / "question.jsonl", *rows)
    choices = [{"index": 0, "turns": ["gpt", "gpt"]}]
    jsonl(folder / "reference_answer_gpt-4.jsonl", {"question_id": 111, "choices": choices})


WRITERS: dict[str, Callable[[Path], None]] = {
    "alpaca_eval": alpaca_eval,
    "bbh": bbh,
    "flask": flask,
    "gsm8k": gsm8k,
    "mmlu_pro": mmlu_pro,
    "mt_bench": mt_bench,
}

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.data import BENCHMARKS, METRICS, card
from moa_dspy.data.benchmarks import MMLUPro
from moa_dspy.errors import DataError

Tiny: TypeAlias = Callable[[str], Path]


def read(name: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.items()) for row in BENCHMARKS[name].read(folder, **options)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_reader_gives_examples_with_ids_and_inputs(tiny: Tiny, name: str) -> None:
    folder, benchmark = tiny(name), BENCHMARKS[name]
    rows = benchmark.read(folder)
    assert all(isinstance(row.id, str) for row in rows)
    assert {tuple(row.inputs().keys()) for row in rows} == {benchmark.inputs}
    assert len(benchmark.read(folder, limit=1)) == 1
    assert benchmark.metric is None or benchmark.metric in METRICS
    assert benchmark.name == name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_card_tells_origin_licence_scoring_and_citation(name: str) -> None:
    text, benchmark = card(name), BENCHMARKS[name]
    facts = (benchmark.origin.repository, benchmark.origin.paper, benchmark.licence)
    assert all(part in text for part in (*facts, benchmark.scoring, benchmark.citation))
    assert f"\nOrigin: {benchmark.origin.repository}" in text


def test_an_unknown_card_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="Unknown benchmark 'glue'; known ones are alpaca_eval, b"):
        card("glue")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_reader_refuses_what_is_not_there_in_one_line(tmp_path: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    for source, message in ((tmp_path, "has no file"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(DataError, match=message) as caught:
            benchmark.read(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=f"{name} has no split 'dev'; known ones are"):
        benchmark.read(tmp_path, split="dev")
    with pytest.raises(DataError, match="`limit` must be at least 1, but got 0"):
        benchmark.read(tmp_path, limit=0)


def test_alpaca_eval_keeps_the_baseline_as_reference(tiny: Tiny) -> None:
    folder = tiny("alpaca_eval")
    first, second = read("alpaca_eval", folder)
    assert first == {
        "id": "0",
        "instruction": "Do 0.",
        "dataset": "koala",
        "reference": "Done.",
    }
    assert second["reference"] is None


def test_alpaca_eval_reads_the_published_json(tmp_path: Path) -> None:
    row = {"instruction": "Do.", "output": "Done.", "generator": "gpt4", "dataset": "koala"}
    path = tmp_path / "alpaca_eval_gpt4_baseline.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    for source in (path, tmp_path):
        (only,) = BENCHMARKS["alpaca_eval"].read(source)
        assert (only.id, only.instruction, only.reference) == ("0", "Do.", "Done.")


def test_big_bench_hard_reads_all_tasks_or_one(tiny: Tiny) -> None:
    folder = tiny("bbh")
    rows = read("bbh", folder)
    assert [row["id"] for row in rows] == ["hyperbaton-1", "navigate-1"]
    only = {"id": "navigate-1", "question": "navigate?", "answer": "(A)", "task": "navigate"}
    assert read("bbh", folder, split="navigate") == [only]
    assert [dict(row.items()) for row in BENCHMARKS["bbh"].read(folder / "navigate.json")] == [only]
    with pytest.raises(DataError, match="has no file 'snarks'"):
        BENCHMARKS["bbh"].read(folder, split="snarks")


def test_flask_leaves_out_what_nobody_judged(tiny: Tiny) -> None:
    folder = tiny("flask")
    known, unknown = read("flask", folder)
    assert known == {
        "id": "1",
        "instruction": "Explain.",
        "reference": "So.",
        "task": "Set",
        "skills": ["Logic"],
        "domains": ["Math"],
        "difficulty": "expert level knowledge",
    }
    assert (unknown["domains"], unknown["difficulty"]) == ([], None)


def test_gsm8k_parts_the_number_from_the_reasoning(tiny: Tiny) -> None:
    folder = tiny("gsm8k")
    assert read("gsm8k", folder) == [
        {
            "id": "test-1",
            "question": "How much?",
            "answer": "1200",
            "rationale": "3*4=12 and 12*100 = $1,200",
        }
    ]
    (row,) = read("gsm8k", folder, split="train")
    assert (row["id"], row["answer"]) == ("train-1", "-7")


def test_mmlu_pro_letters_the_options(tiny: Tiny) -> None:
    folder = tiny("mmlu_pro")
    (row,) = read("mmlu_pro", folder)
    assert row == {
        "id": "7",
        "question": "Which?\nOptions:\nA. this\nB. that",
        "answer": "B",
        "options": ["this", "that"],
        "category": "law",
        "source": "s",
    }


def test_mmlu_pro_keeps_what_it_is_told_to_keep(tiny: Tiny) -> None:
    folder = tiny("mmlu_pro")
    kept = {
        (flagged, textless): [
            row.id for row in MMLUPro(keep_flagged=flagged, keep_textless=textless).read(folder)
        ]
        for flagged in (False, True)
        for textless in (False, True)
    }
    assert kept[False, False] == ["7"]
    assert kept[True, False] == ["7", "8"]
    assert kept[False, True] == ["7", "9"]
    assert kept[True, True] == ["7", "8", "9"]
    assert MMLUPro(keep_textless=True).read(folder)[1].question == "mmlu_pro question 9"


def test_mmlu_pro_finds_repeated_questions_where_nobody_marked_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question_id": i, "options": ["x", "y"], "answer": "A", "src": "s"} for i in range(3)
    ]
    for row, question in zip(rows, ("Same?", "Other?", "Same?"), strict=True):
        row["question"] = question
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    assert [row.id for row in BENCHMARKS["mmlu_pro"].read(tmp_path, split="test")] == ["1"]
    assert len(MMLUPro(keep_flagged=True).read(tmp_path)) == 3


def test_mt_bench_has_references_where_the_judge_reads_them(tiny: Tiny) -> None:
    folder = tiny("mt_bench")
    writing, first, second = read("mt_bench", folder)
    assert writing == {
        "id": "81",
        "question": "First?",
        "turns": ["First?", "Second?"],
        "category": "writing",
        "reference": None,
    }
    assert (first["reference"], second["reference"]) == (["gpt", "gpt"], ["own", "own"])


def test_two_files_for_one_name_are_not_guessed_between(tiny: Tiny) -> None:
    folder = tiny("gsm8k")
    (folder / "train_tail.jsonl").write_text("{}", encoding="utf-8")
    message = r"several files for 'train' \(train_head.jsonl, train_tail.jsonl\): name one"
    with pytest.raises(DataError, match=message):
        BENCHMARKS["gsm8k"].read(folder, split="train")
    (row,) = BENCHMARKS["gsm8k"].read(folder / "train_head.jsonl", split="train")
    assert row.id == "train-1"

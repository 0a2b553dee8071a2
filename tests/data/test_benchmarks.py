from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.data import BENCHMARKS, METRICS, card
from moa_dspy.data.benchmarks import MMLUPro
from moa_dspy.errors import DataError


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


def read(name: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    WRITERS[name](folder)
    return [dict(row.items()) for row in BENCHMARKS[name].read(folder, **options)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_reader_gives_examples_with_ids_and_inputs(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    benchmark = BENCHMARKS[name]
    rows = benchmark.read(tmp_path)
    assert all(isinstance(row.id, str) for row in rows)
    assert {tuple(row.inputs().keys()) for row in rows} == {benchmark.inputs}
    assert len(benchmark.read(tmp_path, limit=1)) == 1
    assert benchmark.metric is None or benchmark.metric in METRICS
    assert benchmark.name == name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_card_tells_origin_licence_scoring_and_citation(name: str) -> None:
    text, benchmark = card(name), BENCHMARKS[name]
    told = (benchmark.origin.repository, benchmark.origin.paper, benchmark.licence)
    assert all(part in text for part in (*told, benchmark.scoring, benchmark.citation))


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


def test_alpaca_eval_keeps_the_baseline_as_reference(tmp_path: Path) -> None:
    first, second = read("alpaca_eval", tmp_path)
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


def test_big_bench_hard_reads_all_tasks_or_one(tmp_path: Path) -> None:
    rows = read("bbh", tmp_path)
    assert [row["id"] for row in rows] == ["hyperbaton-1", "navigate-1"]
    only = {"id": "navigate-1", "question": "navigate?", "answer": "(A)", "task": "navigate"}
    assert read("bbh", tmp_path, split="navigate") == [only]
    assert [dict(row.items()) for row in BENCHMARKS["bbh"].read(tmp_path / "navigate.json")] == [
        only
    ]
    with pytest.raises(DataError, match="has no file 'snarks'"):
        BENCHMARKS["bbh"].read(tmp_path, split="snarks")


def test_flask_leaves_out_what_nobody_judged(tmp_path: Path) -> None:
    known, unknown = read("flask", tmp_path)
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


def test_gsm8k_parts_the_number_from_the_reasoning(tmp_path: Path) -> None:
    assert read("gsm8k", tmp_path) == [
        {
            "id": "test-1",
            "question": "How much?",
            "answer": "1200",
            "rationale": "3*4=12 and 12*100 = $1,200",
        }
    ]
    (row,) = read("gsm8k", tmp_path, split="train")
    assert (row["id"], row["answer"]) == ("train-1", "-7")


def test_mmlu_pro_letters_the_options(tmp_path: Path) -> None:
    (row,) = read("mmlu_pro", tmp_path)
    assert row == {
        "id": "7",
        "question": "Which?\nOptions:\nA. this\nB. that",
        "answer": "B",
        "options": ["this", "that"],
        "category": "law",
        "source": "s",
    }


def test_mmlu_pro_keeps_what_it_is_told_to_keep(tmp_path: Path) -> None:
    mmlu_pro(tmp_path)
    kept = {
        (flagged, textless): [
            row.id for row in MMLUPro(keep_flagged=flagged, keep_textless=textless).read(tmp_path)
        ]
        for flagged in (False, True)
        for textless in (False, True)
    }
    assert kept[False, False] == ["7"]
    assert kept[True, False] == ["7", "8"]
    assert kept[False, True] == ["7", "9"]
    assert kept[True, True] == ["7", "8", "9"]
    assert MMLUPro(keep_textless=True).read(tmp_path)[1].question == "mmlu_pro question 9"


def test_mmlu_pro_finds_repeated_questions_where_nobody_marked_them(tmp_path: Path) -> None:
    rows = [{"question_id": i, "options": ["x", "y"], "answer": "A", "src": "s"} for i in range(3)]
    for row, question in zip(rows, ("Same?", "Other?", "Same?"), strict=True):
        row["question"] = question
    parquet(tmp_path / "test-00000-of-00001.parquet", *rows)
    assert [row.id for row in BENCHMARKS["mmlu_pro"].read(tmp_path, split="test")] == ["1"]
    assert len(MMLUPro(keep_flagged=True).read(tmp_path)) == 3


def test_mt_bench_has_references_where_the_judge_reads_them(tmp_path: Path) -> None:
    writing, first, second = read("mt_bench", tmp_path)
    assert writing == {
        "id": "81",
        "question": "First?",
        "turns": ["First?", "Second?"],
        "category": "writing",
        "reference": None,
    }
    assert (first["reference"], second["reference"]) == (["gpt", "gpt"], ["own", "own"])


def test_two_files_for_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    gsm8k(tmp_path)
    jsonl(tmp_path / "train_tail.jsonl", {})
    message = r"several files for 'train' \(train_head.jsonl, train_tail.jsonl\): name one"
    with pytest.raises(DataError, match=message):
        BENCHMARKS["gsm8k"].read(tmp_path, split="train")
    (row,) = BENCHMARKS["gsm8k"].read(tmp_path / "train_head.jsonl", split="train")
    assert row.id == "train-1"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gsm8k", "test.jsonl", '{"question": "x"}', "line 1: no 'answer'; the row has question."),
        ("gsm8k", "test.jsonl", '{"question": "x", "answer": "12"}', "line 1: 'answer' must end"),
        ("gsm8k", "test.jsonl", '{"question": 5, "answer": "#### 1"}', "must be text, but is a in"),
        ("gsm8k", "test.jsonl", "{", "line 1 is not JSON"),
        ("gsm8k", "test.jsonl", "", "has no rows."),
        ("bbh", "snarks.json", "[1]", "snarks.json must hold a list of objects, or one under"),
        ("bbh", "snarks.json", "{", "snarks.json is not JSON"),
        ("bbh", "snarks.json", '[{"input": "x"}]', "snarks, row 1: no 'target'; the row has id, i"),
        ("flask", "flask_evaluation.jsonl", '{"skill": "x"}', "must be a list of texts, but is 'x"),
        ("flask", "flask_evaluation.jsonl", '{"skill": []}', "must name at least one skill"),
        ("mt_bench", "question.jsonl", '{"turns": ["x"]}', "no 'category'; the row has turns"),
        (
            "mt_bench",
            "question.jsonl",
            '{"turns": ["x"], "category": "math"}',
            "'turns' must be two turns, but there are 1",
        ),
        (
            "mmlu_pro",
            "questions.jsonl",
            '{"question": "x", "gold": "A", "options": []}',
            "'options' must be 1 to 10 texts, but are 0",
        ),
        ("alpaca_eval", "instructions.csv", "dataset\nx\n", "line 2: no 'instruction'; the row"),
    ],
)
def test_a_bad_file_is_told_in_one_line(
    tmp_path: Path, name: str, file: str, content: str, message: str
) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        BENCHMARKS[name].read(tmp_path)
    assert "\n" not in str(caught.value)
    assert file.partition(".")[0] in str(caught.value) or str(tmp_path) in str(caught.value)


def test_a_broken_reference_answer_is_named(tmp_path: Path) -> None:
    mt_bench(tmp_path)
    jsonl(tmp_path / "reference_answer_gpt-4.jsonl", {"question_id": 111, "choices": []})
    with pytest.raises(DataError, match=r"gpt-4.jsonl, line 1: no 'choices' with one answer"):
        BENCHMARKS["mt_bench"].read(tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "n_rows"),
    [
        ("alpaca_eval", None, 805),
        ("bbh", None, 6 * 250),
        ("bbh", "date_understanding", 250),
        ("flask", None, 1740),
        ("gsm8k", "test", 1319),
        ("gsm8k", "train", 2000),
        ("mmlu_pro", None, 1500),
        ("mt_bench", None, 80),
    ],
)
def test_the_published_files_have_their_rows(
    real: Callable[[str], Path], name: str, split: str | None, n_rows: int
) -> None:
    rows = BENCHMARKS[name].read(real(name), split=split)
    assert len(rows) == n_rows
    assert len({row.id for row in rows}) == n_rows


def test_the_published_files_hold_what_their_cards_say(real: Callable[[str], Path]) -> None:
    alpaca = BENCHMARKS["alpaca_eval"].read(real("alpaca_eval"))
    assert all(row.reference for row in alpaca)
    bench = BENCHMARKS["mt_bench"].read(real("mt_bench"))
    assert sum(row.reference is not None for row in bench) == 30
    pro = MMLUPro(keep_flagged=True, keep_textless=True)
    assert len(pro.read(real("mmlu_pro"))) == 12_002
    # 48 revised and 318 repeated, none of them twice in the sum.
    assert len(replace(pro, keep_flagged=False).read(real("mmlu_pro"))) == 12_002 - 48 - 318

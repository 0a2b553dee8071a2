from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets.config
import pytest

from moa_dspy.data import BENCHMARKS, read_hub
from moa_dspy.data.benchmarks import TASKS, Benchmark
from moa_dspy.errors import DataError

QUESTION = {"question": "How many?", "answer": "2+2=<<2+2=4>>4\n#### 4"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` prepares out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder: Path, name: str, *rows: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def published_in(name: str, folder: Path, **origin: Any) -> Benchmark:
    """The benchmark as if its hub repository were this folder."""
    benchmark = BENCHMARKS[name]
    changes: dict[str, Any] = {"repository": str(folder), **origin}
    return replace(benchmark, origin=replace(benchmark.origin, **changes))


def test_any_data_set_is_read_with_a_column_map(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    written(folder, "train.jsonl", {"prompt": "x", "gold": 1, "key": 7})
    written(folder, "test.jsonl", {"prompt": "y", "gold": 2, "key": 8})
    columns = {"question": "prompt", "answer": "gold", "id": "key"}
    (row,) = read_hub(str(folder), split="test", inputs=["question"], columns=columns)
    assert dict(row.items()) == {"id": "8", "question": "y", "answer": 2}
    assert list(row.inputs().keys()) == ["question"]


def test_rows_without_ids_are_numbered_and_lacking_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    written(folder, "test.jsonl", {"q": "x"}, {"q": None})
    with pytest.raises(DataError, match=r"mine \(test\), row 2: field 'q' is null"):
        read_hub(str(folder), split="test", inputs=["q"])
    with pytest.raises(DataError, match=r"mine \(test\), row 1: no field 'p'; the row has q\."):
        read_hub(str(folder), split="test", inputs=["p"])


def test_what_cannot_be_loaded_says_how_to_go_on(tmp_path: Path) -> None:
    written(tmp_path / "mine", "test.jsonl", {"q": "x"})
    for name, split in (("gone", "test"), ("mine", "dev")):
        with pytest.raises(DataError, match="give the path of a local copy instead") as caught:
            read_hub(str(tmp_path / name), split=split, inputs=["q"])
        assert "\n" not in str(caught.value)


def test_gsm8k_comes_from_a_declared_split(tmp_path: Path) -> None:
    written(tmp_path / "gsm8k", "test.jsonl", QUESTION)
    written(tmp_path / "gsm8k", "train.jsonl", QUESTION, QUESTION)
    benchmark = published_in("gsm8k", tmp_path / "gsm8k", config=None)
    (row,) = benchmark.read()
    assert (row.id, row.answer, row.rationale) == ("test-1", "4", "2+2=4")
    assert len(benchmark.read(split="train")) == 2
    assert len(benchmark.read(split="train", limit=1)) == 1


def test_mmlu_pro_takes_the_hubs_column_names(tmp_path: Path) -> None:
    row = {"question_id": 70, "question": "Which?", "options": ["x", "y"], "answer": "B"}
    written(tmp_path / "pro", "test.jsonl", {**row, "category": "law", "src": "made"})
    (only,) = published_in("mmlu_pro", tmp_path / "pro").read()
    assert (only.id, only.answer, only.source) == ("70", "B", "made")


def test_mt_bench_takes_the_hubs_empty_references(tmp_path: Path) -> None:
    turns = {"category": "math", "turns": ["a", "b"]}
    rows = [
        {"question_id": 111, **turns, "reference": ["1", "2"]},
        {"question_id": 112, **turns, "reference": []},
    ]
    written(tmp_path / "bench", "train.jsonl", *rows)
    first, second = published_in("mt_bench", tmp_path / "bench").read()
    assert (first.reference, second.reference) == (["1", "2"], None)


def test_big_bench_hard_loads_one_configuration_per_task(tmp_path: Path) -> None:
    folder = tmp_path / "bbh"
    tasks = TASKS[:2]
    for task in tasks:
        written(folder / task, "test.jsonl", {"input": f"{task}?", "target": "no"})
    configs = "".join(f"- config_name: {task}\n  data_dir: {task}\n" for task in tasks)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    benchmark = published_in("bbh", folder, splits=tasks)
    assert [row.id for row in benchmark.read()] == [f"{task}-1" for task in tasks]
    assert [row.task for row in benchmark.read(split=tasks[1])] == [tasks[1]]


def test_data_sets_that_a_script_declares_are_read_by_file(tmp_path: Path) -> None:
    rows = [{"instruction": "Do.", "output": "Done.", "generator": "gpt4", "dataset": "koala"}]
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    (row,) = published_in("alpaca_eval", tmp_path, files={"eval": str(path)}).read()
    assert (row.id, row.instruction, row.reference) == ("0", "Do.", "Done.")


def test_flask_survives_its_two_kinds_of_difficulty(tmp_path: Path) -> None:
    row = {"instruction": "Say.", "answer": "So.", "task": "t", "skill": ["Logic"], "domain": ["x"]}
    rows = [{"idx": 1, **row, "difficulty": "expert"}, {"idx": 2, **row, "difficulty": -1}]
    path = written(tmp_path, "flask.jsonl", *rows)
    first, second = published_in("flask", tmp_path, files={"evaluation": str(path)}).read()
    assert (first.difficulty, second.difficulty) == ("expert", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_without_a_network_every_benchmark_asks_for_a_local_path(name: str) -> None:
    code = (
        "from moa_dspy.data import BENCHMARKS\n"
        "from moa_dspy.errors import DataError\n"
        "try:\n"
        f"    BENCHMARKS[{name!r}].read()\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    # The endpoint is nobody's, so the test is the same on a machine with a network.
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    proxies = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **offline, **proxies},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip().endswith("give the path of a local copy instead.")
    assert out.stdout.count("\n") == 1

"""``init`` with faulty rows and names, existing files, and tables that it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli import test_init
from tests.cli.test_init import Run, drafted, jsonl
from tests.servers.chat import ChatServer

models = test_init.models
nothing_else = test_init.nothing_else


NESTED = [{"input": {"q": f"n {n}"}, "target": {"label": f"a{n % 2}"}} for n in range(30)]
FLAT = [{"question": f"n {n}", "answer": f"a{n % 2}"} for n in range(30)]


@pytest.mark.parametrize("forced", [(), ("--force",)])
@pytest.mark.parametrize("out", [".", "link"])
def test_a_copy_of_the_rows_never_replaces_the_data(
    run: Run, tmp_path: Path, models: ChatServer, forced: tuple[str, ...], out: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", NESTED)
    (tmp_path / "link").symlink_to(tmp_path)
    before = path.read_text("utf-8")
    roles = ("--input", "input.q", "--output", "target.label")
    refused = run("init", path.name, "--out", out, "--server", models.url, *roles, *forced)
    assert refused.exit_code == 2
    assert "rows.jsonl holds the data, which a copy would replace: choose another" in refused.stderr
    assert path.read_text("utf-8") == before
    assert not (tmp_path / "study.toml").exists()


def test_a_copy_replaces_a_file_only_if_forced_and_is_listed(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    (tmp_path / "data.json").write_text(json.dumps(FLAT), "utf-8")
    (tmp_path / "rows.jsonl").write_text("mine", "utf-8")
    refused = run("init", "data.json", "--server", models.url)
    assert refused.exit_code == 2
    assert "rows.jsonl exists: choose another folder with --out" in refused.stderr
    assert (tmp_path / "rows.jsonl").read_text("utf-8") == "mine"
    made = run("init", "data.json", "--server", models.url, "--force")
    written = ["rows.jsonl", "pool.toml", "study.toml"]
    assert [line[6:] for line in made.stdout.splitlines() if line[:6] == "wrote "] == written
    assert len((tmp_path / "rows.jsonl").read_text("utf-8").splitlines()) == 30


def test_nothing_is_written_if_the_command_fails(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    (tmp_path / "data.json").write_text(json.dumps(FLAT), "utf-8")
    for options in (("--output", "gone"), ("--server", "127.0.0.1:9")):
        assert run("init", "data.json", "--out", "made", *options).exit_code == 2
        assert not (tmp_path / "made").exists()


def _changed(number: int, **cells: Any) -> list[dict[str, Any]]:
    return [{**row, **(cells if n == number else {})} for n, row in enumerate(FLAT)]


def _with(column: str, *cells: Any) -> list[dict[str, Any]]:
    return [{**row, column: cells[n % len(cells)]} for n, row in enumerate(FLAT)]


FAULTY: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no question": (_changed(3, question=" "), "Rows without a question, which are left out: 1 of"),
    "null question": (_changed(3, question=None), "Rows without a question, which are left out: 1"),
    "repeated id": (_with("id", *range(15)), "Column 'id' is '0' in 2 rows: the rows are numbered"),
    "null id": (_with("id", *range(29), None), "Column 'id' has no value in some rows: the rows"),
    "mixed answers": (_with("answer", 1, "x", True, [1], None), "Column 'answer' has lists, in so"),
    "control character": (
        [{"question": row["question"], "the\nanswer\x07": row["answer"]} for row in FLAT],
        "",
    ),
    "no answer in test": (
        [
            {
                **row,
                "answer": row["answer"] if n % 3 else None,
                "split": ["test", "val", "train"][n % 3],
            }
            for n, row in enumerate(FLAT)
        ],
        "are 'val', 'train' (missing: test): val and test are drawn from all rows",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_study_of_faulty_rows_or_names_passes_the_check(
    run: Run, tmp_path: Path, models: ChatServer, name: str
) -> None:
    given, note = FAULTY[name]
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", given))
    assert note in study["said"]
    checked = run("check", "study.toml")
    assert checked.exit_code == 0, checked.stderr


def test_a_name_with_a_line_end_is_in_one_line(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    given = [{"question": r["question"], "the\nanswer": r["answer"]} for r in FLAT]
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", given))
    assert "question -> the answer\n" in study["said"]
    assert study["task"]["instructions"].startswith("What is the the answer of the question:")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (_with("answer", "x", {"k": 1}), (), "Column 'answer' mixes objects or nested lists with"),
        (_with("more", {"k": 1}), ("--output", "answer", "--output", "more"),
         "The columns 'answer', 'more' have objects and other answers, and no metric"),
        ([{"id": n, "question": "x"} for n in range(9)], (),
         "at least two columns with values are needed, one with questions and one with right"),
    ],
)  # fmt: skip
def test_tables_without_a_metric_or_an_answer_are_refused(
    run: Run, tmp_path: Path, models: ChatServer, rows: Any, options: tuple[str, ...], message: str
) -> None:
    jsonl(tmp_path / "t.jsonl", rows)
    refused = run("init", "t.jsonl", "--server", models.url, *options)
    assert refused.exit_code == 2
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("splits", "values"),
    [
        (("train", "train", "test"), "'train', 'test' (missing: val)"),
        (("train", "val", "test", "holdout"), "'train', 'val', 'test', 'holdout' (unknown: 'hold"),
    ],
)
def test_a_split_column_that_is_not_used_is_said(
    run: Run, tmp_path: Path, models: ChatServer, splits: tuple[str, ...], values: str
) -> None:
    study = drafted(run, models, jsonl(tmp_path / "t.jsonl", _with("split", *splits)))
    assert "sizes" in study["data"]
    said = f"note: Column 'split' is not used, as its values in the rows to use are {values}"
    assert said in study["said"]


def test_the_next_commands_can_be_pasted_into_a_shell(
    run: Run, tmp_path: Path, models: ChatServer
) -> None:
    jsonl(tmp_path / "t.jsonl", FLAT)
    out = """a b "c" $d"""
    made = run("init", "t.jsonl", "--server", models.url, "--out", out)
    _, after = made.stdout.split("next: ")
    words = [shlex.split(line) for line in after.split("\nthen: ")]
    assert [line[2] for line in words] == [str(Path(out) / "study.toml")] * 2

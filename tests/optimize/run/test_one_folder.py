"""Several processes on one folder share its study, or are told who has it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moa_dspy

Make = Callable[..., Any]
ROOT = Path(moa_dspy.__file__).parent.parent


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "moa_dspy", "optimize", str(study), "--out", str(out), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_three_processes_on_one_folder_find_one_result_and_pay_nothing_twice(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study, out = write_study(), tmp_path / "out"
    processes = [start(study, out) for _ in range(3)]
    ended = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    results = [json.loads(printed) for printed, _ in ended]
    assert results[0] == results[1] == results[2]
    assert results[0] == json.loads((out / "result.json").read_text("utf-8"))
    assert len(server.asked) == len(set(server.asked)) == results[0]["calls"]["made"]
    names = sorted(path.name for path in out.iterdir())
    pages = ["report.html", "report.md"]
    assert names == [
        *("answers.json", "calls.sqlite", "program.json"),
        *(*pages, "result.json", "study.sqlite3"),
    ]


@pytest.mark.slow
def test_another_study_on_a_folder_in_use_is_one_line(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study, out = write_study(), tmp_path / "out"
    server.holds_after = 40
    first = start(study, out)
    try:
        assert server.is_holding.wait(60)
        other = start(write_study(("seed = 1", "seed = 2"), name="other.toml"), out)
        _, said = other.communicate(timeout=60)
        assert other.returncode == 2
        assert said.startswith(f"error: {out} is in use by another process, for another study: ")
        assert said.count("\n") == 1
        server.release()
        assert first.wait(timeout=120) == 0
    finally:
        first.kill()
        first.communicate()

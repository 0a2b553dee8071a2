from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moa_dspy.cli.optimize import each_warning_once

Run = Callable[..., Result]


def test_a_study_prints_its_table_and_writes_a_program_that_answers(run: Run, folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert "best_single  good " in done.stdout
    assert [f"wrote out/{name}.json" for name in ("program", "result")] == [
        line for line in done.stdout.splitlines() if line.startswith("wrote")
    ]
    assert "single agents" in done.stderr
    assert "search" in done.stderr

    answer = run("ask", "out/program.json", "Repeat this: 42")
    assert (answer.exit_code, answer.stdout) == (0, "42\n")


@pytest.mark.slow
def test_json_is_the_only_thing_on_standard_output(run: Run, folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "out" / "result.json").read_text())
    assert json.loads(done.stdout)["test"]["best_single"]["score"] == 1.0


def test_a_warning_is_shown_once_and_the_logger_is_left_as_it_was() -> None:
    stream, logger = io.StringIO(), logging.getLogger("dspy")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with each_warning_once():
            for message in ("cut", "cut", "other", "cut"):
                logger.warning(message)
        logger.warning("cut")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue().split() == ["cut", "other", "cut"]


METRIC = """
from pathlib import Path

def metric(example, prediction, trace=None):
    if Path("stop").exists():
        raise KeyboardInterrupt
    return float(prediction.answer == example.answer)
"""


def test_an_interrupted_study_goes_on_with_resume(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "interrupting_metric.py").write_text(METRIC, "utf-8")
    monkeypatch.syspath_prepend(folder)
    study = (
        (folder / "study.toml")
        .read_text("utf-8")
        .replace("answer_match", "interrupting_metric:metric")
    )
    (folder / "study.toml").write_text(study, "utf-8")
    (folder / "stop").touch()
    stopped = run("optimize", "study.toml", "--out", "out")
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("the same command with --resume goes on.\n")
    (folder / "stop").unlink()
    assert run("optimize", "study.toml", "--out", "out", "--resume").exit_code == 0


def test_an_interrupt_while_modules_load_promises_nothing(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "interrupted_module.py").write_text("raise KeyboardInterrupt\n", "utf-8")
    monkeypatch.syspath_prepend(folder)
    text = (folder / "study.toml").read_text("utf-8")
    study = text.replace("answer_match", "interrupted_module:metric")
    (folder / "study.toml").write_text(study, "utf-8")
    stopped = run("optimize", "study.toml", "--out", "out")
    assert (stopped.exit_code, stopped.stderr) == (130, "Interrupted.\n")
    assert not (folder / "out").exists()

"""A study file may search the aggregator's prompt; the run's folder tells what became of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.errors import StudyError
from moa_dspy.optimize import run_study
from tests.servers.chat import Reply

Make = Callable[..., Any]
ROOT = Path(__file__).parents[3]
TABLE = '[prompts]\ncandidates = ["most_likely"]\noptimizer = "demos"\ntop = 1\n[search]'


@pytest.mark.slow
@pytest.mark.parametrize("has_storage", [False, True])
def test_prompts_of_a_study_file_are_searched_tuned_and_told(
    server: Any, write_study: Make, tmp_path: Path, said: Make, has_storage: bool
) -> None:
    study = write_study(("[search]", TABLE), ("n_trials = 8", "n_trials = 16"))
    storage = f"sqlite:///{tmp_path / 'study.sqlite3'}" if has_storage else None
    first = run_study(study, out=tmp_path / "one", storage=storage)
    assert first.prompts[0]["name"] == "most_likely"
    assert any(trial.architecture.endswith("; prompt=tuned-1)") for trial in first.trials)
    assert first.notes[-1].startswith("Tuning of prompts took 12 answers of proposers")
    n_asked = len(server.asked)
    # The calls of tuning stand in the table of the report too.
    assert n_asked == first.calls_made == made_in_table(tmp_path / "one")
    again = run_study(study, out=tmp_path / "one", storage=storage)
    assert len(server.asked) == n_asked
    assert said(again) == said(first)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[prompts]", r"must have `candidates`, `texts` or an `optimizer`"),
        ('[prompts]\ncandidates = ["brief"]', r"`prompts.candidates`: unknown 'brief'"),
        ('[prompts]\noptimiser = "try"', r"prompts\.optimiser: unknown key"),
        ('[prompts]\noptimizer = "copro"', r"'copro' needs a language model to write prompts"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_and_nobody_is_asked(
    server: Any, write_study: Make, tmp_path: Path, table: str, message: str
) -> None:
    study = write_study(("[search]", f"{table}\n[search]"))
    with pytest.raises(StudyError, match=message):
        run_study(study, out=tmp_path / "out")
    assert server.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gepa", "miprov2"])
def test_what_an_optimizer_of_prompts_prints_is_in_a_file_and_not_over_the_progress(
    server: Any, write_study: Make, tmp_path: Path, optimizer: str
) -> None:
    study = with_optimizer(server, write_study, optimizer)
    command = [sys.executable, "-m", "moa_dspy", "optimize", str(study), "--out"]
    ran = subprocess.run(
        [*command, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    # Of GEPA and MIPROv2 an agent writes the prompts, and its calls are counted as an agent's.
    assert made_in_table(tmp_path / "out") == len(server.asked)
    log = (tmp_path / "out" / "prompts.log").read_text("utf-8")
    assert len(log) > 200
    # Lines of progress: a few per stage. GEPA alone prints a page per prompt that it tries.
    assert len(ran.stderr) < 6_000, ran.stderr[:3000]
    assert not re.search("gepa|mipro|Iteration|Bootstrap", ran.stderr, re.IGNORECASE), ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no full device")
def test_a_log_that_cannot_be_written_ends_the_study_and_nothing_paid_is_lost(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study = with_optimizer(server, write_study, "miprov2")
    (out := tmp_path / "out").mkdir()
    (log := out / "prompts.log").symlink_to("/dev/full")
    with pytest.raises(StudyError, match=r"prompts\.log cannot be written: No space .* is kept"):
        run_study(study, out=out)
    log.unlink()
    n_asked = len(server.asked)
    found = run_study(study, out=out, resume=True)
    assert found.calls_made == len(server.asked) > n_asked
    assert log.read_text("utf-8")


def made_in_table(out: Path) -> int:
    """Return the number of calls made by the table of a run's report."""
    return sum(row["made"] for row in json.loads((out / "answers.json").read_text())["calls"])


def test_a_request_that_is_sent_again_counts_twice_in_the_table_as_in_the_total(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    by_rule, failed = server.reply, set()

    def reply(body: dict[str, Any]) -> Reply:
        answer: Reply = by_rule(body)
        text = body["messages"][-1]["content"]
        if body["model"] == "e1" and "val 3" in text and text not in failed:
            failed.add(text)
            return Reply(status=500)
        return answer

    server.reply = reply
    found = run_study(write_study(), out=tmp_path / "out")
    assert failed
    assert len(server.asked) == found.calls_made == made_in_table(tmp_path / "out")


def with_optimizer(server: Any, write_study: Make, optimizer: str) -> Path:
    """Return a study whose prompts are tuned by an optimizer that an agent serves."""
    by_rule = server.reply

    def reply(body: dict[str, Any]) -> Reply:
        if not re.search(r"(?:train|val|test) \d+$", body["messages"][-1]["content"].strip()):
            server.asked.append((body["model"], "another question"))
            return Reply("[[ ## instruction ## ]]\nAnswer with the number.\n[[ ## completed ## ]]")
        answer: Reply = by_rule(body)
        return answer

    server.reply = reply
    table = f'[prompts]\noptimizer = "{optimizer}"\nproposer_agent = "e0"\nn_prompts = 2\ntop = 1\n'
    study: Path = write_study(
        ("[search]", f"{table}[search]"),
        ('["vote", "synthesize"]', '["synthesize"]'),
        ("n_trials = 8", "n_trials = 12"),
    )
    return study

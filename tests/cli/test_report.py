from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from moa_dspy import Architecture, MixtureOfAgents, Pool
from moa_dspy.cli.app import app
from moa_dspy.optimize import run_study
from tests.optimize.report.synthetic import synthetic_study
from tests.optimize.report.test_report import RESULT


@pytest.fixture
def run(tmp_path: Path) -> Path:
    synthetic_study(n_trials=20, n_questions=3)[0].write(tmp_path / "result.json")
    return tmp_path


def said(*words: object, code: int = 0) -> str:
    ended = CliRunner().invoke(app, list(map(str, words)))
    assert ended.exit_code == code, ended.output
    return ended.output


def test_report_writes_both_pages_again(run: Path) -> None:
    said("report", run)
    assert (run / "report.html").read_text("utf-8").startswith("<!doctype html>")
    assert (run / "report.md").is_file()


def test_report_writes_systems_and_trials_as_parquet_if_asked(run: Path) -> None:
    said("report", run)
    assert not list(run.glob("*.parquet"))
    assert f"wrote {run / 'trials.parquet'}" in said("report", run, "--parquet")
    trials = pyarrow.parquet.read_table(run / "trials.parquet").to_pylist()
    result = synthetic_study(n_trials=20, n_questions=3)[0]
    assert [trial["architecture"] for trial in trials] == [
        trial.architecture for trial in result.trials
    ]
    assert trials[3]["score"] == result.trials[3].score
    (pick, *_) = pyarrow.parquet.read_table(run / "systems.parquet").to_pylist()
    assert (pick["name"], pick["score"], pick["pick_minus"]) == ("pick", 0.71, None)


def test_compare_puts_runs_beside_each_other(run: Path) -> None:
    other = run / "other"
    other.mkdir()
    RESULT.write(other / "result.json")
    found = json.loads(said("compare", run, other, "--json"))
    assert found[str(run)]["pick on test %"] == "71.0\n[67.0, 75.0]"
    assert found[str(other)]["pick minus best single on test"] == "+2.1\n[-1.2, +5.4]"
    assert "pick minus best single" in said("compare", run, other)


def test_compare_needs_two_runs(run: Path) -> None:
    assert "needs two runs or more" in said("compare", run, code=2)


def test_pick_lists_the_front_and_says_what_was_never_tested(run: Path) -> None:
    lines = said("pick", run).splitlines()
    assert lines[0].startswith("1. ")
    assert "not tested: it was not asked a test question; " in lines[0]


def test_pick_shows_val_and_costs_and_warns_of_a_choice_by_test_scores(run: Path) -> None:
    result = synthetic_study(n_trials=20, n_questions=3)[0]
    tested = replace(result, front=(str(result.pick), "haiku"))
    tested.write(run / "result.json")
    first, second = said("pick", run).splitlines()
    # The pick was fixed before the test, so its test score needs no warning.
    assert first.endswith("; tested: 71.0 % on test")
    assert second.endswith(
        "tested: 67.0 % on test, which is too high if it is the reason for choosing it"
    )
    assert "1.0 calls" in second


AGENT = """[[agents]]
name = "{name}"
model = "openai/{name}"
api_base = "http://localhost:1/v1"
"""


def test_a_pick_that_is_not_recommended_is_listed_last_and_can_be_written(run: Path) -> None:
    agents = run / "pool.toml"
    agents.write_text("\n".join(AGENT.format(name=name) for name in ("haiku", "flash")))
    pool, haiku = Pool.read(agents), Architecture.single("haiku")
    MixtureOfAgents("question -> answer", haiku, pool=pool).save(run / "program.json")
    picked = Architecture.parse("flash + haiku > vote(haiku)")
    result = replace(synthetic_study(n_trials=20)[0], pick=picked, recommended=haiku)
    replace(result, front=("haiku",)).write(run / "result.json")
    assert said("pick", run).splitlines()[1].startswith(f"2. {picked}; ")
    assert f"program-2.json: {picked}; " in said("pick", run, 2, "--pool", agents)
    assert MixtureOfAgents.load(run / "program-2.json", pool=pool).architecture == picked
    # It is listed once where it is on the front, and is the program of the run where recommended.
    replace(result, front=("haiku", str(picked))).write(run / "result.json")
    assert len(said("pick", run).splitlines()) == 2
    replace(result, front=("haiku",), recommended=picked).write(run / "result.json")
    assert len(said("pick", run).splitlines()) == 1


@pytest.mark.slow
def test_pick_writes_a_program_of_a_table_of_answers_without_a_pool(tmp_path: Path) -> None:
    rows = [
        {"question": n, "agent": name, "answer": n if n % k else name, "score": int(n % k > 0)}
        for n in range(30)
        for name, k in (("a", 2), ("b", 3))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "s.toml").write_text(
        'name = "t"\n[data]\nreader = "recorded"\npath = "t.jsonl"\n'
        "sizes = { train = 2, val = 14, test = 14 }\n",
        "utf-8",
    )
    run_study(tmp_path / "s.toml", out=tmp_path / "out")
    member = said("pick", tmp_path / "out").splitlines()[0].removeprefix("1. ").partition(":")[0]
    assert f"program-1.json: {member}; " in said("pick", tmp_path / "out", 1)
    content = json.loads((tmp_path / "out" / "program-1.json").read_bytes())
    first = Architecture.parse(member).agents[0]
    assert content["agents"][first]["model"] == f"recorded/{first}"
    wrong = said("pick", tmp_path / "out", 1, "--pool", tmp_path / "s.toml", code=2)
    assert "s.toml is a study of a table of answers, which has no agents to call" in wrong


def test_pick_refuses_a_number_beyond_the_front(run: Path) -> None:
    assert "error: N must be from 1 to" in said("pick", run, 99, code=2)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    assert "it has no result.json" in said("report", tmp_path, code=2)

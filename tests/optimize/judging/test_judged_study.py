"""Study files with a judge: their errors, kill -9 and resume, two processes, and a table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.errors import DataError, MoaError, PoolError, StudyError
from moa_dspy.optimize import run_study
from moa_dspy.optimize.study import PreparedStudy
from tests.optimize.judging.world import agent, first_judge, true_judge
from tests.servers.chat import ChatServer, Reply, serving

ROOT = Path(__file__).parents[3]
SCRIPTS = {
    "mid": agent("mid", 4.6),
    "good": agent("good", 5.0, gain=0.3),
    "bad": agent("bad", 3.0),
    "judge": true_judge,
    "other": first_judge,
}
STUDY = """
name = "judged"
seed = 1
[task]
signature = "question -> answer"
adapter = "plain"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
agents = ["mid", "good", "bad"]
max_depth = 1
[search]
n_trials = 7
num_threads = 4
"""
JUDGE = """
[judge]
agent = "judge"
is_weighted = false
"""


def script(body: dict[str, Any]) -> Reply:
    texts = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return Reply(SCRIPTS[body["model"]](texts[-1]))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(script) as running:
        yield running


def write_study(folder: Path, url: str, *, judge: str = JUDGE, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{split}-{i}", "split": split, "question": f"{split} {i}", "stored": f"is {i}"}
        for split, n in (("val", 10), ("test", 10))
        for i in range(n)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    agents = "".join(
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{url}"\n'
        "temperature = 0.0\nmax_tokens = 64\nusd_per_million_prompt_tokens = 1.0\n"
        "usd_per_million_completion_tokens = 0.0\n"
        for name in SCRIPTS
    )
    path = folder / "judged.toml"
    path.write_text(STUDY + judge + more + agents, "utf-8")
    return path


def asked(server: ChatServer) -> list[str]:
    return [json.dumps([body["model"], body["messages"]]) for body in server.bodies]


def decided(folder: Path) -> dict[str, Any]:
    """Return what a seed decides of a result."""
    content = json.loads((folder / "result.json").read_text("utf-8"))
    kept = {name: content[name] for name in ("pick", "recommended", "verdict")}
    trials = [(trial["architecture"], trial["score"]) for trial in content["trials"]]
    return {**kept, "trials": trials, "diagnostics": content["judge"]["diagnostics"]}


@pytest.mark.slow
def test_a_judged_study_runs_from_a_file_and_pays_nothing_twice(
    server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url)
    result = run_study(study, out=tmp_path / "out")
    assert result.pick.aggregator == "good"
    assert result.verdict.kind == "mixture"
    requests = asked(server)
    assert len(requests) == len(set(requests)) == result.calls_made
    assert run_study(study, out=tmp_path / "out").pick == result.pick
    assert len(asked(server)) == len(requests)


@pytest.mark.slow
def test_two_processes_find_the_same_and_pay_nothing_twice(
    server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url)
    run_study(study, out=tmp_path / "alone")
    alone, n_alone = decided(tmp_path / "alone"), len(asked(server))
    server.bodies.clear()
    command = [sys.executable, "-m", "moa_dspy", "optimize", str(study), "--out"]
    both = [
        subprocess.Popen([*command, str(tmp_path / "shared")], cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    requests = asked(server)
    assert len(requests) == len(set(requests))
    assert decided(tmp_path / "shared") == alone
    # Two processes may begin what one would have stopped early; here nothing is stopped.
    assert len(requests) == n_alone


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was_killed(server: ChatServer, tmp_path: Path) -> None:
    study = write_study(tmp_path, server.url)
    run_study(study, out=tmp_path / "whole")
    whole, n_whole = decided(tmp_path / "whole"), len(asked(server))
    server.bodies.clear()
    command = [sys.executable, "-m", "moa_dspy", "optimize", str(study), "--out"]
    out = tmp_path / "killed"
    with subprocess.Popen([*command, str(out)], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        judged = 0
        while judged < 60 and process.poll() is None:
            time.sleep(0.05)
            judged = sum(body["model"] == "judge" for body in list(server.bodies))
        os.kill(process.pid, signal.SIGKILL)
    n_before = len(asked(server))
    assert n_before < n_whole
    run_study(study, out=out, resume=True)
    assert decided(out) == whole
    # Only what was on its way when the process died is asked again.
    assert len(asked(server)) - len(set(asked(server))) <= 4


@pytest.mark.parametrize(
    ("judge", "error", "message"),
    [
        ("", StudyError, r"needs `task.metric` or the table `\[judge\]`"),
        ("[judge]\n", StudyError, "`judge.agent` is missing"),
        ('[judge]\nagent = "nobody"\n', StudyError, "`judge.agent`: unknown agent 'nobody'; the p"),
        ("[judge]\nagent = 3\n", StudyError, "`judge.agent` must be the name of an agent"),
        ("[judge]\nagent = []\n", StudyError, "`judge.agent` is missing"),
        ('[judge]\nagent = { name = "x" }\n', PoolError, "judge.agent.model: this key is missing"),
        (JUDGE + 'criteria = " "\n', StudyError, "`judge.criteria` must say what is better"),
        (JUDGE + 'reference = "gold"\n', StudyError, "`judge.reference`: 'gold' is neither"),
        (JUDGE + 'picks = "metric"\n', StudyError, '`picks = "metric"` needs a metric'),
        (
            JUDGE + 'kind = "best"\n',
            StudyError,
            "`judge.kind`: unknown 'best'; known ones",
        ),
        (
            '[judge]\nagent = "judge"\nkind = "grade"\norders = "both"\n',
            StudyError,
            "`judge.orders`",
        ),
        (
            '[judge]\nagent = "judge"\nkind = "skill"\ncriteria = "x"\n',
            StudyError,
            "can only be set with kind p",
        ),
        ('[judge]\nkind = "recorded"\n', StudyError, "`judge.path` is needed with"),
        ('[judge]\nkind = "recorded"\npath = "none.jsonl"\n', DataError, r"none\.jsonl"),
        (JUDGE + "speed = 1\n", StudyError, "judge.speed: unknown key"),
    ],
)
def test_a_mistake_in_the_table_is_an_error_before_anything_is_asked(
    judge: str, error: type[MoaError], message: str, server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url, judge=judge)
    with pytest.raises(error, match=message):
        run_study(study, out=tmp_path / "out")
    assert server.bodies == []
    assert not (tmp_path / "out").exists()


def test_a_metric_and_a_judge_need_a_word_on_which_picks(
    server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url)
    text = study.read_text("utf-8").replace('"plain"', '"plain"\nmetric = "answer_match"')
    study.write_text(text, "utf-8")
    with pytest.raises(StudyError, match="set which one decides"):
        run_study(study, out=tmp_path / "out")


def test_a_reference_field_that_a_row_lacks_is_an_error(server: ChatServer, tmp_path: Path) -> None:
    study = write_study(tmp_path, server.url, judge=JUDGE + 'reference = "stored"\n')
    assert PreparedStudy.read(study).study.judge is not None
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text("utf-8").replace('"is 3"', "null"), "utf-8")
    with pytest.raises(DataError, match="Split 'val': 1 of 10 rows have no value in 'stored'"):
        run_study(study, out=tmp_path / "out")


@pytest.mark.slow
def test_prompts_of_a_study_in_which_a_judge_picks_need_no_metric(
    server: ChatServer, tmp_path: Path
) -> None:
    prompts = '[prompts]\ncandidates = ["most_likely"]\n'
    study = write_study(tmp_path, server.url, more=prompts)
    found = run_study(study, out=tmp_path / "out")
    assert [prompt["name"] for prompt in found.prompts] == ["most_likely"]


@pytest.mark.slow
def test_a_judge_with_a_table_of_its_own_and_a_jury(server: ChatServer, tmp_path: Path) -> None:
    own = (
        f'{{ name = "mine", model = "openai/judge", api_base = "{server.url}", temperature = 0.0 }}'
    )
    judge = f'[judge]\nagent = [{own}, "judge", "other"]\nis_weighted = false\n'
    result = run_study(write_study(tmp_path, server.url, judge=judge), out=tmp_path / "out")
    assert result.judge is not None
    assert result.judge.judge == "Jury mine, judge, other"
    assert set(result.judge.costs) == {"mine", "judge", "other"}
    assert result.pick.aggregator == "good"


@pytest.mark.slow
def test_a_table_of_preferences_replays_a_study_without_a_judge(
    server: ChatServer, tmp_path: Path
) -> None:
    # Of single agents alone: good beats mid, and mid beats bad, on every question.
    level = {"bad": 0, "mid": 1, "good": 2}
    ids = [f"{split}-{i}" for split in ("val", "test") for i in range(10)]
    rows = [
        {"question": i, "system": a, "reference": b, "preference": float(level[a] > level[b])}
        for i in ids
        for a, b in (("bad", "mid"), ("bad", "good"), ("mid", "good"))
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    judge = '[judge]\nkind = "recorded"\npath = "table.jsonl"\n'
    study = write_study(tmp_path, server.url, judge=judge)
    study.write_text(study.read_text("utf-8").replace("max_depth = 1", "max_depth = 0"), "utf-8")
    result = run_study(study, out=tmp_path / "out")
    assert str(result.pick) == "good"
    assert {t.architecture: t.score for t in result.trials} == {"bad": 0.0, "mid": 0.0, "good": 0.5}
    assert {body["model"] for body in server.bodies} == {"bad", "mid", "good"}

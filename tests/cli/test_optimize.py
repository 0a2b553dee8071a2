from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moa_dspy.agent import Agent
from moa_dspy.calls.lm.lm import each_warning_once
from moa_dspy.pool import Pool
from tests.servers.chat import Reply, serving

Run = Callable[..., Result]


def test_a_study_prints_its_table_and_writes_a_program_that_answers(run: Run, folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "my out")
    assert done.exit_code == 0, done.stderr
    assert "best_single  good " in done.stdout
    names = ("program.json", "result.json", "answers.json", "report.html", "report.md")
    assert [f"wrote my out/{name}" for name in names] == [
        line for line in done.stdout.splitlines() if line.startswith("wrote")
    ]
    assert done.stdout.splitlines()[-1].startswith(
        """next: moa-dspy ask 'my out' "..." --pool pool.toml (or """
    )
    assert "single agents" in done.stderr
    assert "search" in done.stderr

    answer = run("ask", "my out/program.json", "Repeat this: 42", "--pool", "pool.toml")
    assert (answer.exit_code, answer.stdout) == (0, "42\n")


@pytest.mark.slow
def test_a_program_does_not_choose_whom_it_asks_but_says_where_the_agents_of_its_run_are(
    run: Run, folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, program = folder / "study.toml", str(folder / "out" / "program.json")
    agents = (folder / "pool.toml").read_text("utf-8")
    # The agents are the study's own, as in the README; one has no temperature.
    listed = agents.replace("temperature = 0.0", 'temperature = "none"', 1)
    study.write_text(study.read_text("utf-8").replace('pool = "pool.toml"', "") + listed, "utf-8")
    assert run("optimize", str(study), "--out", str(folder / "out")).exit_code == 0
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    asked = (["ask", program, "Repeat 42"], ["ask", str(folder / "out"), "42"], ["chat", program])
    for command in asked:
        refused = run(*command)
        assert refused.exit_code == 2
        words = f"does not choose which models are called; its run had --pool {study}."
        assert words in refused.stderr.replace("\n", " ")
        given = run(*command, "--pool", str(study), input="Repeat 42\n")
        assert "42" in given.stdout, given.stderr
    picked = run("pick", str(folder / "out"), "1")
    assert f"wrote {folder / 'out' / 'program-1.json'}" in picked.stdout, picked.stderr

    (elsewhere / "copy.json").write_bytes(Path(program).read_bytes())
    assert "`--pool` must name a TOML file" in run("ask", "copy.json", "Repeat 1").stderr
    assert run("ask", "copy.json", "Repeat 1", "--pool", str(study)).stdout == "1\n"
    study.unlink()
    assert f"--pool {study}, which no longer exists" in run("ask", program, "Repeat 1").stderr
    assert "no.json cannot be read: there is no such file" in run("ask", "no.json", "1").stderr


@pytest.mark.slow
def test_json_is_the_only_thing_on_standard_output(run: Run, folder: Path) -> None:
    done = run("optimize", "study.toml", "--out", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "out" / "result.json").read_text())
    assert json.loads(done.stdout)["test"]["best_single"]["score"] == 1.0


@pytest.mark.slow
def test_quiet_shows_no_progress_and_verbose_every_trial(run: Run, folder: Path) -> None:
    loud = run("optimize", "study.toml", "--out", "loud", "-v").stderr
    assert "trial 1 (single): 100.0 % on 8 questions: good" in loud
    assert "calls made" in loud
    quiet = run("optimize", "study.toml", "--out", "quiet", "-q")
    assert quiet.stderr == ""
    assert "Program: good" in quiet.stdout


@pytest.mark.slow
def test_a_study_is_written_into_mlflow(run: Run, folder: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    ended = run("optimize", "study.toml", "--out", "out", "-q", "--mlflow", uri)
    assert ended.exit_code == 0, ended.output
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    (study,) = (
        mlflow_run for mlflow_run in runs if "mlflow.parentRunId" not in mlflow_run.data.tags
    )
    assert study.data.metrics["test_pick"] == 1.0
    files = {file.path for file in client.list_artifacts(study.info.run_id)}
    assert {"program.json", "report.html", "result.json"} <= files


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


def test_a_reply_that_was_cut_is_said_once_of_each_agent() -> None:
    streams, logger = [io.StringIO(), io.StringIO()], logging.getLogger("dspy")
    handlers = [logging.StreamHandler(stream) for stream in streams]
    with serving(Reply("The capital is", finish_reason="length")) as server:
        agents = [Agent(name=name, model="openai/x", api_base=server.url) for name in ("a", "b")]
        pool = Pool(agents)
        for handler in handlers:
            logger.addHandler(handler)
        try:
            with each_warning_once():
                for question in ("1", "2"):
                    for name in ("a", "b"):
                        pool.lm(name)(question)
        finally:
            for handler in handlers:
                logger.removeHandler(handler)
    for stream in streams:
        said = [line.partition(" was ")[0] for line in stream.getvalue().splitlines()]
        assert said == ["a: LM response", "b: LM response"]


FOR_LESS = """
name = "for-less"
seed = 1
pool = "pool.toml"
[task]
signature = "question -> answer"
adapter = "plain"
metric = "answer_match"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
combines = ["vote"]
max_depth = 1
max_width = 3
[search]
n_trials = 14
objectives = ["win_rate", "usd"]
min_gain = 0.2
[limits]
usd = 0.0004
"""


@pytest.mark.slow
def test_a_pick_under_a_cost_limit_is_as_good_as_the_best_agent_for_less(
    run: Run, folder: Path, server: str
) -> None:
    # `good` is always right and costs 1,000 usd per million tokens, 4 tokens a question: 0.004
    # usd, ten times the limit. Each `third-i` misses another third; a vote of them misses none.
    prices = {"good": 1000.0, "third-0": 1.0, "third-1": 1.0, "third-2": 1.0}
    agents = [
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{server}"\n'
        f"temperature = 0.0\nusd_per_million_prompt_tokens = {price}\n"
        f"usd_per_million_completion_tokens = {price}\n"
        for name, price in prices.items()
    ]
    (folder / "pool.toml").write_text("\n".join(agents), "utf-8")
    rows = [
        {"split": split, "question": f"Repeat {split} {i}", "answer": str(i)}
        for split in ("train", "val", "test")
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (folder / "study.toml").write_text(FOR_LESS, "utf-8")
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 0, done.stderr
    result = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    headline = "As good as good within 20 points, at 0.27 % of its price: "
    # A call of the vote costs 4 tokens at 1 usd, of `good` 4 at 1,000. Two of the three are
    # asked first, and the third where they differ: one of them is wrong in 2 of 3 questions.
    assert result["cost_verdict"]["ratio"] == pytest.approx((2 + 2 / 3) / 1000)
    assert result["cost_verdict"]["kind"] == "as_good"
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(headline)]
    assert done.stdout.index(headline) < done.stdout.index("Use the mixture: ")
    assert result["recommended"] == result["pick"]
    # One agent alone misses 8 of 24; it is on the front since it costs a third.
    (alone,) = result["front_verdicts"]
    assert alone in result["front"]
    assert result["front_verdicts"][alone]["estimate"] == pytest.approx(-8 / 24)
    assert result["front_verdicts"][alone]["ratio"] == pytest.approx(1 / 1000)
    assert result["front_verdicts"][alone]["kind"] != "as_good"
    assert "  Not shown to be as good as good within 20 points" in done.stdout


METRIC = """
from pathlib import Path

def metric(example, prediction, trace=None):
    # A check tries it on the right answer and on "text".
    if Path("stop").exists() and prediction.answer not in (example.answer, "text"):
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
    assert stopped.stderr.endswith("the same command with --resume continues.\n")
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


@pytest.mark.slow
def test_a_changed_study_replaces_the_run_and_the_programs_of_its_front(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("optimize", "study.toml").exit_code == 0
    assert run("pick", "runs/tiny", "1").exit_code == 0
    assert not caplog.records
    study = (folder / "study.toml").read_text("utf-8")
    (folder / "study.toml").write_text(study.replace("n_trials = 3", "n_trials = 2"), "utf-8")
    assert run("optimize", "study.toml").exit_code == 0
    assert "runs/tiny: another study of this name is replaced." in caplog.messages
    assert not (folder / "runs" / "tiny" / "program-1.json").exists()
    assert (folder / "runs" / "tiny" / "program.json").exists()

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from typer.testing import Result

from moa_dspy.adapters import PlainChat
from moa_dspy.data import RecordedResponses
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.program_file import save_program
from moa_dspy.testing import recorded_pool
from tests.servers.chat import Reply, serving

Run = Callable[..., Result]


def saved_mixture(folder: Path) -> Path:
    pool = Pool.read(folder / "pool.toml")
    mixture = MixtureOfAgents(
        dspy.Signature("question, hint -> answer", "Repeat."),
        "bad + good > vote(good)",
        pool=pool,
        adapter=PlainChat(),
        stop_early=False,
    )
    save_program(mixture, folder / "mixture.json")
    return folder / "mixture.json"


def test_ask_reports_each_agent(run: Run, folder: Path) -> None:
    path = saved_mixture(folder)
    done = run("ask", str(path), "Repeat", "--input", "hint=this: 42", "--json")
    content = json.loads(done.stdout)
    assert content["architecture"] == "bad + good > vote(good)"
    assert {r["agent"]: r["text"] for r in content["responses"]} == {"bad": "43", "good": "42"}
    # A tie of 42 and 43 goes to `good`; 2 calls of 3 prompt tokens at 1 usd per million.
    assert (content["answer"], content["outputs"]) == ("42", {"answer": "42"})
    assert content["usd"] == pytest.approx(6e-6)
    assert content["failures"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pool", "nowhere"], "error: Unknown pool 'nowhere'; optimize/pools has local."),
        (["--pool", "nowhere.toml"], "error: nowhere.toml cannot be read"),
        (["--pool", "./pool"], "error: pool cannot be read"),
        ([], "The program also needs hint."),
        (["--input", "hint"], "must be NAME=VALUE with a NAME of: hint."),
        (["--input", "hnt=x"], "must be NAME=VALUE with a NAME of: hint."),
        (["--input", "question=x"], "must be NAME=VALUE with a NAME of: hint."),
    ],
)
def test_a_wrong_way_to_ask_is_explained(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    done = run("ask", str(saved_mixture(folder)), "Repeat", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_program_of_a_table_of_answers_needs_a_pool_with_its_agents(
    run: Run, folder: Path
) -> None:
    given = {name: {"1": "x"} for name in ("good", "bad")}
    pool = recorded_pool(RecordedResponses(given, {"1": "q"}))
    text = "bad + good > vote(good)"
    mixture = MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat())
    save_program(mixture, folder / "program.json")
    # The pool `local`, which has agents of these names, is not meant.
    done = run("ask", ".", "Repeat 7")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "a table of answers, which has no agents to call: `--pool` must name a" in done.stderr
    assert "a file with agents called bad, good." in done.stderr
    assert run("ask", ".", "Repeat 7", "--pool", "pool.toml").stdout == "7\n"


@pytest.mark.parametrize("question", ["", " \n"])
def test_where_there_is_nothing_to_answer_no_agent_is_asked(
    run: Run, folder: Path, question: str
) -> None:
    done = run("ask", str(saved_mixture(folder)), question, "--input", "hint=", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "There is nothing to answer: question, hint must have text." in done.stderr
    # An input of several may be empty.
    assert run("ask", str(saved_mixture(folder)), question, "--input", "hint=42").exit_code == 0


@pytest.mark.parametrize("program", ["runs/unfinished", "./good", "godo"])
def test_what_is_no_program_and_no_agent_is_told_what_would_be(
    run: Run, folder: Path, program: str
) -> None:
    (folder / "runs/unfinished").mkdir(parents=True)
    done = run("ask", program, "Repeat")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{program!r} is no saved program, no folder of a finished run, and no" in done.stderr
    assert "agent of the pool, which has" in done.stderr


def test_a_cut_reply_is_said_once_of_each_agent(run: Run, folder: Path) -> None:
    stream, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(stream)
    logger = logging.getLogger("dspy")
    with serving(Reply("The capital is", finish_reason="length")) as server:
        agents = [
            f'[[agents]]\nname = "{name}"\nmodel = "openai/x"\napi_base = "{server.url}"\n'
            for name in ("a", "b")
        ]
        (folder / "cut.toml").write_text("".join(agents), "utf-8")
        logger.addHandler(handler)
        try:
            done = run("ask", "a*2 + b > synthesize(a)", "Where?", "--pool", "cut.toml")
        finally:
            logger.removeHandler(handler)
    assert done.exit_code == 0, done.stderr
    said = sorted(line.partition(" was ")[0] for line in stream.getvalue().splitlines())
    assert said == ["a: LM response", "b: LM response"]

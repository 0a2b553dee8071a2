"""A chat server that answers by rule, and a folder to run commands in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from moa_dspy.cli import app
from tests.servers.chat import Reply, serving

# Agent `good` knows every answer, `bad` none: the best single agent is never in doubt.
STUDY = """
name = "tiny"
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
combines = ["synthesize"]
max_depth = 1
[search]
n_trials = 3
"""


def by_rule(body: dict[str, Any]) -> Reply:
    """Answer the number in the question; `bad` adds one, `third-i` errs where number % 3 is i."""
    question = body["messages"][-1]["content"].split("Responses from models:")[0]
    model = body["model"]
    number = int(question.split()[-1]) + (model == "bad")
    if model.startswith("third-") and number % 3 == int(model[-1]):
        # Each errs in its own way: two that err alike would outvote the third.
        number += 100 + int(model[-1])
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return Reply(str(number), usage=usage)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(by_rule) as running:
        yield running.url


@pytest.fixture
def folder(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a pool called `local` and a study of the same agents."""
    agents = [
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{server}"\n'
        "temperature = 0.0\nusd_per_million_prompt_tokens = 1.0\n"
        "usd_per_million_completion_tokens = 0.0\n"
        for name in ("good", "bad")
    ]
    pools = tmp_path / "optimize" / "pools"
    pools.mkdir(parents=True)
    for path in (pools / "local.toml", tmp_path / "pool.toml"):
        path.write_text("\n".join(agents), "utf-8")
    rows = [
        {"split": split, "question": f"Repeat {split} {i}", "answer": str(i)}
        for split in ("train", "val", "test")
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Return what runs the command with some arguments; a bug comes out as it is."""
    return lambda *arguments, **options: CliRunner().invoke(
        app, arguments, catch_exceptions=False, **options
    )

"""Studies through the command line whose endpoints reply in ways that a verdict must survive."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.servers.chat import Reply, serving

Run = Callable[..., Result]
N_VAL = 36

STUDY = """
name = "replies"
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
[search]
n_trials = 8
objectives = ["win_rate"]
"""


class Endpoint:
    """An endpoint that counts requests, and replies by ``say(model, number)`` or ``is_down``."""

    url = ""

    def __init__(self) -> None:
        self.asked = 0
        self.say: Callable[[str, int], tuple[str, str]] = lambda *_: ("", "stop")
        self.is_down: Callable[[int], bool] = lambda _: False

    def __call__(self, body: dict[str, Any]) -> Reply:
        self.asked += 1
        (number,) = re.findall(r"double (\d+)", body["messages"][-1]["content"])
        if self.is_down(int(number)):
            return Reply(status=500)
        text, end = self.say(body["model"], int(number))
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return Reply(text, finish_reason=end, usage=usage)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    script = Endpoint()
    with serving(script) as running:
        script.url = running.url
        yield script


@pytest.fixture
def folder(tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a pool of three and a study of 36 val and 36 test rows."""
    agents = [
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\n'
        f'api_base = "{endpoint.url}"\ntemperature = 0.0\n'
        for name in ("ash", "bay", "fir")
    ]
    (tmp_path / "pool.toml").write_text("\n".join(agents), "utf-8")
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    write_rows(tmp_path, lambda number: str(2 * number))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(folder: Path, gold: Callable[[int], Any]) -> None:
    rows = [
        {
            "id": str(number),
            "question": f"double {number}",
            "answer": gold(number),
            "split": "val" if number < N_VAL else "test",
        }
        for number in range(2 * N_VAL)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")


def by_thirds(model: str, number: int) -> str:
    """Answer right but for another third of the numbers per model, with wrong answers of its own.

    A model is right on two thirds; of any number two models are right, so a vote always is.
    """
    place = ("ash", "bay", "fir").index(model)
    return str(9000 + place) if number % 3 == place else str(2 * number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "with_thoughts",
    [
        "{}",
        "<think>\n{model} doubles it\n</think>\n\n{}",
        "<thinking>{model}: 17?</thinking>{}",
        "{model} was told to think\n</think>\n{}",
    ],
)
def test_thoughts_in_the_replies_do_not_turn_the_verdict(
    run: Run, folder: Path, endpoint: Endpoint, with_thoughts: str
) -> None:
    endpoint.say = lambda model, number: (
        with_thoughts.format(by_thirds(model, number), model=model),
        "stop",
    )
    done = run("optimize", "study.toml", "--out", "out", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["recommended"] == "ash + bay + fir > vote(ash)"
    assert result["verdict"]["kind"] == "mixture"
    # Every vote is right, and each agent on two thirds of the 36 rows.
    assert (result["test"]["pick"]["score"], result["test"]["best_single"]["score"]) == (1, 2 / 3)


def test_a_study_in_which_nothing_can_be_right_stops_after_the_single_agents(
    run: Run, folder: Path, endpoint: Endpoint
) -> None:
    # Hidden labels: a benchmark gives -1 for every row.
    write_rows(folder, lambda _: -1)
    endpoint.say = lambda model, number: (by_thirds(model, number), "stop")
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert f"All 3 agents score 0 on all {N_VAL} questions of val" in said
    assert "Is the metric or the format of the answers wrong? Expected '-1'; ash replied" in said
    assert "bay replied '0'; fir replied '0'" in said
    assert "Program:" not in done.stdout
    assert not (folder / "out" / "program.json").exists()
    # Three agents, each once per row of val.
    assert endpoint.asked == 3 * N_VAL


@pytest.mark.slow
def test_rows_without_gold_are_refused_or_left_out_by_a_switch(
    run: Run, folder: Path, endpoint: Endpoint
) -> None:
    write_rows(folder, lambda number: None if number in (3, N_VAL + 2) else str(2 * number))
    endpoint.say = lambda model, number: (by_thirds(model, number), "stop")
    refused = run("optimize", "study.toml", "--out", "out")
    assert refused.exit_code == 2
    assert "must have a value, but has none on line 4, line 39" in " ".join(refused.stderr.split())
    assert endpoint.asked == 0

    changed = STUDY.replace("[data]", "[data]\ndrops_incomplete = true")
    (folder / "study.toml").write_text(changed, "utf-8")
    done = run("optimize", "study.toml", "--out", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["early"]["n_rows"] == N_VAL - 1


@pytest.mark.slow
def test_the_report_counts_answers_that_the_token_limit_cut(
    run: Run, folder: Path, endpoint: Endpoint
) -> None:
    def say(model: str, number: int) -> tuple[str, str]:
        is_cut = model == "bay" and number in (4, 7)
        return by_thirds(model, number), "length" if is_cut else "stop"

    endpoint.say = say
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Responses cut by the token limit: bay 2. Raise `max_tokens` of these agents." in said
    written = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    assert written["cut"] == {"bay": {"length": 2}}


@pytest.mark.slow
def test_a_study_of_which_half_the_questions_always_fail_ends_and_says_what_failed(
    run: Run, folder: Path, endpoint: Endpoint
) -> None:
    endpoint.say = lambda model, number: (by_thirds(model, number), "stop")
    endpoint.is_down = lambda number: number % 2 == 1
    done = run("optimize", "study.toml", "--out", "out")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    # Of 36 val and 36 test questions, 18 each fail for each of three agents.
    written = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    # Two threads that ask the same one at once have it fail once.
    assert written["failures"] == {"ash": 36, "bay": 36, "fir": 36}
    ((reason, n),) = written["failure_reasons"].items()
    assert n == sum(written["failures"].values())
    assert "HTTP 500" in reason
    assert f"{n} times: {reason}" in said
    # Each failed one is asked 3 times; the first ones 5 to 10 times, and a few answered ones are
    # asked again to see that the model works.
    assert 108 + 3 * n <= endpoint.asked <= 108 + 5 * n

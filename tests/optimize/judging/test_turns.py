"""Studies of conversations: every turn is asked of the whole mixture, and every turn graded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import ArchitectureError, DataError, MoaError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import run_study
from moa_dspy.optimize.preflight import check_before
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.presets import TurnByTurn
from moa_dspy.testing import scripted_pool
from tests.servers.chat import ChatServer, Reply, serving

QUALITY = {"good": 6, "mid": 4, "bad": 2}
"""Agents by the quality of their first answers; the second is one better if it was told of it."""
SIGNATURE = "question, history: dspy.History -> answer"


def texts(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def script(body: dict[str, Any]) -> Reply:
    said, name = texts(body), body["model"]
    if name == "judge":
        return Reply(re.findall(r"quality (\d)", said[-1])[-1])
    earlier = [m["content"] for m in body["messages"] if m["role"] == "assistant"]
    read = [int(n) for n in re.findall(r"quality (\d)", said[-1] + "".join(said[:1]))]
    level = max([*read, QUALITY[name]]) if name == "good" else QUALITY[name]
    return Reply(f"{name}: quality {level + len(earlier)}")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(script) as running:
        yield running


def write_study(folder: Path, url: str, *, judge: str = 'kind = "grade"', turns: str = "") -> Path:
    rows = [
        {"id": f"{split}-{i}", "split": split, "turns": [f"{split} {i}?", f"And {split} {i}, why?"]}
        for split, n in (("val", 6), ("test", 8))
        for i in range(n)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    agents = "".join(
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{url}"\n'
        "temperature = 0.0\nmax_tokens = 64\n"
        for name in (*QUALITY, "judge")
    )
    path = folder / "talks.toml"
    path.write_text(
        'name = "talks"\n[task]\nsignature = "question -> answer"\nadapter = "plain"\n'
        f'turns = "{turns or "turns"}"\n[data]\npath = "rows.jsonl"\ninputs = ["turns"]\n'
        f'split_column = "split"\n[judge]\nagent = "judge"\n{judge}\n'
        '[space]\nagents = ["good", "mid", "bad"]\nmax_depth = 1\n[search]\nn_trials = 6\n'
        f"num_threads = 4\n{agents}",
        "utf-8",
    )
    return path


def talked(pool: Any = None, **options: Any) -> tuple[TurnByTurn, list[str]]:
    """Return a conversation of one agent that repeats what it is sent, and the prompts."""
    prompts: list[str] = []

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return f"answer {len(prompts)}"

    pool = scripted_pool({"a": reply})
    mixture = MixtureOfAgents(SIGNATURE, "a", pool=pool, adapter=PlainChat())
    return TurnByTurn(mixture, **options), prompts


def test_the_second_turn_is_asked_with_the_first_and_its_answer() -> None:
    program, prompts = talked()
    found = program(turns=["Who?", "When?"])
    assert found.answer == ["answer 1", "answer 2"]
    assert len(prompts) == 2
    assert "Who?" not in prompts[1] or prompts[1].index("Who?") < prompts[1].index("When?")


@pytest.mark.parametrize("turns", [None, "Who?", [], [1]])
def test_turns_that_are_no_list_of_texts_are_an_error(turns: Any) -> None:
    with pytest.raises(DataError, match="`turns` must be a list of texts, but got"):
        talked()[0](turns=turns)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("question -> answer", "needs an input of type dspy.History"),
        ("a, b -> answer", "one input and one output, such as 'question -> answer'"),
        ("question -> answer, why", "has the inputs question and the outputs answer, why"),
    ],
)
def test_a_signature_that_is_no_conversation_is_an_error(signature: str, message: str) -> None:
    mixture = MixtureOfAgents(signature, "a", pool=scripted_pool({"a": str}))
    with pytest.raises(ArchitectureError, match=message):
        TurnByTurn(mixture)


@pytest.mark.slow
def test_both_turns_are_asked_and_graded_and_nothing_is_paid_twice(
    server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url)
    result = run_study(study, out=tmp_path / "out")
    later = [
        body for body in server.bodies if "And " in texts(body)[-1] and body["model"] != "judge"
    ]
    assert later
    for body in later:
        said = [m for m in body["messages"] if m["role"] != "system"]
        assert [m["role"] for m in said] == ["user", "assistant", "user"]
        # "And val 3, why?" follows "val 3?" and the answer to it.
        first = re.search(r"And (\w+ \d+), why", said[2]["content"])
        assert first is not None
        assert f"{first[1]}?" in said[0]["content"]
        assert re.search(r"^\w+: quality \d", said[1]["content"])
    graded = [texts(body)[-1] for body in server.bodies if body["model"] == "judge"]
    assert any("conversation" in text for text in graded)
    assert any("conversation" not in text for text in graded)
    assert result.val["best_single"].architecture == "good"
    assert result.val["best_single"].calls == 2
    requests = [json.dumps([body["model"], body["messages"]]) for body in server.bodies]
    assert len(requests) == len(set(requests)) == result.calls_made
    # A replay from the store asks nothing, and finds the same.
    again = run_study(study, out=tmp_path / "out", resume=True)
    assert (again.pick, again.test) == (result.pick, result.test)
    assert len(server.bodies) == len(requests)
    # What the report shows of a conversation are all turns, each with its number.
    answers = json.loads((tmp_path / "out" / "answers.json").read_text("utf-8"))
    assert answers["questions"][0]["text"] == "[1] test 0?\n[2] And test 0, why?"
    mid = next(system for system in answers["systems"] if system["architecture"] == "mid")
    assert mid["texts"][0] == "[1] mid: quality 4\n[2] mid: quality 5"
    # The program's file is the mixture, which goes on with any conversation.
    content = json.loads((tmp_path / "out" / "program.json").read_text("utf-8"))
    assert "history" in json.dumps(content)


def test_a_conversation_is_foretold_with_all_its_turns(server: ChatServer, tmp_path: Path) -> None:
    found = check_before(PreparedStudy.read(write_study(tmp_path, server.url)))
    # 3 agents x 6 rows of val x 2 turns; the grades of a comparison are 2 x 2 calls.
    assert found.stages[0].name == "single agents"
    assert found.stages[0].costs["likely"].calls >= 36
    assert server.bodies == []


@pytest.mark.parametrize(
    ("judge", "turns", "error", "message"),
    [
        ('kind = "pair"', "", StudyError, "`task.turns` needs `judge.kind` = 'grade'"),
        ('kind = "skill"', "", StudyError, "a judge of kind 'skill' reads one response"),
        ('kind = "grade"', "talk", DataError, "row .* has no list of turns in 'talk'; it has"),
    ],
)
def test_what_does_not_go_with_turns_is_an_error_before_anything_is_asked(
    judge: str, turns: str, error: type[MoaError], message: str, server: ChatServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.url, judge=judge, turns=turns)
    with pytest.raises(error, match=message):
        run_study(study, out=tmp_path / "out")
    assert server.bodies == []


def test_a_dspy_history_is_what_the_earlier_turns_are() -> None:
    program, _ = talked()
    first, second = program.inputs_of(["Who?", "When?"])
    assert first == {"history": dspy.History(messages=[]), "question": "Who?"}
    assert second["history"].messages == [{"question": "Who?"}]

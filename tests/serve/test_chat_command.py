"""The commands ``chat`` and ``ask`` with an architecture's text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from moa_dspy.cli import app
from moa_dspy.cli.serve import Conversation
from moa_dspy.serve.chat import ChatMixture
from moa_dspy.testing import scripted_pool
from tests.servers.chat import ChatServer, Reply, serving

POOL = """
[[agents]]
name = "a"
model = "openai/a"
api_base = "{url}"
api_key_env = "TEST_KEY"

[[agents]]
name = "c"
model = "openai/c"
api_base = "{url}"
api_key_env = "TEST_KEY"
"""


class Typed(Console):
    """A console whose user types these lines."""

    def __init__(self, *lines: str) -> None:
        super().__init__(file=io.StringIO(), width=200, highlight=False)
        self._lines = iter(lines)

    def input(self, *_: object, **__: object) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            raise EOFError from None

    @property
    def shown(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


def test_a_conversation_keeps_its_turns_and_shows_agents_and_cost() -> None:
    prompts: list[str] = []

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return f"reply {len(prompts)}"

    pool = scripted_pool(
        {"a": "from a", "c": reply},
        usd_per_million_tokens={"a": 1.0, "c": 1.0},
        reads_all=True,
    )
    console = Typed("/agents", "Hello", "/agents", "Again", "/what", "/clear", "Anew")
    mixture = ChatMixture.of("a > synthesize(c)", pool)
    Conversation(mixture, console, system="Be kind.").run()
    shown = console.shown
    assert "No agent has answered yet." in shown
    assert "layer 1: a" in shown
    assert "from a" in shown
    assert [text in shown for text in ("reply 1", "reply 2", "reply 3")] == [True] * 3
    assert "usd in all)" in shown
    assert "Unknown /what; known are /agents, /clear, /exit." in shown
    assert "Hello\n\nreply 1\n\nAgain" in prompts[1]
    assert all("Be kind." in prompt for prompt in prompts)
    assert "Hello" not in prompts[2]


def test_a_models_control_characters_do_not_reach_the_terminal() -> None:
    console = Typed("Hello")
    pool = scripted_pool({"a": "red \x1b[31m and \x07 bell"})
    Conversation(ChatMixture.of("a", pool), console).run()
    assert "red [31m and  bell" in console.shown
    assert "\x1b" not in console.shown


BIDI = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def test_marks_that_reorder_text_do_not_reach_the_terminal(
    server: ChatServer, tmp_path: Path
) -> None:
    pool = scripted_pool({"a": f"user {BIDI}nimda"})
    console = Typed("Hello", "/agents")
    Conversation(ChatMixture.of("a", pool), console).run()
    failing = Typed("Hello")
    down = scripted_pool({"a": Exception(f"down {BIDI}\x1b[31m")})
    Conversation(ChatMixture.of("a", down), failing).run()
    path = tmp_path / "pool.toml"
    path.write_text(POOL.format(url=server.url))
    server.script = lambda _: Reply(f"user {BIDI}\x1b[31mnimda")
    asked = CliRunner().invoke(app, ["ask", "a", "Who?", "--pool", str(path)])
    server.script = lambda _: Reply(
        status=400, body=json.dumps({"error": {"message": f"user {BIDI}\x1b[31mnimda"}}).encode()
    )
    refused = CliRunner().invoke(app, ["ask", "a", "Why?", "--pool", str(path)])
    assert console.shown.count("user nimda") == 2
    assert "down [31m" in failing.shown
    assert asked.stdout == "user [31mnimda\n"
    assert "user [31mnimda" in refused.stderr
    everything = console.shown + failing.shown + asked.output + refused.output
    assert not set(everything) & {*BIDI, "\x1b"}


def test_the_calls_of_a_reply_without_text_are_shown(server: ChatServer, tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    called = Reply(" ", message={"tool_calls": [{"index": 0, **call}]}, finish_reason="tool_calls")
    server.script = lambda _: called
    path = tmp_path / "pool.toml"
    path.write_text(POOL.format(url=server.url))
    said = CliRunner().invoke(app, ["chat", "a", "--pool", str(path)], input="Hi\n")
    assert said.exit_code == 0, said.output
    assert 'call of look: {"at": 1}' in said.stdout


def test_a_failed_turn_is_told_and_forgotten() -> None:
    console = Typed("Hello", "Again")
    replies = iter([Exception("down"), None])

    def reply(prompt: str) -> str:
        if (error := next(replies)) is not None:
            raise error
        return f"saw {prompt}"

    Conversation(ChatMixture.of("a", scripted_pool({"a": reply})), console).run()
    assert "error: The agent did not answer: 0 of 1 agents answered. a: " in console.shown
    assert "saw Again" in console.shown


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    with serving(Reply("Paris")) as made:
        yield made


def test_ask_takes_an_architectures_text(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(POOL.format(url=server.url))
    done = CliRunner().invoke(app, ["ask", "a*2 > synthesize(c)", "Where?", "--pool", str(path)])
    assert (done.exit_code, done.stdout) == (0, "Paris\n")
    assert [body["model"] for body in server.bodies].count("a") == 2
    wrong = CliRunner().invoke(app, ["ask", "a > synthesize(z)", "Where?", "--pool", str(path)])
    assert wrong.exit_code == 2
    assert "Unknown agent 'z'" in wrong.stderr


def test_chat_is_a_command(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(POOL.format(url=server.url))
    said = CliRunner().invoke(app, ["chat", "a > synthesize(c)", "--pool", str(path)], input="Hi\n")
    assert said.exit_code == 0
    assert "Paris" in said.stdout


def test_serve_needs_keys_where_others_can_reach_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--pool", "x.toml"])
    assert done.exit_code == 2
    assert "`--key-env` must name a key" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key-env", "ABSENT_KEY"], "The environment has no variable ABSENT_KEY."),
        (["--deadline", "0"], "`deadline_seconds` must be positive, but is 0.0."),
        (["--pool", "absent.toml"], "absent.toml cannot be read"),
        (["absent.json"], "absent.json cannot be read"),
        (
            ["a + c > synthesize(c)"],
            "is served without it: clients write its text as their `model`",
        ),
        (
            ["a/p.json", "b/p.json"],
            "p occurs twice. Give folders of runs instead: these are served under the names of",
        ),
        (["--aggregator", "z"], "Unknown agent 'z'"),
        (["--usd-per-day", "1"], "A limit in usd needs the price of every agent"),
    ],
)
def test_a_wrong_way_to_serve_is_explained(
    arguments: list[str], message: str, server: ChatServer, tmp_path: Path
) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(POOL.format(url=server.url))
    done = CliRunner().invoke(app, ["serve", "--pool", str(path), *arguments])
    assert done.exit_code == 2
    assert message in done.stderr

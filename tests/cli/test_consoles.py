"""Texts of models on consoles that are not UTF-8, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import STUDY
from tests.servers.chat import Reply, serving

ODD = "caf\u00e9 \U0001f600 \ud83d"
"""A letter that cp1252 has, an emoji that it lacks, and half of an emoji, of which none is text."""
CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    # Python would take UTF-8 for this locale by itself.
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
SEEN = {"ascii": ("ascii", "utf-8"), "cp1252": ("cp1252",), "C": ("ascii", "utf-8")}
"""Encodings of what is shown: click writes UTF-8 where it is told of ASCII, and rich ASCII."""

# All commands in one process: DSPy and Optuna take seconds to import.
MAIN = """
import json, sys
from moa_dspy.cli.app import app
for arguments in json.loads(sys.argv[1]):
    print("#", flush=True)
    print("#", file=sys.stderr, flush=True)
    try:
        app(arguments)
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""


def oddly(body: dict[str, Any]) -> Reply:
    question = body["messages"][-1]["content"].split("Responses from models:")[0]
    if "refuse" in question:
        return Reply(message={"content": None, "refusal": f"No, {ODD}"})
    if "break" in question:
        error = {"message": f"No such model: {ODD}", "type": "invalid_request_error"}
        return Reply(status=400, body=json.dumps({"error": error}).encode())
    return Reply(f"{ODD} {int(question.split()[-1]) + (body['model'] == 'bad')}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with serving(oddly) as server:
        agents = [
            f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{server.url}"\n'
            "temperature = 0.0\nnum_retries = 0\n"
            for name in ("good", "bad")
        ]
        (tmp_path / "pool.toml").write_text("\n".join(agents), "utf-8")
        (tmp_path / "study.toml").write_text(STUDY, "utf-8")
        rows = [
            {"split": split, "question": f"caf\u00e9 {split} {i}", "answer": f"{ODD} {i}"}
            for split in ("train", "val", "test")
            for i in range(8)
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        yield tmp_path


def run_on(console: str, place: Path, *commands: list[str], typed: str = "") -> list[bytes]:
    """Return what each command showed: its output, its exit code, then its errors."""
    names = {"LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8"}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, json.dumps(commands)],
        cwd=place,
        env={**kept, **CONSOLES[console]},
        input=typed.encode(),
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    shown, errors = (part.split(b"#\n")[1:] for part in (done.stdout, done.stderr))
    assert len(shown) == len(errors) == len(commands), done.stderr
    return [b"".join(pair) for pair in zip(shown, errors, strict=True)]


def assert_readable(shown: bytes, console: str) -> None:
    """Assert that the letter, the emoji and the half are there, in some readable way."""
    letter, emoji, half = (
        {word.encode(e, how) for e in SEEN[console] for how in ("backslashreplace", "replace")}
        for word in ODD.split()
    )
    for forms in (letter, emoji, half):
        assert any(form in shown for form in forms), shown


@pytest.mark.slow
@pytest.mark.parametrize("console", CONSOLES)
def test_what_a_model_says_is_shown_on_every_console(console: str, place: Path) -> None:
    pool = ["--pool", "pool.toml"]
    answered, as_json, refused, broken = run_on(
        console,
        place,
        ["ask", "good", "Repeat 4", *pool],
        ["ask", "good + bad > vote(good)", "Repeat 4", "--json", *pool],
        ["ask", "bad + good > vote(good)", "refuse", *pool],
        ["ask", "good", "break", *pool],
    )
    assert_readable(answered, console)
    assert json.loads(as_json.splitlines()[0])["answer"] == f"{ODD} 4"
    for shown, words in ((refused, b"The model refused: No, "), (broken, b"No such model: ")):
        assert b"exit 2" in shown
        assert words in shown
        assert_readable(shown, console)
    (talked,) = run_on(
        console,
        place,
        ["chat", "good", *pool],
        typed=f"Say 5\n/agents\nrefuse\n{ODD.encode('utf-8', 'replace').decode()} 6\n/exit\n",
    )
    assert_readable(talked, console)
    assert b"exit 0" in talked
    assert b"error: " in talked


@pytest.mark.slow
@pytest.mark.parametrize("console", CONSOLES)
def test_a_study_of_odd_texts_runs_on_every_console(console: str, place: Path) -> None:
    commands = [
        ["optimize", "study.toml", "--out", "one", "--verbose"],
        ["optimize", "study.toml", "--out", "two", "--json"],
        ["report", "one", "--parquet"],
        ["compare", "one", "two"],
        ["pick", "one"],
        ["calls", "one/calls.sqlite"],
    ]
    for command, shown in zip(commands, run_on(console, place, *commands), strict=True):
        assert b"exit 0" in shown, (command, shown)
    assert "caf\u00e9 \U0001f600" in str(json.loads((place / "one" / "answers.json").read_text()))

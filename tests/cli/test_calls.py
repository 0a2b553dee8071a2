from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import Result

from moa_dspy.calls import Call, CallStore, Recording, call_key

Run = Callable[..., Result]
FIRST, SECOND = (datetime(2026, 11, day, tzinfo=UTC).timestamp() for day in (1, 20))


def call(number: int, agent: str, *, time: float = FIRST) -> Call:
    request = json.dumps({"n": number})
    key = call_key("served/a", 0, request)
    return Call(key, agent, "served/a", 0, request, '"r"', 3, 2, 0.5, 1.5, None, 1, time)


@pytest.fixture
def calls() -> list[Call]:
    """Return three calls of `a`, one of which failed, and one, later, of `b`; usd 0.5 each."""
    failed = replace(call(2, "a"), response=None, failure="ServerError: down", usd=0.0)
    return [call(0, "a"), call(1, "a"), failed, call(3, "b", time=SECOND)]


@pytest.fixture
def store(tmp_path: Path, calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> CallStore:
    monkeypatch.chdir(tmp_path)
    made = CallStore(Path("calls.sqlite"))
    made.put_all(calls)
    made.put(replace(calls[0], response='"late"'))  # paid twice
    return made


def shown(run: Run, *arguments: str) -> dict[str, tuple[int, int, float | None, int]]:
    done = run("calls", "calls.sqlite", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["store"] == "calls.sqlite"
    rows = [*content["agents"], content["total"]]
    return {r["agent"]: (r["calls"], r["failed"], r["usd"], r["paid_twice"]) for r in rows}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], {"a": (3, 1, 1.0, 1), "b": (1, 0, 0.5, 0), "all": (4, 1, 1.5, 1)}),
        (["--agent", "b"], {"b": (1, 0, 0.5, 0), "all": (1, 0, 0.5, 0)}),
        (["--failed"], {"a": (1, 1, 0.0, 0), "all": (1, 1, 0.0, 0)}),
        (["--since", "2026-11-20"], {"b": (1, 0, 0.5, 0), "all": (1, 0, 0.5, 0)}),
        (["--before", "2026-11-20"], {"a": (3, 1, 1.0, 1), "all": (3, 1, 1.0, 1)}),
        (["--before", "2026-11-01T01:00+02:00"], {"all": (0, 0, 0, 0)}),
        (["--agent", "b", "--failed"], {"all": (0, 0, 0, 0)}),
    ],
)
def test_calls_are_summed_up_per_agent(
    run: Run, store: CallStore, options: list[str], found: dict[str, tuple[int, int, float, int]]
) -> None:
    assert shown(run, *options) == found


def test_a_call_whose_time_is_unknown_is_neither_before_nor_since(
    run: Run, store: CallStore
) -> None:
    store.put(call(9, "old", time=0.0))
    assert "old" in shown(run)
    assert "old" not in shown(run, "--before", "2026-12-01")
    assert "old" not in shown(run, "--since", "1970-01-01")


def test_without_json_it_is_a_table(run: Run, store: CallStore) -> None:
    lines = run("calls", "calls.sqlite").stdout.splitlines()
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert found == [
        ["a", "3", "1", "9", "6", "1.0000", "4", "1"],
        ["b", "1", "0", "3", "2", "0.5000", "2", "0"],
        ["all", "4", "1", "12", "8", "1.5000", "6", "1"],
    ]


def test_a_price_that_may_be_unknown_is_not_shown_as_0(run: Run, store: CallStore) -> None:
    store.put(replace(call(7, "free"), usd=0.0))
    assert shown(run, "--agent", "free") == {"free": (1, 0, None, 0), "all": (1, 0, None, 0)}
    assert shown(run)["all"] == (5, 1, 1.5, 1)
    said = run("calls", "calls.sqlite").stdout
    assert [line.split("│")[6].strip() for line in said.splitlines() if "free" in line] == ["—"]
    assert "usd —: no call of the agent has a price above 0; it was 0 or unknown." in said
    asked = run("calls", "calls.sqlite", "--agent", "free", "--prune").stderr
    assert "it would be 1 calls whose price is 0 or unknown." in asked


def test_calls_are_exported_and_imported(
    run: Run, store: CallStore, calls: list[Call], tmp_path: Path
) -> None:
    done = run("calls", "calls.sqlite", "--agent", "a", "--export", "out/a.parquet", "--json")
    assert done.stderr == "wrote 3 calls to out/a.parquet\n"
    exported = Recording.read(tmp_path / "out/a.parquet")
    assert {c.key for c in exported} == {c.key for c in calls[:3]}
    for n_new in (3, 0):
        done = run("calls", "new.sqlite", "--import", "out/a.parquet", "--json")
        assert done.stderr == f"read 3 calls, {n_new} of them new\n"
    assert {c.key for c in CallStore(tmp_path / "new.sqlite")} == {c.key for c in calls[:3]}


def test_nothing_is_deleted_without_yes_and_then_only_what_was_chosen(
    run: Run, store: CallStore, calls: list[Call], tmp_path: Path
) -> None:
    store.close()
    said = run("calls", "calls.sqlite", "--agent", "a", "--prune", "--json")
    assert (
        said.stderr == "Nothing is deleted; with --yes it would be 3 calls that cost 1.0000 usd.\n"
    )
    assert len(CallStore(tmp_path / "calls.sqlite")) == 4
    done = run("calls", "calls.sqlite", "--failed", "--prune", "--yes", "--json")
    assert done.stderr == "deleted 1 calls\n"
    done = run("calls", "calls.sqlite", "--before", "2026-11-20", "--prune", "--yes", "--json")
    assert done.stderr == "deleted 2 calls\n"
    assert list(CallStore(tmp_path / "calls.sqlite")) == [calls[3]]


def test_a_store_in_postgresql_is_shown_without_its_password(
    run: Run, postgresql_url: str, calls: list[Call]
) -> None:
    with_password = postgresql_url.replace("moa@", "moa:hidden-word@")
    CallStore(postgresql_url).put_all(calls)
    done = run("calls", with_password, "--failed", "--prune", "--yes", "--json")
    assert done.stderr == "deleted 1 calls\n"
    assert json.loads(done.stdout)["store"] == postgresql_url.replace("moa@", "moa:***@")
    assert "hidden-word" not in run("calls", with_password).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.sqlite"], "error: There is no call store absent.sqlite."),
        (["calls.sqlite", "--import", "absent.parquet"], "error: absent.parquet cannot be read"),
        (["calls.sqlite", "--since", "yesterday"], "--since must be a day or time"),
        (["calls.sqlite", "--prune", "--yes"], "--prune deletes the calls that --agent"),
        (["mysql://u:secret@h/x"], "error: A call store cannot be in 'mysql'"),
    ],
)
def test_a_wrong_way_to_ask_is_explained_and_changes_nothing(
    run: Run, store: CallStore, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("calls", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert "secret" not in done.stderr
    assert not (tmp_path / "absent.sqlite").exists()
    assert len(store) == 4


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_is_not_utf8_shows_what_it_can(
    store: CallStore, tmp_path: Path, encoding: str
) -> None:
    store.put(call(7, "caf\u00e9\U0001f600"))
    done = subprocess.run(
        [sys.executable, "-m", "moa_dspy", "calls", str(tmp_path / "calls.sqlite")],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\U0001f600" in done.stdout

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import AgentCalls, Call, call_key, canonical_json

CALLER = AgentCalls("a", "served/a")

MakeCall = Callable[..., Call]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Return where a new store may be: a file, then the URL of an empty database."""
    if request.param == "sqlite":
        return tmp_path / "calls.sqlite"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def make_call() -> MakeCall:
    """Make a call that asks ``question``; anything else about it can be said."""

    def make(question: str = "q", **changes: Any) -> Call:
        request = canonical_json({"q": question})
        sample, identity = changes.get("sample", 0), changes.get("identity", CALLER.identity)
        facts: dict[str, Any] = {
            "key": call_key(identity, sample, request),
            "agent": "a",
            "identity": identity,
            "sample": sample,
            "request": request,
            "response": canonical_json({"text": "answer"}),
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "usd": 0.5,
            "seconds": 1.5,
        }
        return Call(**{**facts, **changes})

    return make

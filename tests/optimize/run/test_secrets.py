from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.errors import PoolError
from moa_dspy.optimize import run_study

Make = Callable[..., Any]
KEY = "sk-planted-0123456789"
WITH_KEY = 'api_key_env = "MOA_DSPY_TEST_KEY"'


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_DSPY_TEST_KEY", KEY)


def files_with_the_key(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_key_is_in_no_file_log_or_result(
    server: Any, write_study: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # The endpoint shows the key in one error, after the probes: a failed response, no more.
    reply = server.reply

    def leaks_once(body: dict[str, Any]) -> Any:
        if body["model"] == "e2" and body["messages"][-1]["content"] == "val 4":
            server.refusals["e2"] = (400, "no such thing as {header}")
            found = reply(body)
            del server.refusals["e2"]
            return found
        return reply(body)

    server.reply = leaks_once
    out = tmp_path / "out"
    result = run_study(write_study(agent=WITH_KEY), out=out)
    assert server.keys == {f"Bearer {KEY}"}
    assert result.failures == {"e2": 1}
    assert files_with_the_key(out) == []
    assert KEY not in str(result.to_json())
    assert KEY not in caplog.text


def test_a_key_that_the_endpoint_quotes_is_masked_in_the_error(
    server: Any, write_study: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.refusals["e1"] = (401, "{header} is not valid")
    with pytest.raises(PoolError, match=r"Agent 'e1' does not answer: .*Bearer \*\*\*") as caught:
        run_study(write_study(agent=WITH_KEY), out=tmp_path / "out")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in repr(chain)
        chain = chain.__cause__ or chain.__context__
    assert KEY not in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_missing_variable_is_named_and_nothing_is_asked(
    server: Any, write_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOA_DSPY_TEST_KEY")
    with pytest.raises(PoolError, match=r"Agent 'e0': .* has no variable MOA_DSPY_TEST_KEY"):
        run_study(write_study(agent=WITH_KEY), out=tmp_path / "out")
    assert not server.asked
    assert not (tmp_path / "out").exists()

"""Requests made up from the server's OpenAPI description: none ends in an error of the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.running import KEY, app_of, running, server_pool

pytestmark = pytest.mark.slow


def test_no_made_up_request_is_the_servers_fault(tmp_path: Path) -> None:
    pool = server_pool({"a": "draft", "b": "other", "c": "Paris it is"})
    command = Path(sys.executable).with_name("schemathesis")
    with running(app_of(pool)) as url:
        done = subprocess.run(
            [
                str(command),
                "run",
                url.replace("/v1", "/openapi.json"),
                "--checks=not_a_server_error",
                "--header",
                f"Authorization: Bearer {KEY}",
                "--max-examples=60",
                "--seed=1",
                "--generation-database=none",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=420,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "7 / 7" in done.stdout or "7 selected" in done.stdout, done.stdout[-3000:]

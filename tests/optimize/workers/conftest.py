"""Real worker processes on one database, and a server of its own process that counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench.study_world import ROOT, FaultServer, fault_server

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new file, then of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.sqlite'}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts ``moa-dspy`` with some arguments; what still runs in the end is killed."""
    with ExitStack() as running:

        def command(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "moa_dspy", *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            running.callback(process.communicate)
            running.callback(process.kill)
            return process

        yield command

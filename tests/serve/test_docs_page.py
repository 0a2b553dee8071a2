"""The blocks of docs/serving.md run, and its commands and options exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moa_dspy.cli import app

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "shown"), [(0, "Paris\n"), (1, "Paris.\n"), (2, "Paris.\n['Paris.']\n")]
)
def test_a_block_runs(number: int, shown: str) -> None:
    assert len(BLOCKS) == 3
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[number]],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_every_option_of_the_page_exists() -> None:
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    helps = [CliRunner().invoke(app, [name, "--help"]).stdout for name in ("serve", "chat", "ask")]
    assert options >= {"--key-env", "--usd-per-day"}
    assert [one for one in sorted(options) if one not in "".join(helps)] == []

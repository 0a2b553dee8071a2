"""The options that docs/serving.md names exist; its blocks are run with those of every page."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from moa_dspy.cli import app

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text("utf-8")


def test_every_option_of_the_page_exists() -> None:
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    helps = [CliRunner().invoke(app, [name, "--help"]).stdout for name in ("serve", "chat", "ask")]
    assert options >= {"--key-env", "--usd-per-day"}
    assert [option for option in sorted(options) if option not in "".join(helps)] == []

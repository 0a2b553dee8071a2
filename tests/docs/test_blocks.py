"""Every block of code of every page runs, in the page's order, and prints what the page shows."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from moa_dspy.agent import Agent
from moa_dspy.optimize import study_file
from tests.docs.blocks import ROOT, Block, blocks_of, pages
from tests.docs.scripts import SCRIPTS
from tests.servers.chat import serving

ALL = [block for page in pages() for block in blocks_of(page)]
RUN = sorted({block.page for block in ALL if block.runs})
SERVERS = re.compile(r"http://(?:localhost|127\.0\.0\.1):(?:11434|8080|8000|1234)\b")
"""Usual addresses of servers of models; in the tests one server answers for all."""
MODELS = ("small:1b", "medium:3b", "large:8b")
"""What that server lists."""
OWN_PORT = "8642"
"""The port that the pages give to a server of theirs."""
MOST_LEFT_OUT = 20
"""Blocks of all pages that are not run."""


def steps_of(page: str, url: str, port: int) -> list[dict[str, Any]]:
    """Return what is done with the blocks of a page, with addresses of this machine."""
    found = []
    for block in blocks_of(page):
        if block.mark == "not run":
            continue
        kind = "file" if block.title else block.language
        if kind not in ("file", "sh", "python"):
            continue
        facts = {"kind": kind, "page": page, "line": block.line, "title": block.title}
        text = SERVERS.sub(url, block.text).replace(OWN_PORT, str(port))
        said = block.said.replace(OWN_PORT, str(port))
        found.append({**facts, "text": text, "mark": block.mark, "said": said})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    for folder in ("data", "docs", "optimize", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    with serving(SCRIPTS.get(page, SCRIPTS["any"]), models=MODELS) as server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        steps = steps_of(page, server.url.removesuffix("/v1"), port)
        outputs = outputs_of(steps, server.url, tmp_path, page)
    shown = {step["line"]: output for step, output in zip(steps, outputs, strict=True)}
    printed = ""
    for block in blocks_of(page):
        printed = shown.get(block.line, printed)
        if block.language == "text" and block.mark != "not run":
            check_shown(block, printed)


def outputs_of(steps: list[dict[str, Any]], url: str, folder: Path, page: str) -> list[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "COLUMNS": "100",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
        "MOA_DSPY_WEIGHTS": str(folder / "no-weights"),
        "OPENAI_BASE_URL": url,
        # Of the server of the tests; `init` would take a key as a sign of a vendor.
        **({} if page == "docs/guides/own_data.md" else {"OPENAI_API_KEY": "none"}),
        # The README's models are named and not asked.
        **({"ANTHROPIC_API_KEY": "none"} if page == "README.md" else {}),
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/docs/run_page.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(json.dumps(steps), timeout=1800)
    finally:
        # Servers of the page are in the same session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr[-3000:]
    outputs: list[str] = json.loads(stdout.splitlines()[-1])
    return outputs


def check_shown(block: Block, printed: str) -> None:
    """Compare the output that a page shows with what was printed; `...` stands for anything."""
    lines = [" ".join(line.split()) for line in block.text.strip().splitlines()]
    pattern = r"\s+".join(
        ".*?".join(r"\s+".join(map(re.escape, part.split())) for part in line.split("..."))
        for line in lines
    )
    assert re.search(pattern, printed, re.DOTALL), (
        f"{block.page}:{block.line} shows what was not printed:\n{printed}"
    )


def test_what_is_not_run_says_why_and_is_little() -> None:
    left_out = [block for block in ALL if block.language in ("python", "sh") and not block.runs]
    assert [f"{b.page}:{b.line}" for b in left_out if len(b.said.split()) < 3] == []
    run = [block for block in ALL if block.runs]
    assert len(run) >= 40
    # A block that cannot run is rare: raise this number only with a reason beside the block.
    assert len(left_out) <= MOST_LEFT_OUT, [f"{b.page}:{b.line} {b.said}" for b in left_out]


@pytest.mark.parametrize(
    "block",
    [block for block in ALL if block.language in ("toml", "yaml", "json")],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_a_file_is_read(block: Block) -> None:
    if block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict)
    elif block.language == "json":
        json.loads(block.text)
    else:
        check_toml(tomllib.loads(block.text), block.page)


def check_toml(content: dict[str, Any], page: str) -> None:
    """Check a pool or a study; what is only a part of a study is checked in a whole one."""
    for agent in content.get("agents", []):
        Agent(**agent)
    if set(content) == {"agents"}:
        return
    whole: dict[str, Any] = {
        "name": "page",
        "pool": "pool.toml",
        "task": {"signature": "question -> answer", "metric": "answer_match"},
        "data": {"path": "rows.jsonl", "inputs": ["question"], "sizes": {"val": 10, "test": 10}},
    }
    if content.get("data", {}).get("reader") == "recorded":
        del whole["data"], whole["task"], whole["pool"]
    for name, table in content.items():
        is_table = isinstance(table, dict) and name in whole
        whole[name] = {**whole[name], **table} if is_table else table
    if ":" in whole.get("task", {}).get("metric", ""):
        whole["task"]["metric"] = "answer_match"  # the module stands on the page, which runs
    study_file.check_study(whole, where=page)


def test_the_own_data_page_takes_fewer_than_forty_lines() -> None:
    text = (ROOT / "docs/guides/own_data.md").read_text("utf-8")
    assert "fewer than 40 lines" in " ".join(text.split())
    blocks = [b for b in blocks_of("docs/guides/own_data.md") if b.runs]
    # The first block makes the example's table.
    lines = [line for block in blocks[1:] for line in block.text.splitlines() if line.strip()]
    assert 10 < len(lines) < 40

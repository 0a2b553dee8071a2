from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import moa_dspy
from moa_dspy.optimize import Snapshot, run_study

Make = Callable[..., Any]


def is_finished(out: Path) -> bool:
    """Return whether the folder's study, which must have begun, has a result."""
    with closing(sqlite3.connect(out / "calls.sqlite")) as store:
        ((result,),) = store.execute("SELECT result FROM shared_studies").fetchall()
    return result is not None


class Interrupts:
    """A watcher that presses Ctrl-C at the n-th snapshot of the search."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __call__(self, snapshot: Snapshot, /) -> None:
        self._left -= snapshot.stage == "search"
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_study_ends_as_if_nothing_had_happened(
    server: Any, write_study: Make, tmp_path: Path, said: Make
) -> None:
    study = write_study()
    whole = run_study(study, out=tmp_path / "whole")
    undisturbed = sorted(server.asked)

    server.asked.clear()
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out=out, show=Interrupts(6))
    assert not is_finished(out)
    assert 0 < len(server.asked) < len(undisturbed)
    resumed = run_study(study, out=out, resume=True)
    assert is_finished(out)
    assert said(resumed) == said(whole)
    assert sorted(server.asked) == undisturbed


@pytest.mark.slow
def test_spending_before_an_interrupt_counts_against_the_budget(
    server: Any, write_study: Make, tmp_path: Path, said: Make
) -> None:
    # 36 calls for single agents, and 15 test rows at up to 4 or 4.5 calls are 68 kept back
    study = write_study(("[search]", "[budget]\ncalls = 150\n[search]\nnum_threads = 1"))
    whole = run_study(study, out=tmp_path / "whole")
    assert whole.stopped_by is not None
    n_whole = len(server.asked)
    assert n_whole <= 150
    server.asked.clear()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out=tmp_path / "out", show=Interrupts(5))
    resumed = run_study(study, out=tmp_path / "out", resume=True)
    assert len(server.asked) == n_whole
    assert said(resumed) == said(whole)
    # A study that a budget ended is finished: again it asks nobody and says the same.
    assert said(run_study(study, out=tmp_path / "out")) == said(whole)
    assert len(server.asked) == n_whole


@pytest.mark.slow
def test_a_killed_study_repeats_no_answered_request(
    server: Any, write_study: Make, tmp_path: Path, said: Make
) -> None:
    study, out = write_study(), tmp_path / "out"
    server.holds_after = 40
    code = "import sys; from pathlib import Path; from moa_dspy.optimize import run_study; "
    code += "run_study(Path(sys.argv[1]), out=Path(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, study, out], cwd=Path(moa_dspy.__file__).parent.parent
    )
    try:
        assert server.is_holding.wait(60)
    finally:
        process.kill()
        process.wait()
    # Each answer is on disk before it is used; only what was on its way may be asked again.
    answered = list(server.answered)
    assert 32 <= len(answered) <= 40
    assert not is_finished(out)
    server.release()
    server.asked.clear()
    resumed = run_study(study, out=out, resume=True)
    repeated = set(answered) & set(server.asked)
    assert repeated <= set(answered[-8:]), "at most what eight threads had in flight"
    assert resumed.verdict.kind in ("mixture", "not_enough_examples")
    server.asked.clear()
    assert said(run_study(study, out=tmp_path / "other")) == said(resumed)

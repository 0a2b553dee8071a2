"""A study in a database, and what a study spends however often it is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import moa_dspy
from moa_dspy.calls import CallStore
from moa_dspy.optimize import run_study

Make = Callable[..., Any]
RUN = """
import sys
from pathlib import Path
from moa_dspy.optimize import run_study
study, out, storage, resume = sys.argv[1:]
run_study(Path(study), out=Path(out), storage=storage or None, resume=bool(resume))
"""


def killed_run(server: Any, study: Path, out: Path, *, after: int, resume: bool) -> None:
    """Run the study in a process that is killed once the server was asked ``after`` more times."""
    server.is_holding.clear()
    server.holds_after = len(server.asked) + after
    command = [sys.executable, "-c", RUN, str(study), str(out), "", "yes" if resume else ""]
    process = subprocess.Popen(command, cwd=Path(moa_dspy.__file__).parent.parent)
    try:
        assert server.is_holding.wait(60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_one_database_holds_the_calls_and_optunas_study(
    server: Any, write_study: Make, tmp_path: Path, said: Make, postgresql_url: str
) -> None:
    study = write_study()
    in_files = run_study(study, out=tmp_path / "files")
    n_asked = len(server.asked)
    first = run_study(study, out=tmp_path / "out", storage=postgresql_url)
    assert said(first) == said(in_files)
    assert len(server.asked) == 2 * n_asked
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    pages = ["report.html", "report.md"]
    assert names == ["answers.json", "program.json", *pages, "result.json"]
    # From another folder, too: what is in the database is free.
    second = run_study(study, out=tmp_path / "other", storage=postgresql_url)
    assert (len(server.asked), said(second)) == (2 * n_asked, said(first))
    assert len(CallStore(postgresql_url)) == n_asked
    url = postgresql_url.replace("postgresql://", "postgresql+psycopg://")
    storage = optuna.storages.RDBStorage(url)
    assert optuna.get_all_study_names(storage) == ["toy"]
    kept = optuna.load_study(study_name="toy", storage=storage)
    architectures = {trial.user_attrs["architecture"] for trial in kept.get_trials()}
    storage.engine.dispose()
    assert architectures
    assert architectures <= {trial.architecture for trial in first.trials}


def charged(out: Path) -> int:
    store = CallStore(out / "calls.sqlite")
    ((calls,),) = store.database.rows("SELECT made + open_calls FROM spending")
    store.close()
    return int(calls)


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_never_spends_more_than_its_budget(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    # 36 calls for single agents, and 15 test rows at up to 4.5 calls are 68 kept back.
    study = write_study(
        ("n_trials = 8", "n_trials = 60"), ("[search]", "[budget]\ncalls = 150\n[search]")
    )
    out = tmp_path / "out"
    for number in range(3):
        killed_run(server, study, out, after=15, resume=number > 0)
        # A call that was in flight may have been paid for, so it stays charged.
        assert len(server.asked) <= charged(out) <= 150
    server.release()
    result = run_study(study, out=out, resume=True)
    assert "budget of 150 calls is reached" in str(result.stopped_by)
    assert len(server.asked) <= charged(out) <= 150

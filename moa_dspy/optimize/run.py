"""Runs a study file: checks everything, then searches, and writes what was found to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moa_dspy.calls import Calls, OutagePolicy
from moa_dspy.errors import OutageError
from moa_dspy.optimize.progress import ShowSnapshot, silent
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.search import SearchOutcome
from moa_dspy.optimize.study import PreparedStudy, RunLog, StagedStore, save_study
from moa_dspy.optimize.study_file import read_study
from moa_dspy.optimize.workers import work_on
from moa_dspy.program_file import save_program

RUNS = Path("runs")
"""Where results go without ``out``: a folder of the study's name."""


def run_study(
    path: Path,
    *,
    out: Path | None = None,
    storage: str | None = None,
    resume: bool = False,
    watcher: ShowSnapshot = silent,
) -> StudyResult:
    """Run the study of a file and write its folder.

    The folder holds ``calls.sqlite`` (every answer, as it came), ``program.json``,
    ``result.json``, ``study.sqlite3`` (Optuna's) and ``run.json``. Stored answers are
    always used. Running a finished study again gives the same result at no call;
    ``resume`` goes on with one that was interrupted, with what is left of its budget.

    With a ``storage``, all but the results are in that database, and any number of processes
    may run the same study there, or help (``work_on``): whoever is late goes on with it, and
    a study that is finished is not run again.

    Args:
        path: The study file.
        out: The folder; default ``runs/NAME``.
        storage: URL of a database, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.
        resume: Whether an interrupted run of the same study must be there.
        watcher: Is shown the progress.

    Raises:
        MoaError: If anything in the file does not fit, before anything is written.
        OutageError: If an endpoint is down for longer than the study waits for it.
    """
    if storage is not None:
        folder = out or RUNS / read_study(path).name
        options: dict[str, Any] = {"resume": resume, "may_set_budget": True, "watcher": watcher}
        return work_on(path, storage, out=folder, writes_files=True, **options).result
    prepared = PreparedStudy.read(path)
    study = prepared.study
    folder = out or RUNS / study.name
    log = RunLog(folder / "run.json", prepared.parts)
    before = log.continued(resume=resume, budget=study.budget.model_dump())
    store = StagedStore(folder / "calls.sqlite", study=f"{study.name} {log.digest}")
    ledger = store.ledger(study.make_budget(), spent=before.spent)
    pool = prepared.make_pool(store, ledger)
    opening = _Opening(watcher, store, log, pool.calls, study.calls.outage_seconds)
    try:
        outcome = prepared.run(pool, ledger=ledger, show=opening, counts=before.counts)
        result = _write(folder, outcome, prepared.notes)
        save_study(outcome.study, folder / "study.sqlite3", name=folder.resolve().name)
        log.write("finished", ledger.spending, outcome.reached)
        return result
    except (KeyboardInterrupt, OutageError):
        store.open()
        log.write("interrupted", ledger.spending)
        raise
    finally:
        store.close()


def _write(folder: Path, outcome: SearchOutcome, notes: Sequence[str]) -> StudyResult:
    result = replace(outcome.result, notes=(*notes, *outcome.result.notes))
    folder.mkdir(parents=True, exist_ok=True)
    scores = {name: row.score for name, row in result.test.items()}
    save_program(outcome.program, folder / "program.json", scores=scores)
    result.write(folder / "result.json")
    return result


class _Opening:
    """Opens the store once every agent has answered its probe, and logs each stage."""

    def __init__(
        self,
        watcher: ShowSnapshot,
        store: StagedStore,
        log: RunLog,
        calls: Calls,
        outage_seconds: float,
    ) -> None:
        self._watcher, self._store, self._log, self._calls = watcher, store, log, calls
        self._outage_seconds = outage_seconds

    def __call__(self, snapshot: Any, /) -> None:
        if snapshot.stage != "probe":
            self._store.open()
            # An agent that does not answer its probe is an error; from then on it is waited for.
            if self._calls.endurance is None:
                self._calls.endurance = OutagePolicy(self._outage_seconds)
            if not self._calls.replay_only:
                self._log.write("running", self._calls.ledger.spending)
        self._watcher(snapshot)

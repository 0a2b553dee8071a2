"""Runs a study file: checks everything, then searches, and writes what was found to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from moa_dspy.calls import Calls, Recording
from moa_dspy.data import Splits, fingerprint
from moa_dspy.optimize.progress import Watcher, silent
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.run_log import RunLog
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.staged_store import StagedStore
from moa_dspy.optimize.study_database import save_study
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Agent, Pool
from moa_dspy.program_file import save_program

RUNS = Path("runs")
"""Where results go without ``out``: a folder of the study's name."""


def run_study(
    path: Path,
    *,
    out: Path | None = None,
    storage: str | None = None,
    resume: bool = False,
    watcher: Watcher = silent,
) -> StudyResult:
    """Run the study of a file and write its folder.

    The folder holds ``calls.sqlite`` (every answer, as it came), ``program.json``,
    ``result.json``, ``study.sqlite3`` (Optuna's) and ``run.json``. Stored answers are
    always used. Running a finished study again gives the same result at no call;
    ``resume`` goes on with one that was interrupted, with what is left of its budget.

    Args:
        path: The study file.
        out: The folder; default ``runs/NAME``.
        storage: URL of a database (``postgresql://HOST/NAME``) for the calls and Optuna's
            study, instead of ``calls.sqlite`` and ``study.sqlite3``.
        resume: Whether an interrupted run of the same study must be there.
        watcher: Is shown the progress.

    Raises:
        MoaError: If anything in the file does not fit, before anything is written.
    """
    study = read_study(path)
    splits, metric = study.make_splits(), study.make_metric()
    agents, notes = study.make_agents()
    space = study.make_space(agents)
    folder = out or RUNS / study.name
    log = RunLog(folder / "run.json", _parts(study, agents, splits))
    before = log.continued(resume=resume, budget=study.budget.model_dump())
    store = StagedStore(storage or folder / "calls.sqlite", study=f"{study.name} {log.digest}")
    recording = Recording.read(study.calls.recording) if study.calls.recording else None
    calls = Calls(
        store,
        recording=recording,
        replay_only=study.calls.replay_only,
        ledger=store.ledger(study.make_budget(), spent=before.spent),
    )
    pool = Pool(agents, calls=calls)
    search = ModelSearch(
        metric,
        pool,
        space=space,
        limits=study.make_limits(),
        seed=study.seed,
        watcher=_Opening(watcher, store, log, calls),
        counts=before.counts,
        **study.search.model_dump(),
    )
    student = study.make_student(pool)
    try:
        program = search.compile(
            student,
            trainset=list(splits.train),
            valset=list(splits.val),
            testset=list(splits.test),
        )
        result = _write(folder, search, program, notes)
        kept_in = storage or folder / "study.sqlite3"
        name = study.name if storage else folder.resolve().name
        save_study(search.found.study, kept_in, name=name)
        log.write("finished", calls.ledger.spending, search.found.reached)
        return result
    except KeyboardInterrupt:
        store.open()
        log.write("interrupted", calls.ledger.spending)
        raise
    finally:
        store.close()


def _write(folder: Path, search: ModelSearch, program: Any, notes: Sequence[str]) -> StudyResult:
    result = replace(search.result, notes=tuple(notes))
    folder.mkdir(parents=True, exist_ok=True)
    scores = {name: row.score for name, row in result.test.items()}
    save_program(program, folder / "program.json", scores=scores)
    result.write(folder / "result.json")
    return result


class _Opening:
    """Opens the store once every agent has answered its probe, and logs each stage."""

    def __init__(self, watcher: Watcher, store: StagedStore, log: RunLog, calls: Calls) -> None:
        self._watcher, self._store, self._log, self._calls = watcher, store, log, calls

    def __call__(self, snapshot: Any, /) -> None:
        if snapshot.stage != "probe":
            self._store.open()
            if not self._calls.replay_only:
                self._log.write("running", self._calls.ledger.spending)
        self._watcher(snapshot)


def _parts(study: StudyFile, agents: tuple[Agent, ...], splits: Splits) -> dict[str, Any]:
    public = [{**asdict(agent), "weights": None, "identity": agent.identity} for agent in agents]
    return {
        "seed": study.seed,
        "data": fingerprint(splits),
        "agents": public,
        "task": study.task.model_dump(),
        "space": study.space.model_dump(),
        "search": study.search.model_dump(),
        "limits": study.limits.model_dump(),
    }

"""Runs a study file: checks everything, then searches, and writes what was found to a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moa_dspy.calls import Call, Calls, CallStore, Ledger, Recording, Spending, canonical_json
from moa_dspy.data import Splits, fingerprint
from moa_dspy.errors import StudyError
from moa_dspy.optimize.context import StageCounts
from moa_dspy.optimize.progress import Watcher, silent
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.study_database import save_study
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Agent, Pool
from moa_dspy.program_file import save_program

RUNS = Path("runs")
"""Where results go without ``out``: a folder of the study's name."""


def run_study(
    path: Path, *, out: Path | None = None, resume: bool = False, watcher: Watcher = silent
) -> StudyResult:
    """Run the study of a file and write its folder.

    The folder holds ``calls.sqlite`` (every answer, as it came), ``program.json``,
    ``result.json``, ``study.sqlite3`` (Optuna's) and ``run.json``. Stored answers are
    always used. Running a finished study again gives the same result at no call;
    ``resume`` goes on with one that was interrupted, with what is left of its budget.

    Args:
        path: The study file.
        out: The folder; default ``runs/NAME``.
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
    store = StagedStore(folder / "calls.sqlite")
    recording = Recording.read(study.calls.recording) if study.calls.recording else None
    calls = Calls(
        store,
        recording=recording,
        replay_only=study.calls.replay_only,
        ledger=Ledger(study.make_budget(), spent=before.spent),
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
    except KeyboardInterrupt:
        store.open()
        log.write("interrupted", calls.ledger.spending)
        raise
    finally:
        store.close()
    return _write(folder, search, program, log, calls, notes)


def _write(
    folder: Path,
    search: ModelSearch,
    program: Any,
    log: RunLog,
    calls: Calls,
    notes: Sequence[str],
) -> StudyResult:
    result = replace(search.result, notes=tuple(notes))
    folder.mkdir(parents=True, exist_ok=True)
    scores = {name: row.score for name, row in result.test.items()}
    save_program(program, folder / "program.json", scores=scores)
    result.write(folder / "result.json")
    save_study(search.found.study, folder / "study.sqlite3", name=folder.resolve().name)
    log.write("finished", calls.ledger.spending, search.found.reached)
    return result


@dataclass(frozen=True, slots=True)
class Before:
    """What earlier runs of the same study leave behind."""

    spent: Spending | None = None
    counts: StageCounts | None = None


class RunLog:
    """``run.json``: which study this folder is of, how far it got, and what it spent.

    Args:
        path: The file.
        parts: Hash of each part of the study, by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, str]) -> None:
        self.path, self.parts = path, dict(parts)
        self._budget: dict[str, Any] = {}

    def continued(self, *, resume: bool, budget: dict[str, Any]) -> Before:
        """Return what this run starts from.

        Raises:
            StudyError: If ``resume`` finds no run, or one of another study, naming what changed.
        """
        self._budget = budget
        old = self._read()
        if old is None:
            if resume:
                raise StudyError(f"There is nothing to resume: {self.path} does not exist.")
            return Before()
        changed = [name for name, value in self.parts.items() if old["parts"].get(name) != value]
        if resume and changed:
            raise StudyError(
                f"{self.path.parent} holds another study: {', '.join(changed)} changed since. "
                "Run without --resume, or with another --out."
            )
        is_same = not changed and old["budget"] == budget
        if is_same and old["status"] == "finished":
            return Before(Spending(**old["spent"]), StageCounts(**old["counts"]))
        return Before(Spending(**old["spent"])) if resume else Before()

    def write(self, status: str, spent: Spending, counts: StageCounts | None = None) -> None:
        """Write the state; the old file stays until the new one is whole."""
        state = {
            "status": status,
            "parts": self.parts,
            "budget": self._budget,
            "spent": asdict(spent),
            "counts": asdict(counts) if counts else None,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=2) + "\n", "utf-8")
        partial.replace(self.path)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        except ValueError as error:
            raise StudyError(f"{self.path} is not a run of moa-dspy: {error}.") from error
        return state


class StagedStore:
    """A call store that creates no file before it is opened: a refused study writes nothing.

    Calls made before are kept in memory and written when it is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: dict[str, Call] = {}
        self._store = CallStore(path) if path.exists() else None

    def get(self, key: str, /) -> Call | None:
        """Return a stored or waiting call, or None."""
        waiting = self._waiting.get(key)
        return waiting or (self._store.get(key) if self._store else None)

    def put(self, call: Call, /) -> None:
        """Keep a call."""
        if self._store is None:
            self._waiting[call.key] = call
        else:
            self._store.put(call)

    def open(self) -> None:
        """Create the file, and write what has been waiting."""
        if self._store is None:
            self._store = CallStore(self._path)
            self._store.put_all(self._waiting.values())
            self._waiting.clear()

    def close(self) -> None:
        """Close the file if there is one."""
        if self._store is not None:
            self._store.close()


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


def _parts(study: StudyFile, agents: tuple[Agent, ...], splits: Splits) -> dict[str, str]:
    public = [{**asdict(agent), "weights": None, "identity": agent.identity} for agent in agents]
    values = {
        "seed": study.seed,
        "data": fingerprint(splits),
        "agents": public,
        "task": study.task.model_dump(),
        "space": study.space.model_dump(),
        "search": study.search.model_dump(),
        "limits": study.limits.model_dump(),
    }
    return {
        name: hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
        for name, value in values.items()
    }

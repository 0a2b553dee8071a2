"""A study in a database: which one it is, for all who work on it, and what came of it."""

# DOCS: optimize/workers/_files: The files of a finished study, whichever process writes them. | optimize/workers/_work: One process on a study that several may work on: it coordinates if nobody does, else it helps.

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moa_dspy.architecture import Architecture
from moa_dspy.calls import CallStore, Ledger, OutagePolicy
from moa_dspy.calls import database_url as url_of
from moa_dspy.calls.scope import spending_under
from moa_dspy.calls.store.database import shown as shown_url
from moa_dspy.errors import StudyError
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.progress import ShowSnapshot, Snapshot, silent
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.search import SearchOutcome
from moa_dspy.optimize.study import PreparedStudy, digest_of, save_study
from moa_dspy.optimize.tasks import QueueWorkers, Task, TaskQueue, TaskRunner
from moa_dspy.program_file import save_program


@dataclass(frozen=True, slots=True)
class Finished:
    """What a study ended with.

    Attributes:
        result: ``StudyResult.to_json``, as text.
        program: Content of the program's file.
        place: Machine and folder where files were written.
    """

    result: str
    program: str
    place: str


class SharedStudy:
    """The row of a study; everybody who works on it must have the same parts and budget.

    Args:
        store: Where the row is.
        name: Of the study.
        parts: A digest of every part by name.
        budget: The limits by name.
    """

    def __init__(
        self, store: CallStore, name: str, *, parts: Mapping[str, str], budget: Mapping[str, Any]
    ) -> None:
        self._database, self.name = store.database, name
        self._parts, self._budget = dict(parts), dict(budget)

    def join(self, *, must_exist: bool, may_set_budget: bool) -> None:
        """Begin the study, or check that it is this one.

        Args:
            must_exist: Whether somebody must have begun it.
            may_set_budget: Whether another budget reopens it, instead of being an error.

        Raises:
            StudyError: If it is another study, naming what changed, or was to exist.
        """
        query = "SELECT parts, budget FROM shared_studies WHERE study = ?"
        insert = (
            "INSERT INTO shared_studies (study, parts, budget) VALUES (?, ?, ?) "
            "ON CONFLICT (study) DO NOTHING"
        )
        values = (self.name, json.dumps(self._parts), json.dumps(self._budget))
        if not must_exist:
            self._database.transact(lambda session: session.execute(insert, values))
        rows = self._database.rows(query, (self.name,))
        if not rows:
            raise StudyError(
                f"There is nothing to resume: {self._database.name} has no study {self.name!r}."
            )
        parts, budget = map(json.loads, rows[0])
        names = self._parts.keys() | parts.keys()
        changed = sorted(name for name in names if self._parts.get(name) != parts.get(name))
        if budget != self._budget and not may_set_budget:
            changed.append("budget")
        if changed:
            raise StudyError(
                f"{self._database.name} holds another study {self.name!r}: {', '.join(changed)} "
                "changed since. Give this one another `name`, or another --storage."
            )
        if budget != self._budget:
            self._reopen()

    def _reopen(self) -> None:
        def work(session: Any) -> None:
            session.execute("DELETE FROM tasks WHERE study = ?", (self.name,))
            session.execute(
                "UPDATE shared_studies SET budget = ?, result = NULL, program = NULL "
                "WHERE study = ?",
                (json.dumps(self._budget), self.name),
            )

        self._database.transact(work)

    def finished(self) -> Finished | None:
        """Return what the study ended with; None while it goes on."""
        query = "SELECT result, program, place FROM shared_studies WHERE study = ?"
        found = self._database.rows(query, (self.name,))
        return Finished(*found[0]) if found and found[0][0] is not None else None

    def finish(self, finished: Finished) -> None:
        """Write what the study ended with; everybody else stops working on it."""
        update = "UPDATE shared_studies SET result = ?, program = ?, place = ? WHERE study = ?"
        values = (finished.result, finished.program, finished.place, self.name)
        self._database.transact(lambda session: session.execute(update, values))


def written_text(write: Callable[[Path], None]) -> str:
    """Return what ``write`` puts into the file that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.json"
        write(path)
        return path.read_text("utf-8")


def write_files(finished: Finished, result: StudyResult, folder: Path) -> None:
    """Write the program and the result into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may write into one folder, and any may be killed: a file is whole or old.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        (Path(partial) / "program.json").write_text(finished.program, "utf-8")
        result.write(Path(partial) / "result.json")
        for name in ("program.json", "result.json"):
            (Path(partial) / name).replace(folder / name)


_LOOK_SECONDS: Final = 0.25
"""How often a helper looks whether the study has ended, or lost its coordinator."""


@dataclass(frozen=True, slots=True)
class StudyEnd:
    """A finished study, as one of its processes leaves it.

    Attributes:
        result: What it found.
        storage: Where it is, without passwords.
        place: Machine and folder of the files that its last coordinator wrote.
        n_tasks: What this process worked on.
    """

    result: StudyResult
    storage: str
    place: str
    n_tasks: int


def work_on(
    path: Path,
    storage: str,
    *,
    out: Path,
    writes_files: bool,
    resume: bool = False,
    may_set_budget: bool = False,
    num_threads: int | None = None,
    watcher: ShowSnapshot = silent,
) -> StudyEnd:
    """Work on the study of a file until it is finished, beside any number of other processes.

    Args:
        path: The study file, the same for all.
        storage: URL of the database that they share.
        out: Folder of the results.
        writes_files: Whether to write them even if another process coordinated.
        resume: Whether somebody must have begun the study.
        may_set_budget: Whether another budget reopens the study, instead of being an error.
        num_threads: Tasks at the same time; default: the study's.
        watcher: Is shown the progress while this process coordinates.

    Raises:
        MoaError: If anything in the file does not fit, or the study is another one, or an
            endpoint is down for longer than it is waited for.
    """
    prepared = PreparedStudy.read(path)
    store = CallStore(storage)
    try:
        worker = Worker(prepared, store, storage, out=out, watcher=watcher)
        worker.shared.join(must_exist=resume, may_set_budget=may_set_budget)
        return worker.run(
            num_threads or prepared.study.search.num_threads, writes_files=writes_files
        )
    finally:
        store.close()


class Worker:
    """A process of a study; see ``work_on``."""

    def __init__(
        self,
        prepared: PreparedStudy,
        store: CallStore,
        storage: str,
        *,
        out: Path,
        watcher: ShowSnapshot,
    ) -> None:
        self._prepared, self._store, self._storage = prepared, store, storage
        self._out, self._watcher = out, watcher
        study = prepared.study
        parts = {name: digest_of(value) for name, value in prepared.parts.items()}
        budget = study.budget.model_dump()
        self.shared = SharedStudy(store, study.name, parts=parts, budget=budget)
        book = store.budget(f"{study.name} {digest_of(parts)}")
        self._ledger = Ledger(study.make_budget(), backend=book)
        self._pool = prepared.make_pool(store, self._ledger)
        self._board = TaskQueue(store, study.name)
        self._memory = NodeCache()
        rows = (*prepared.splits.val, *prepared.splits.test)
        self._rows = {row.id: row for row in rows}
        student = study.make_student(self._pool)
        prompts = study.make_prompts()
        texts = None if prompts is None else prompts.make_registry(student)
        self._evaluator = Evaluator(
            student, prepared.metric, node_cache=self._memory, registry=texts
        )

    def run(self, num_threads: int, *, writes_files: bool) -> StudyEnd:
        """Work until the study is finished."""
        claim = f"coordinator:{self.shared.name}"
        hands = TaskRunner(self._board, self._ask, num_threads=num_threads)
        try:
            while (finished := self.shared.finished()) is None:
                if not self._store.claims.claim(claim):
                    self._help(hands)
                    continue
                try:
                    # The one before may have finished just before it left.
                    if self.shared.finished() is None:
                        self._coordinate(hands)
                        writes_files = True
                finally:
                    self._store.release(claim)
        finally:
            hands.close()
            self._ledger.flush()
        result = StudyResult.from_json(json.loads(finished.result))
        if writes_files:
            write_files(finished, result, self._out)
        where = shown_url(url_of(self._storage))
        return StudyEnd(result, where, finished.place, hands.n_done)

    def _ask(self, task: Task) -> None:
        with spending_under(self._ledger, share=task.share):
            self._evaluator.ask(Architecture.parse(task.architecture), self._rows[task.example])

    def _help(self, hands: TaskRunner) -> None:
        self._pool.calls.endurance = self._endurance()
        clock = self._pool.calls.clock
        last = clock.monotonic() + _LOOK_SECONDS
        while clock.monotonic() < last:
            hands.turn()
            hands.rest()

    def _endurance(self) -> OutagePolicy:
        return OutagePolicy(self._prepared.study.calls.outage_seconds)

    def _coordinate(self, hands: TaskRunner) -> None:
        """Run the search from its start: what is known costs nothing."""
        calls = self._pool.calls
        # An agent that does not answer its probe is an error, and not waited for.
        calls.endurance = None
        self._board.clear()
        workers = QueueWorkers(self._board, hands, self._ledger)
        outcome = self._prepared.run(
            self._pool,
            ledger=self._ledger,
            workers=None if calls.replay_only else workers,
            node_cache=self._memory,
            show=self._watched,
        )
        save_study(outcome.study, self._storage, name=self.shared.name)
        self._finish(outcome)

    def _watched(self, snapshot: Snapshot, /) -> None:
        calls = self._pool.calls
        if snapshot.stage != "probe" and calls.endurance is None:
            calls.endurance = self._endurance()
        self._watcher(snapshot)

    def _finish(self, outcome: SearchOutcome) -> None:
        self._ledger.flush()
        spent = self._ledger.spending
        result = replace(
            outcome.result,
            notes=(*self._prepared.notes, *outcome.result.notes),
            calls_made=spent.made,
            calls_reused=spent.reused,
            usd=spent.usd,
            seconds=spent.seconds,
        )
        scores = {name: row.score for name, row in result.test.items()}
        text = written_text(lambda path: save_program(outcome.program, path, scores=scores))
        content = json.dumps(result.to_json(), allow_nan=False)
        place = f"{socket.gethostname()}:{self._out.resolve()}"
        self.shared.finish(Finished(content, text, place))

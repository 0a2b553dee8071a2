"""The runner of a study file: one of any number of processes that work on the same study.

Every process reads the file, opens the study's database and works until the study is finished.
One of them at a time coordinates: it runs the search, which offers tasks. The others take tasks,
and coordinate if the coordinator dies. A process that comes later finds the result.
"""

from __future__ import annotations

import json
import logging
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path
from typing import Final

from moa_dspy.calls.budget import Ledger, spending_under
from moa_dspy.calls.lm.lm import each_warning_once
from moa_dspy.calls.request import AnsweredRequests, OutagePolicy, ProbePolicy
from moa_dspy.calls.scope import call_scope, waiting_for_budget
from moa_dspy.calls.store.database import database_url, shown_url
from moa_dspy.calls.store.store import CallStore
from moa_dspy.errors import MetricError, MoaError, OutageError, StudyError
from moa_dspy.optimize.answers import StudyAnswers, with_study, write_answers
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.options import TrialCallback
from moa_dspy.optimize.page import write_pages
from moa_dspy.optimize.progress import ShowSnapshot, Snapshot, silent
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.search import ModelSearch, SearchOutcome, run_search
from moa_dspy.optimize.storage import LiveStorage
from moa_dspy.optimize.study import FinishedStudy, PreparedStudy, SharedStudy, digest_of
from moa_dspy.optimize.tasks import QueueWorkers, Task, TaskQueue, TaskRunner
from moa_dspy.program_file import program_text

_logger = logging.getLogger(__name__)
RUNS = Path("runs")
"""Folder of the results where ``out`` is not given; each study has one of its name in it."""
RUN_FILES: Final = ("program.json", "result.json", "answers.json", "report.html", "report.md")
"""Files that a finished study writes into its folder."""
OPTIMIZER_LOG: Final = "prompts.log"
"""File of the folder that takes what optimizers of prompts print."""
_ANSWERS: Final = "answers"
"""Key of the answers beside the result in the study's database."""
CAN_RESUME: Final = "every answer up to now is kept"
"""Text of the ``KeyboardInterrupt`` of a study that has begun."""
_MENDED: Final = "Every answer is kept: mend this, and run the study again without --resume."
"""End of the error of a metric; a mended metric or row is another study for ``--resume``."""
_LOOK_SECONDS: Final = 0.25
"""Time between two looks of a worker whether the study has ended, or its coordinator."""
_OF_THE_FOLDER: Final = "study"
"""Key of the only study of a folder's own database."""


@dataclass(frozen=True, slots=True)
class StudyEnd:
    """A finished study, as one of its processes leaves it.

    Attributes:
        result: What it found.
        storage: Its database, without passwords.
        place: Machine and folder of the files that its last coordinator wrote.
        folder: Folder of the results of this process.
        n_tasks: Tasks that this process did.
    """

    result: StudyResult
    storage: str
    place: str
    folder: Path
    n_tasks: int


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """The places of a study's data.

    Attributes:
        folder: Folder of the results, and without a ``storage`` of all else.
        storage: URL of a database that several studies may share.
    """

    folder: Path
    storage: str | None = None

    @property
    def calls(self) -> Path | str:
        """The database of answers, spending, tasks and the result."""
        return self.storage or self.folder / "calls.sqlite"

    @property
    def optuna(self) -> Path | str:
        """The database of Optuna's study."""
        return self.storage or self.folder / "study.sqlite3"

    @property
    def file(self) -> Path | None:
        """The file of ``calls``; None for a server."""
        url = database_url(self.calls)
        return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def run_study(
    path: Path | str,
    *,
    out: Path | str | None = None,
    storage: str | None = None,
    resume: bool = False,
    show: ShowSnapshot = silent,
) -> StudyResult:
    """Run the study of a file, and write its program and result into a folder.

    The folder also holds ``calls.sqlite`` (every answer, what was spent, how far the study is)
    and ``study.sqlite3`` (Optuna's). Stored answers are always used. Several processes may run
    the same study at once, on one folder or, with a ``storage``, on one database: they share the
    work. An interrupted study goes on with what is left of its budget. A finished study
    returns its result at no call. A changed study of the same ``name`` takes
    the place of the old one in its folder.

    Args:
        path: The study file.
        out: The folder; default ``runs/NAME``.
        storage: URL of a database, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.
        resume: Whether the same study must have begun there.
        show: Is called with the progress.

    Raises:
        MoaError: If anything in the file does not fit, before anything is written.
        OutageError: If an endpoint is down for longer than the study waits for it.
        KeyboardInterrupt: With a text, if the study can be resumed.
    """
    prepared = PreparedStudy.read(path)
    return work_on(prepared, storage, out=out, resume=resume, show=show).result


def work_on(
    prepared: PreparedStudy,
    storage: str | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    is_helper: bool = False,
    writes_files: bool = True,
    num_threads: int | None = None,
    show: ShowSnapshot = silent,
    callbacks: Sequence[TrialCallback] = (),
) -> StudyEnd:
    """Work on a study until it is finished, beside any number of other processes.

    Args:
        prepared: The study, the same for all.
        storage: URL of the database that they share; None is a file in the folder.
        out: Folder of the results; default ``runs/NAME``.
        resume: Whether the study must have begun.
        is_helper: Whether another budget is an error, instead of reopening the study.
        writes_files: Whether to write the results even if another process coordinated.
        num_threads: Tasks at the same time; default: the study's.
        show: Is called with the progress while this process coordinates.
        callbacks: Are called after each trial of this process; see ``ModelSearch``.

    Raises:
        MoaError: If the study is another one, or an endpoint is down for longer than the study
            waits for it.
    """
    place = StudyPlace(Path(out or RUNS / prepared.study.name), storage)
    if resume and place.file is not None and not place.file.exists():
        problem = "does not exist" if storage is None else f"has no study {prepared.study.name!r}"
        raise StudyError(f"There is nothing to resume: {place.file} {problem}.")
    if writes_files:
        _check_writable(place.folder)
    with _opened(place) as opened, each_warning_once():
        runner = Runner(prepared, opened.store, place, show=show, callbacks=callbacks)
        try:
            runner.join(must_exist=resume, may_set_budget=not is_helper)
            return runner.run(num_threads, writes_files=writes_files)
        except OutageError:
            raise
        except MoaError as error:
            if runner.has_begun and isinstance(error, MetricError):
                raise MetricError(f"{error} {_MENDED}") from error
            # Unless another process has joined the study, nothing is left of it.
            opened.is_refused = not runner.has_begun and not runner.shared.has_others
            raise


class Runner:
    """One process of a study; see ``work_on``."""

    def __init__(
        self,
        prepared: PreparedStudy,
        store: CallStore,
        place: StudyPlace,
        *,
        show: ShowSnapshot,
        callbacks: Sequence[TrialCallback] = (),
    ) -> None:
        self._prepared, self._store, self._place, self._show = prepared, store, place, show
        self._callbacks = tuple(callbacks)
        study = prepared.study
        self.shared = _shared_study(prepared, store, place)
        self.has_begun = False
        self._budget = store.budget(f"{study.name} {digest_of(prepared.digests)}")
        self._ledger = Ledger(study.budget, backend=self._budget)
        self._pool = prepared.make_pool(store, self._ledger)
        self._queue = TaskQueue(store, self.shared.key)
        self._node_cache = NodeCache()
        self._rows = {row.id: row for row in (*prepared.splits.val, *prepared.splits.test)}
        student = study.make_student(self._pool)
        mixture = Student.of(student).mixture
        prompts = None if study.prompts is None else study.prompts.make_registry(mixture)
        self._evaluator = Evaluator(
            student,
            prepared.metric,
            node_cache=self._node_cache,
            registry=prompts,
            judging=self._search().options.make_judging(),
        )

    def join(self, *, must_exist: bool, may_set_budget: bool) -> None:
        """Begin the study or join it.

        Raises:
            StudyError: If the database holds another study, or none that can be resumed.
        """
        self._store.owner.register()
        if self.shared.join(must_exist=must_exist, may_set_budget=may_set_budget):
            self._budget.restart()
            _logger.warning("%s: another study of this name is replaced.", self._place.folder)
            for path in self._place.folder.glob("program-[0-9]*.json"):
                path.unlink(missing_ok=True)  # of its front

    def run(self, num_threads: int | None, *, writes_files: bool) -> StudyEnd:
        """Work until the study is finished."""
        n_threads = num_threads or self._search().options.num_threads
        tasks = TaskRunner(self._queue, self._work, num_threads=n_threads)
        try:
            while (finished := self.shared.finished()) is None:
                if not self._store.claims.claim(self.shared.claim):
                    self._help(tasks)
                    continue
                try:
                    # The last coordinator may have finished just before it left.
                    if self.shared.finished() is None:
                        self._coordinate(tasks)
                        writes_files = True
                finally:
                    self._store.release(self.shared.claim)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(CAN_RESUME) from interrupt
        finally:
            tasks.close()
            self._ledger.flush()
        self.has_begun = True
        result, answers = _result_of(finished)
        folder = self._place.folder
        if writes_files:
            agents = _path_from(folder, self._prepared.study.agents_file)
            _write_files(finished, result, replace(answers, agents_file=agents), folder)
        where = shown_url(database_url(self._place.calls))
        return StudyEnd(result, where, finished.place, folder, tasks.n_done)

    def _search(self) -> ModelSearch:
        return self._prepared.study.make_search(self._pool, self._prepared.metric)

    def _work(self, task: Task) -> None:
        table = self._node_cache.table
        scope, waiting = call_scope(table=table), waiting_for_budget()
        with scope, waiting, spending_under(self._ledger, share=task.share):
            self._evaluator.work(task.architecture, self._rows[task.example])

    def _help(self, tasks: TaskRunner) -> None:
        self._pool.calls.outage_policy = self._outage_policy()
        clock = self._pool.calls.clock
        last = clock.monotonic() + _LOOK_SECONDS
        while clock.monotonic() < last:
            tasks.turn()
            tasks.rest()

    def _outage_policy(self, known: AnsweredRequests | None = None) -> OutagePolicy:
        return OutagePolicy(self._prepared.study.calls.outage_seconds, known=known)

    def _coordinate(self, tasks: TaskRunner) -> None:
        """Run the search from its start: what is known costs nothing."""
        calls, study = self._pool.calls, self._prepared.study
        # An agent that does not answer its probe is an error, and not waited for.
        calls.outage_policy = ProbePolicy()
        self._queue.clear()
        workers = QueueWorkers(self._queue, tasks, self._ledger)
        is_own = self._place.storage is None
        name = self._place.folder.resolve().name if is_own else study.name
        storage = LiveStorage(self._place.optuna, name)
        try:
            # A file that cannot be used is found before anything is paid.
            storage.open()
            options = self._search().options
            outcome = run_search(
                replace(options, callbacks=(*options.callbacks, *self._callbacks)),
                study.make_student(self._pool),
                self._prepared.splits,
                ledger=self._ledger,
                workers=None if calls.replay_only else workers,
                node_cache=self._node_cache,
                storage=storage,
                show=self._on_progress,
                log=self._place.folder / OPTIMIZER_LOG,
            )
        finally:
            storage.close()
        self._finish(outcome)

    def _on_progress(self, snapshot: Snapshot, /) -> None:
        calls = self._pool.calls
        if snapshot.stage != "probe":
            self.has_begun = True
            if isinstance(calls.outage_policy, ProbePolicy):
                calls.outage_policy = self._outage_policy(calls.outage_policy.known)
        self._show(snapshot)

    def _finish(self, outcome: SearchOutcome) -> None:
        self._ledger.flush()
        spent, study_result = self._ledger.spending, outcome.result
        result = replace(
            study_result,
            notes=(*self._prepared.notes, *study_result.notes),
            calls_made=spent.made,
            calls_reused=spent.reused,
            usd=None if study_result.usd is None else spent.usd,
            # The budget's clock runs from the first paid call on: in a replay it never starts.
            seconds=max(spent.seconds, study_result.seconds),
        )
        scores = {name: row.score for name, row in result.test.items()}
        # Of a program the file has the mixture: nothing else in it was changed.
        text = program_text(Student.of(outcome.program).mixture, scores=scores)
        answers = with_study(outcome.answers, **self._prepared.public)
        stored = {**result.to_json(), _ANSWERS: answers.to_json()}
        content = json.dumps(stored, allow_nan=False)
        place = f"{socket.gethostname()}:{self._place.folder.resolve()}"
        self.shared.finish(FinishedStudy(content, text, place))


def _shared_study(prepared: PreparedStudy, store: CallStore, place: StudyPlace) -> SharedStudy:
    """Return the study as processes share it; in a folder of its own it has a fixed name there."""
    name, parts = prepared.study.name, prepared.digests
    if place.storage is not None:
        return SharedStudy(store, name, parts=parts, budget=prepared.budget, folder=None)
    parts = {**parts, "name": digest_of(name)}
    return SharedStudy(
        store, _OF_THE_FOLDER, parts=parts, budget=prepared.budget, folder=place.folder
    )


def _result_of(finished: FinishedStudy) -> tuple[StudyResult, StudyAnswers]:
    try:
        content = json.loads(finished.result)
        answers = content.pop(_ANSWERS, None)
        kept_answers = StudyAnswers() if answers is None else StudyAnswers.from_json(answers)
        return StudyResult.from_json(content), kept_answers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"The stored result cannot be read ({type(error).__name__}: {error}): it was written "
            "by another version of moa-dspy. Give the study another `name` or another folder."
        ) from error


def _write_files(
    finished: FinishedStudy, result: StudyResult, answers: StudyAnswers, folder: Path
) -> None:
    """Write the program, the result, its answers and its reports into ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes may write into one folder, and any may be killed: a file is whole or
        # old.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            (Path(partial) / "program.json").write_text(finished.program, "utf-8")
            result.write(Path(partial) / "result.json")
            write_answers(answers, Path(partial) / "answers.json")
            write_pages(result, answers, Path(partial), name=folder.resolve().name)
            for name in RUN_FILES:
                (Path(partial) / name).replace(folder / name)
    except OSError as error:
        raise StudyError(
            f"The results cannot be written to {folder}: {error.strerror or error}. The study is "
            "finished and kept; the same command with another --out writes them."
        ) from error


def _path_from(folder: Path, file: Path | None) -> str:
    """Return the path from a folder to a file; empty where there is none, as on another drive."""
    try:
        return "" if file is None else relpath(file.resolve(), folder.resolve())
    except ValueError:
        return ""


def _check_writable(folder: Path) -> None:
    """Raise if no folder could be made at ``folder``, or no file in it; leave nothing behind."""
    if taken := [name for name in (*RUN_FILES, OPTIMIZER_LOG) if (folder / name).is_dir()]:
        raise StudyError(f"Results cannot be written to {folder}: {taken[0]} is a folder there.")
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    log = folder / OPTIMIZER_LOG
    try:
        if log.exists():
            log.open("ab").close()
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".moa-dspy-") as probe:
            probe.write(b"0" * 2**16)
            probe.flush()
    except OSError as error:
        raise StudyError(
            f"Results cannot be written to {folder}: {error.strerror or error}."
        ) from error


@dataclass(slots=True)
class _OpenStore:
    """The store of a study; the files that were made for a refused study are deleted."""

    store: CallStore
    is_refused: bool = False


@contextmanager
def _opened(place: StudyPlace) -> Iterator[_OpenStore]:
    file = place.file
    files = [path for path in (file, place.optuna) if isinstance(path, Path) and not path.exists()]
    folders = [] if file is None else [folder for folder in file.parents if not folder.exists()]
    is_new = file is not None and not file.exists()
    opened: _OpenStore | None = None
    try:
        opened = _OpenStore(CallStore(place.calls))
        yield opened
    finally:
        if opened is not None:
            opened.store.close()
        if is_new and (opened is None or opened.is_refused):
            _remove(files, folders)


def _remove(files: Sequence[Path], folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for file in files:
            for suffix in ("", "-wal", "-shm"):
                file.with_name(file.name + suffix).unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()

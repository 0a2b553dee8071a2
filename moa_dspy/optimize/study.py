"""A study file with everything it names read and checked, before anything is asked or written."""

# DOCS: optimize/study/_log: ``run.json``: which study a folder is of, how far it got, and what it spent. | optimize/study/_staged_store: The call store of a run, which is made only once the study has proved to be one. | optimize/study/_database: Writes a study to a database that Optuna and its dashboard can open.

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from sqlalchemy import exc

from moa_dspy.agent import Agent
from moa_dspy.calls import (
    Budget,
    Call,
    Calls,
    CallStore,
    Ledger,
    Recording,
    SharedLimits,
    Spending,
    canonical_json,
    database_url,
)
from moa_dspy.calls.call import WritableBackend
from moa_dspy.calls.store.database import shown as shown_url
from moa_dspy.data import Splits, fingerprint
from moa_dspy.errors import StoreError, StudyError
from moa_dspy.optimize.result import StageCounts
from moa_dspy.optimize.search import ModelSearch, SearchOutcome, run_search
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.splits import make_splits
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Pool


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """What a run of a study needs, whoever runs it.

    Attributes:
        study: The file.
        splits: Its rows, each with an id.
        metric: What counts as right.
        agents: Those that can be asked here.
        notes: On each agent that is left out.
        space: What may be tried.
    """

    study: StudyFile
    splits: Splits
    metric: Any
    agents: tuple[Agent, ...]
    notes: tuple[str, ...]
    space: SearchSpace

    @classmethod
    def read(cls, path: Path) -> PreparedStudy:
        """Read the study of a file.

        Raises:
            MoaError: If anything in the file does not fit.
        """
        study = read_study(path)
        found, metric = study.make_splits(), study.make_metric()
        agents, notes = study.make_agents()
        splits = make_splits(found.train, found.val, found.test, seed=study.seed)
        return cls(study, splits, metric, agents, notes, study.make_space(agents))

    @property
    def parts(self) -> dict[str, Any]:
        """Every part that decides what the study finds, by name, as plain data."""
        study = self.study
        public = [{**asdict(a), "weights": None, "identity": a.identity} for a in self.agents]
        return {
            "seed": study.seed,
            "data": fingerprint(self.splits),
            "agents": public,
            "task": study.task.model_dump(),
            "space": study.space.model_dump(),
            "search": study.search.model_dump(exclude_none=True),
            "limits": study.limits.model_dump(),
            **({"prompts": study.prompts.model_dump()} if study.prompts else {}),
        }

    def make_pool(self, store: WritableBackend, ledger: Ledger) -> Pool:
        """Return the agents, whose calls go to ``store``."""
        wanted = self.study.calls
        calls = Calls(
            store,
            recording=Recording.read(wanted.recording) if wanted.recording else None,
            replay_only=wanted.replay_only,
            ledger=ledger,
        )
        return Pool(self.agents, calls=calls)

    def run(self, pool: Pool, **options: Any) -> SearchOutcome:
        """Run the search; ``options`` are those of ``run_search``."""
        search = ModelSearch(
            self.metric,
            pool,
            space=self.space,
            limits=self.study.make_limits(),
            seed=self.study.seed,
            prompts=self.study.make_prompts(),
            **{**self.study.search.model_dump(), "sampler": self.study.make_sampler()},
        )
        student = self.study.make_student(pool)
        return run_search(search.options, student, self.splits, **options)


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """What earlier runs of the same study leave behind."""

    spent: Spending | None = None
    counts: StageCounts | None = None


class RunLog:
    """``run.json``: which study this folder is of, how far it got, and what it spent.

    Args:
        path: The file.
        parts: Every part of the study by name, as plain data.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self.path = path
        self.parts = {name: digest_of(value) for name, value in parts.items()}
        self._budget: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """What names the study by its content, and not this run of it."""
        return digest_of(self.parts)

    def continued(self, *, resume: bool, budget: dict[str, Any]) -> EarlierRuns:
        """Return what this run starts from.

        Raises:
            StudyError: If ``resume`` finds no run, or one of another study, naming what changed.
        """
        self._budget = budget
        old = self._read()
        if old is None:
            if resume:
                raise StudyError(f"There is nothing to resume: {self.path} does not exist.")
            return EarlierRuns()
        changed = [name for name, value in self.parts.items() if old["parts"].get(name) != value]
        if resume and changed:
            raise StudyError(
                f"{self.path.parent} holds another study: {', '.join(changed)} changed since. "
                "Run without --resume, or with another --out."
            )
        is_same = not changed and old["budget"] == budget
        if is_same and old["status"] == "finished":
            return EarlierRuns(Spending(**old["spent"]), _counts(old["counts"]))
        return EarlierRuns(Spending(**old["spent"])) if resume else EarlierRuns()

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


def digest_of(value: Any) -> str:
    """Return 16 hexadecimal digits that name plain data by its content."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def _counts(plain: dict[str, Any]) -> StageCounts:
    return StageCounts(**{**plain, "phases": tuple(plain.get("phases", ()))})


class StagedStore:
    """A call store that makes nothing before it is opened: a refused study writes nothing.

    Calls made before are kept in memory and written when it is opened. Where the study's
    book is in the store, no crash makes the study spend more than its budget.

    Args:
        place: A file, or the URL of a database, which is opened at once.
        study: Whose book it keeps.
    """

    def __init__(self, place: Path | str, *, study: str) -> None:
        self._place, self._study = place, study
        self._waiting: dict[str, Call] = {}
        is_absent = isinstance(place, Path) and not place.exists()
        self._store = None if is_absent else CallStore(place)
        self._ledger = Ledger()
        self._is_booked = False

    def ledger(self, budget: Budget, *, spent: Spending | None) -> Ledger:
        """Return the ledger of a run.

        Args:
            budget: Of the study.
            spent: By earlier runs, as far as is known without the store; None begins anew.
        """
        if self._store is not None and spent is not None:
            self._is_booked = True
            self._ledger = Ledger(budget, backend=self._store.budget(self._study, spent=spent))
        else:
            self._ledger = Ledger(budget, spent=spent)
        return self._ledger

    def get(self, key: str, /) -> Call | None:
        """Return a stored or waiting call, or None."""
        waiting = self._waiting.get(key)
        return waiting or (self._store.get(key) if self._store else None)

    def put(self, call: Call, /) -> Call:
        """Keep a call, and return what is kept under its key."""
        if self._store is not None:
            return self._store.put(call)
        self._waiting[call.key] = call
        return call

    def claim(self, key: str, /) -> bool:
        """Take the right to make the call of ``key``; before it is opened, nobody else can."""
        return self._store is None or self._store.claim(key)

    def release(self, key: str, /) -> None:
        """Give it back."""
        if self._store is not None:
            self._store.release(key)

    @property
    def limits(self) -> SharedLimits | None:
        """What all processes on the store keep to; None before it is opened."""
        return self._store.limits if self._store is not None else None

    def open(self) -> None:
        """Make the store, and write down what was answered and spent until now."""
        if self._store is None:
            self._store = CallStore(self._place)
        for call in self._waiting.values():
            self._store.put(call)
        self._waiting.clear()
        if not self._is_booked:
            self._is_booked = True
            book = self._store.budget(self._study)
            book.restart()
            self._ledger.move_to(book)

    def close(self) -> None:
        """Close the store if there is one.

        Raises:
            StoreError: If an answer that was paid for could not be written.
        """
        if self._store is not None:
            if self._is_booked:
                self._ledger.flush()
            self._store.close()


def save_study(study: optuna.Study, place: Path | str, *, name: str) -> None:
    """Write every complete trial of ``study``; an older study of the same name is replaced.

    Args:
        study: With its trials.
        place: A file that holds nothing else, or the URL of a database, which may hold calls
            and other studies as well.
        name: Of the study there.

    Raises:
        StoreError: If the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(place, Path):
        _write_file(study, place, name=name)
        return
    url = database_url(place)
    try:
        storage = _storage(url.render_as_string(hide_password=False))
        try:
            if name in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=name, storage=storage)
            _copy(study, storage, name=name)
        finally:
            storage.engine.dispose()
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        # Not from the error: it may show the password.
        raise StoreError(f"{shown_url(url)} cannot be used: {type(cause).__name__}.") from None


def _write_file(study: optuna.Study, path: Path, *, name: str) -> None:
    # The rows are made in memory and copied in one go: Optuna commits a trial in many small
    # steps, which took 0.2 seconds each on a disk.
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    storage = _storage(
        "sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
    )
    _copy(study, storage, name=name)
    target = sqlite3.connect(partial)
    try:
        with storage.engine.connect() as connection:
            connection.connection.driver_connection.backup(target)  # type: ignore[union-attr]
    finally:
        target.close()
        storage.engine.dispose()
    partial.replace(path)


def _storage(url: str, **options: Any) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _copy(study: optuna.Study, storage: optuna.storages.RDBStorage, *, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kept = optuna.create_study(study_name=name, storage=storage, directions=study.directions)
        kept.add_trials(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))

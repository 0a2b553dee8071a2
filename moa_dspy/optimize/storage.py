"""The Optuna study of a search, and its storage.

Trials are in memory, with a copy in a database that anyone can open.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, exc

from moa_dspy.calls.store.database import database_url, reason_of, shown_url
from moa_dspy.errors import StoreError
from moa_dspy.optimize.objectives import OBJECTIVES, Objective


class SearchStudy(optuna.Study):
    """An Optuna study whose trials a search asks and tells.

    Attributes:
        is_stopped: Whether a callback called ``stop``, which ends the search.
    """

    is_stopped = False

    def stop(self) -> None:
        """End the search after the trial that was just finished."""
        self.is_stopped = True
        # Optuna's own stops its own loop, and raises where none runs.
        with suppress(RuntimeError):
            super().stop()


def make_study(
    objectives: Sequence[Objective],
    *,
    seed: int,
    sampler: Any = None,
    storage: optuna.storages.BaseStorage | None = None,
) -> SearchStudy:
    """Return a new study.

    Args:
        objectives: Give the directions and the names of the values.
        seed: Seed of the sampler.
        sampler: Sampler of Optuna, or one of its kind; default: TPE.
        storage: Keeps the trials; default: memory.
    """
    kept = storage or optuna.storages.InMemoryStorage()
    name = getattr(storage, "study_name", None)
    directions: list[Any] = [objective.direction for objective in objectives]
    verbosity = optuna.logging.get_verbosity()
    # Optuna tells of every new study; what it tells elsewhere is the user's choice.
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        created = optuna.create_study(directions=directions, storage=kept, study_name=name)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = SearchStudy(created.study_name, kept, sampler=sampler or _tpe(seed))
    names = {kind: name for name, kind in OBJECTIVES.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(
            [names.get(type(objective), type(objective).__name__) for objective in objectives]
        )
    return study


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    # Without groups only what all trials share, the kind, is sampled jointly: five of six
    # proposals were then architectures that the study knew.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


_KNOWN_SCHEMA: Final = "v3.2.0.a"
"""The revision of Optuna's schema in which the tables below mean what they are taken to mean."""
_TRIALS: Final = "trials"
_TRIAL_COLUMNS: Final = ("number", "study_id", "state", "datetime_start", "datetime_complete")
_TABLES: Final = {
    "trial_params": ("param_name", "param_value", "distribution_json"),
    "trial_user_attributes": ("key", "value_json"),
    "trial_system_attributes": ("key", "value_json"),
    "trial_values": ("objective", "value", "value_type"),
    "trial_intermediate_values": ("step", "intermediate_value", "intermediate_value_type"),
}
"""Optuna's tables of rows of a trial, with their columns; the first tells the rows apart."""
_HEARTBEATS: Final = "trial_heartbeats"
_Rows = dict[str, dict[Any, tuple[Any, ...]]]  # By table and first column: the others of a row.


class LiveStorage(optuna.storages.InMemoryStorage):
    """Trials in memory, and a copy of each in a database from its start to its end.

    A sampler reads all trials for every proposal, and an objective writes some thirty values of
    a trial: here they are read from memory, and written in one transaction when it starts, one
    per report and one when it ends. Then it outlives the process; SQLite does not wait for the
    disk, so a power cut may take the last trials. The copy is an Optuna study as any other.
    Where Optuna's tables are not those that are known here, it is written by Optuna's own
    methods, one value at a time.

    Args:
        place: A file that holds nothing else, or the URL of a database, which may hold calls
            and other studies as well.
        study_name: Name of the study there; an older one of that name is replaced. None is a new
            name, which Optuna gives.
    """

    def __init__(self, place: Path | str, study_name: str | None = None) -> None:
        super().__init__()
        self.study_name = study_name
        self._place, self._url = place, database_url(place)
        self._copy: Any = None
        self._tables: Mapping[str, sa.Table] | None = None
        self._study = -1
        self._ids: list[int] = []
        self._written: dict[int, _Rows] = {}

    def open(self) -> None:
        """Connect to the database, which is made if there is none; it must be writable."""
        if self._copy is None:
            with self._plain_errors():
                self._copy, self._tables = _opened(self._url, self._place)
                _check_writable(self._copy.engine)

    def create_new_study(
        self, directions: Sequence[optuna.study.StudyDirection], study_name: str | None = None
    ) -> int:
        """Begin the study here and in the database, where an older one of its name is deleted."""
        self._study = super().create_new_study(directions, study_name)
        name = self.get_study_name_from_id(self._study)
        self.open()
        with self._plain_errors():
            _delete(self._copy, name, self._tables)
            self._copied_study = self._copy.create_new_study(directions, name)
        return self._study

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it here and in the database."""
        super().set_study_user_attr(study_id, key, value)
        with self._plain_errors():
            self._copy.set_study_user_attr(self._copied_study, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it here and in the database."""
        super().set_study_system_attr(study_id, key, value)
        with self._plain_errors():
            self._copy.set_study_system_attr(self._copied_study, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create the trial here, and in the database if it is more than a number yet."""
        trial_id = super().create_new_trial(study_id, template_trial)
        if template_trial is not None:
            self._write(trial_id)
        return trial_id

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set it here and in the database."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._write(trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change the state here, and in the database when the trial ends."""
        is_changed: bool = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._write(trial_id)
        return is_changed

    def publish(self, number: int) -> None:
        """Write what is known of the trial of this number up to now."""
        self._write(self.get_trial_id_from_study_id_trial_number(self._study, number))

    def close(self) -> None:
        """Let go of the database."""
        if self._copy is not None:
            self._copy.engine.dispose()

    def _write(self, trial_id: int) -> None:
        """Write what is new or changed of a trial."""
        with self._lock, self._plain_errors():
            trial = self.get_trial(trial_id)
            # Both count trials as they come: one that is only a number is written now.
            numbers = range(len(self._ids), trial.number + 1)
            more = [self._studies[self._study].trials[number] for number in numbers]
            if self._tables is None:
                self._write_by_methods(trial, more)
            else:
                self._write_rows(trial, more, self._tables)

    def _write_rows(
        self, trial: FrozenTrial, more: Sequence[FrozenTrial], tables: Mapping[str, sa.Table]
    ) -> None:
        """Write a trial, and ``more`` that have no row yet, in one transaction."""
        written, rows, trials = (
            self._written.get(trial.number, {}),
            _rows_of(trial),
            tables[_TRIALS],
        )
        with self._copy.engine.begin() as connection:
            added = [self._insert(connection, other, trials) for other in more]
            copied = [*self._ids, *added][trial.number]
            for name, values in rows.items():
                _replace(connection, tables[name], copied, values, written.get(name, {}))
            is_same = trials.c.trial_id == copied
            connection.execute(sa.update(trials).where(is_same).values(_state_of(trial)))
        self._ids.extend(added)
        self._written[trial.number] = {} if trial.state.is_finished() else rows

    def _insert(self, connection: sa.Connection, trial: FrozenTrial, trials: sa.Table) -> int:
        """Return the key of a new row, whose number is the count of those before, as Optuna's."""
        study = self._copied_study
        counted = sa.select(sa.func.count(trials.c.trial_id)).where(trials.c.study_id == study)
        values = {"number": counted.scalar_subquery(), "study_id": study, **_state_of(trial)}
        result: Any = connection.execute(sa.insert(trials).values(values))
        return int(result.inserted_primary_key[0])

    def _write_by_methods(self, trial: FrozenTrial, more: Sequence[FrozenTrial]) -> None:
        """Write a trial by Optuna's own methods."""
        copy = self._copy
        self._ids += [copy.create_new_trial(self._copied_study, other) for other in more]
        key = self._ids[trial.number]
        kept, kinds = copy.get_trial(key), trial.distributions
        for name in trial.params.keys() - kept.params.keys():
            value = kinds[name].to_internal_repr(trial.params[name])
            copy.set_trial_param(key, name, value, kinds[name])
        kinds_of_values: tuple[Any, ...] = (
            (trial.user_attrs, kept.user_attrs, copy.set_trial_user_attr),
            (trial.system_attrs, kept.system_attrs, copy.set_trial_system_attr),
            (
                trial.intermediate_values,
                kept.intermediate_values,
                copy.set_trial_intermediate_value,
            ),
        )
        for values, old, set_value in kinds_of_values:
            for name in [name for name in values if name not in old or old[name] != values[name]]:
                set_value(key, name, values[name])
        if trial.state != kept.state:
            copy.set_trial_state_values(key, trial.state, trial.values)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            cause = error.__cause__ or error
            # Of a server not what the error says, nor from it: both may show the password.
            is_file = self._url.get_backend_name() == "sqlite"
            reason = reason_of(getattr(cause, "orig", cause)) if is_file else type(cause).__name__
            raise StoreError(f"{shown_url(self._url)} cannot be used: {reason}") from None


@contextmanager
def opened_storage(storage: Any) -> Iterator[optuna.storages.BaseStorage | None]:
    """Yield the storage that ``optuna.create_study`` would use; StoreError if it cannot be."""
    if not isinstance(storage, str):
        yield storage
    elif storage.startswith(("sqlite:///", "postgres:", "postgresql:", "postgresql+psycopg:")):
        with closing(LiveStorage(storage)) as live:
            live.open()
            yield live
    else:
        try:
            opened = optuna.storages.get_storage(storage)
        except Exception as error:
            # Neither the text nor the error is shown: they may quote a password.
            raise StoreError(
                "`storage` must be a URL such as sqlite:///FILE or postgresql://HOST/NAME, or "
                f"another that Optuna opens; it raises {type(error).__name__} at this one."
            ) from None
        yield opened


def _tables_of(storage: Any) -> dict[str, sa.Table] | None:
    """Return Optuna's tables of trials, as the database says; None where they may mean another.

    Raises:
        RuntimeError: If a column is missing without which they are not Optuna's.
    """
    if storage.get_current_version() != _KNOWN_SCHEMA:
        return None
    expected = {_TRIALS: _TRIAL_COLUMNS} | {name: ("trial_id", *c) for name, c in _TABLES.items()}
    names, metadata = (*expected, _HEARTBEATS), sa.MetaData()
    metadata.reflect(storage.engine, only=names)
    more: set[str] = set()
    for name, columns in expected.items():
        present = {column.name for column in metadata.tables[name].c if not column.primary_key}
        if missing := set(columns) - present:
            raise RuntimeError(f"{name} has no {min(missing)}")
        more |= present - set(columns)
    return None if more else {name: metadata.tables[name] for name in names}


def _rows_of(trial: FrozenTrial) -> _Rows:
    """Return what the database holds of a trial beside its state."""
    kinds, values = trial.distributions, enumerate(trial.values or ())
    params = {
        name: (kinds[name].to_internal_repr(value), distribution_to_json(kinds[name]))
        for name, value in trial.params.items()
    }
    attributes = _as_json(trial.user_attrs), _as_json(trial.system_attrs)
    reports = {step: _stored(value) for step, value in trial.intermediate_values.items()}
    rows = (params, *attributes, {place: _stored(value) for place, value in values}, reports)
    return dict(zip(_TABLES, rows, strict=True))


def _stored(value: float) -> tuple[float | None, str]:
    """Return a value as Optuna stores it: what is not finite has a name instead."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


def _as_json(attributes: Mapping[str, Any]) -> dict[Any, tuple[Any, ...]]:
    return {name: (json.dumps(value),) for name, value in attributes.items()}


def _replace(
    connection: sa.Connection,
    table: sa.Table,
    trial_id: int,
    rows: Mapping[Any, tuple[Any, ...]],
    written: Mapping[Any, tuple[Any, ...]],
) -> None:
    """Write the rows of a trial that are not written yet, or were written otherwise."""
    new = {key: row for key, row in rows.items() if written.get(key) != row}
    if not new:
        return
    columns: tuple[str, ...] = ("trial_id", *_TABLES[table.name])
    if changed := [key for key in new if key in written]:
        is_same = (table.c.trial_id == trial_id) & table.c[columns[1]].in_(changed)
        connection.execute(sa.delete(table).where(is_same))
    new_rows: list[dict[str, Any]] = [
        dict(zip(columns, (trial_id, key, *row), strict=True)) for key, row in new.items()
    ]
    connection.execute(sa.insert(table), new_rows)


def _state_of(trial: FrozenTrial) -> dict[str, Any]:
    # Optuna's trials have local time, and its database UTC; neither says so.
    start, end = (
        None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
        for moment in (trial.datetime_start, trial.datetime_complete)
    )
    return {"state": trial.state.name, "datetime_start": start, "datetime_complete": end}


def _opened(url: sa.URL, place: Path | str) -> tuple[Any, dict[str, sa.Table] | None]:
    text = url.render_as_string(hide_password=False)
    try:
        storage = optuna.storages.RDBStorage(text)
        tables = _tables_of(storage)
    except exc.DatabaseError as error:
        # One that is locked or damaged may be mended.
        is_other_kind = getattr(error.orig, "sqlite_errorname", None) == "SQLITE_NOTADB"
        if not (isinstance(place, Path) and is_other_kind):
            raise
        place.unlink()
        storage = optuna.storages.RDBStorage(text)
        tables = _tables_of(storage)
    except RuntimeError:
        # It may hold what an older version of Optuna can still read.
        raise StoreError(
            f"{shown_url(url)} was written by another version of Optuna, or by another program. "
            "Move it away, or choose another folder."
        ) from None
    if storage.engine.name == "sqlite":
        event.listen(storage.engine, "connect", _let_others_read)
        storage.engine.dispose()
    return storage, tables


def _check_writable(engine: sa.Engine) -> None:
    """Write to a file and take it back, which raises SQLAlchemyError where it is read-only."""
    if engine.name == "sqlite":
        with engine.connect() as connection:
            # Of a file with a log (WAL), SQLite begins to write before it knows that it cannot.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("CREATE TABLE moa_dspy_check (number INTEGER)")
            connection.rollback()


def _let_others_read(connection: Any, _: Any) -> None:
    """Have SQLite let a dashboard read while it writes, and not wait for the disk each time."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _delete(storage: Any, name: str, tables: Mapping[str, sa.Table] | None) -> None:
    """Delete a study; its trials table by table, as Optuna would take seconds for a thousand."""
    try:
        study = storage.get_study_id_from_name(name)
    except KeyError:
        return
    if tables is not None:
        trials = tables[_TRIALS]
        is_mine = trials.c.study_id == study
        trial_ids = sa.select(trials.c.trial_id).where(is_mine)
        with storage.engine.begin() as connection:
            for table in tables.values():
                if table is not trials:
                    connection.execute(sa.delete(table).where(table.c.trial_id.in_(trial_ids)))
            connection.execute(sa.delete(trials).where(is_mine))
    storage.delete_study(study)

"""Writes a study to a database that Optuna and its dashboard can open."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from sqlalchemy import exc

from moa_dspy.calls import database_url, shown_url
from moa_dspy.errors import StoreError


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

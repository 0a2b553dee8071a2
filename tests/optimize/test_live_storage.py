"""The storage of a search: what a dashboard reads while the study runs, and who else may use it."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from moa_dspy.errors import StoreError
from moa_dspy.optimize.objectives import ScoreObjective
from moa_dspy.optimize.storage import LiveStorage, make_study, opened_storage

NAMES = ("a", "b", "c")


def of_optuna(path: Path) -> None:
    """Make a file as this version of Optuna makes it."""
    RDBStorage(f"sqlite:///{path}").engine.dispose()


def of_a_later_optuna(path: Path) -> None:
    """Make a file whose tables have a column that is not known here, and which Optuna can use."""
    of_optuna(path)
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE trial_user_attributes ADD COLUMN since DATETIME")


schemas = pytest.mark.parametrize("make", [of_optuna, of_a_later_optuna])
Make = Callable[[Path], None]


@schemas
def test_all_of_a_trial_is_in_the_file_as_it_is_in_memory(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    make(path)
    storage = LiveStorage(path, "mine")
    study = make_study([ScoreObjective()], seed=0, storage=storage)
    # A table that is not as known here is left to Optuna's own methods.
    assert (storage._tables is None) == (make is of_a_later_optuna)
    trial = study.ask()
    assert trial.suggest_categorical("agent", NAMES) in NAMES
    depth = trial.suggest_int("depth", 1, 3)
    trial.set_user_attr("rows", 3)
    storage.publish(trial.number)
    kept = optuna.load_study(study_name="mine", storage=f"sqlite:///{path}")
    (shown,) = kept.trials
    assert (shown.state.name, shown.params["depth"], shown.user_attrs) == (
        "RUNNING",
        depth,
        {"rows": 3},
    )
    trial.report(math.nan, step=1)
    trial.report(0.25, step=2)
    trial.set_user_attr("rows", [1, 2])
    trial.set_user_attr("text", "ä\n")
    trial.set_constraint("calls", -1.0)
    study.tell(trial, 0.5)
    pruned = study.ask()
    pruned.report(0.125, step=2)
    study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
    for shown, in_memory in zip(kept.trials, study.trials, strict=True):
        assert (shown.number, shown.state, shown.value) == (
            in_memory.number,
            in_memory.state,
            in_memory.value,
        )
        assert (shown.params, shown.distributions) == (in_memory.params, in_memory.distributions)
        assert (shown.user_attrs, shown.constraints) == (
            in_memory.user_attrs,
            in_memory.constraints,
        )
        assert shown.intermediate_values[2] == in_memory.intermediate_values[2]
        assert shown.datetime_start is not None
        assert in_memory.datetime_start is not None
        assert abs((shown.datetime_start - in_memory.datetime_start).total_seconds()) < 5
        assert shown.datetime_complete is not None
    assert math.isnan(kept.trials[0].intermediate_values[1])
    storage.close()


def test_a_study_file_that_is_locked_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    kept = LiveStorage(path, "mine")
    make_study([ScoreObjective()], seed=0, storage=kept)
    kept.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute("BEGIN EXCLUSIVE")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="cannot be used: database is locked"):
        make_study(
            [ScoreObjective()], seed=0, storage=LiveStorage(f"sqlite:///{path}?timeout=0.1", "mine")
        )
    other.close()
    assert path.read_bytes() == before


def test_a_study_file_of_another_version_of_optuna_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    storage = LiveStorage(path, "mine")
    make_study([ScoreObjective()], seed=0, storage=storage)
    storage.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(StoreError, match="was written by another version of Optuna"):
        make_study([ScoreObjective()], seed=0, storage=LiveStorage(path, "mine"))
    assert path.stat().st_size > 0


@schemas
def test_a_study_takes_the_place_of_an_older_one_of_its_name_alone(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "study.sqlite3"
    make(path)
    for name, n_trials in (("other", 3), ("mine", 5), ("mine", 2)):
        storage = LiveStorage(f"sqlite:///{path}", name)
        study = make_study([ScoreObjective()], seed=0, storage=storage)
        for value in range(n_trials):
            trial = study.ask()
            trial.suggest_categorical("agent", NAMES)
            trial.report(0.5, step=1)
            trial.set_user_attr("rows", 1)
            trial.set_user_attr("rows", 2)
            study.tell(trial, float(value))
        storage.close()
    kept = optuna.storages.RDBStorage(f"sqlite:///{path}")
    sizes = {
        summary.study_name: summary.n_trials for summary in optuna.get_all_study_summaries(kept)
    }
    assert sizes == {"other": 3, "mine": 2}
    last = optuna.load_study(study_name="mine", storage=kept).trials[-1]
    assert (last.user_attrs, last.intermediate_values, last.value) == ({"rows": 2}, {1: 0.5}, 1.0)
    kept.engine.dispose()


def test_a_database_that_cannot_be_reached_is_an_error_without_its_password() -> None:
    storage = LiveStorage("postgresql://me:secret@127.0.0.1:1/none", "mine")
    with pytest.raises(StoreError, match=r"cannot be used: \w+") as caught:
        make_study([ScoreObjective()], seed=0, storage=storage)
    assert "secret" not in str(caught.value)


@schemas
def test_trials_that_end_in_another_order_keep_their_numbers_in_the_file(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "study.sqlite3"
    make(path)
    study = make_study([ScoreObjective()], seed=0, storage=LiveStorage(path, "mine"))
    first, second = study.ask(), study.ask()
    for trial in (first, second):
        trial.suggest_categorical("agent", NAMES)
    study.enqueue_trial({"agent": "b"})
    second.report(math.nan, step=1)
    second.report(math.inf, step=2)
    study.tell(second, -math.inf)
    kept = optuna.load_study(study_name="mine", storage=f"sqlite:///{path}")
    assert [trial.state.name for trial in kept.trials] == ["RUNNING", "COMPLETE", "WAITING"]
    study.tell(first, 0.5)
    trials = kept.trials
    assert [trial.value for trial in trials] == [0.5, -math.inf, None]
    assert [trial.params for trial in trials] == [trial.params for trial in study.trials]
    assert math.isnan(trials[1].intermediate_values[1])
    assert trials[1].intermediate_values[2] == math.inf
    assert [trial.number for trial in trials] == [0, 1, 2]


@pytest.mark.slow
def test_a_finished_trial_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite3"
    code = """
import os, signal, sys
from moa_dspy.optimize.objectives import ScoreObjective
from moa_dspy.optimize.storage import LiveStorage, make_study
study = make_study([ScoreObjective()], seed=0, storage=LiveStorage(sys.argv[1], "mine"))
for _ in range(3):
    trial = study.ask()
    trial.set_user_attr("rows", 9)
    study.tell(trial, 0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{path}"], check=False)
    kept = optuna.load_study(study_name="mine", storage=f"sqlite:///{path}")
    assert [(trial.value, trial.user_attrs) for trial in kept.trials] == [(0.5, {"rows": 9})] * 3


@pytest.mark.parametrize(
    "text", ["", "study.sqlite3", "mysql://me:secret@127.0.0.1:1/none", "redis://127.0.0.1:1/0"]
)
def test_a_text_that_is_no_storage_is_an_error_without_its_password(text: str) -> None:
    with (
        pytest.raises(StoreError, match="`storage` must be a URL such as") as found,
        opened_storage(text),
    ):
        pass
    assert "secret" not in str(found.value)


def test_how_much_optuna_tells_is_the_user_s_choice() -> None:
    before = optuna.logging.get_verbosity()
    try:
        for verbosity in (optuna.logging.DEBUG, optuna.logging.ERROR):
            optuna.logging.set_verbosity(verbosity)
            make_study([ScoreObjective()], seed=0)
            assert optuna.logging.get_verbosity() == verbosity
    finally:
        optuna.logging.set_verbosity(before)

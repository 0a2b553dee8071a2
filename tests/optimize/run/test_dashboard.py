from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import optuna
import pytest

from moa_dspy.optimize import run_study

Make = Callable[..., Any]


@contextmanager
def dashboard(file: Path) -> Iterator[str]:
    """Run ``optuna-dashboard`` on a file; yield the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).parent / "optuna-dashboard"
    process = subprocess.Popen([str(command), f"sqlite:///{file}", "--port", str(port)])
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.kill()
        process.wait()


def got(url: str, seconds: float = 60.0) -> Any:
    last = time.monotonic() + seconds
    while True:
        try:
            with urlopen(url, timeout=10) as reply:
                return json.load(reply)
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.2)


# Optuna says this whenever a target is given, whether more of it is better or not.
@pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator:UserWarning")
@pytest.mark.slow
def test_a_dashboard_shows_a_study_that_is_running(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study, out = write_study(), tmp_path / "out"
    # Three agents answer 12 rows each, and their votes ask no model: a writer is held.
    server.holds_after = 40
    worker = threading.Thread(target=run_study, args=(study,), kwargs={"out": out})
    worker.start()
    try:
        assert server.is_holding.wait(60)
        with dashboard(out / "study.sqlite3") as api:
            (summary,) = got(f"{api}/studies")["study_summaries"]
            found = got(f"{api}/studies/{summary['study_id']}?after=0")
        states = [trial["state"] for trial in found["trials"]]
        assert states[-1] == "Running"
        assert set(states[:-1]) == {"Complete"}
        assert not (out / "result.json").exists()
    finally:
        server.release()
        worker.join()
    assert (out / "result.json").exists()
    stored = optuna.load_study(study_name="out", storage=f"sqlite:///{out / 'study.sqlite3'}")
    assert len(stored.trials) > len(states)
    assert optuna.trial.TrialState.RUNNING not in {trial.state for trial in stored.trials}
    plots = optuna.visualization
    first: Any = lambda trial: trial.values[0]  # noqa: E731
    assert plots.plot_optimization_history(stored, target=first, target_name="win rate").data
    # Optuna's importances are those of a low target.
    low: Any = lambda trial: -trial.values[0]  # noqa: E731
    importances = plots.plot_param_importances
    with pytest.warns(UserWarning, match="low `target` values"):
        assert importances(stored, target=low, target_name="loss", params=["kind"]).data
    assert plots.plot_pareto_front(stored).data
    assert plots.plot_timeline(stored).data


@pytest.mark.slow
def test_a_study_of_one_objective_shows_its_intermediate_values(
    write_study: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_study(write_study(("n_trials = 8", 'n_trials = 8\nobjectives = ["score"]')), out=out)
    stored = optuna.load_study(study_name="out", storage=f"sqlite:///{out / 'study.sqlite3'}")
    assert all(trial.intermediate_values == {12: trial.value} for trial in stored.trials)
    assert len(optuna.visualization.plot_intermediate_values(stored).data) == len(stored.trials)
    assert stored.best_value == max(trial.value or 0 for trial in stored.trials)

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from moa_dspy.calls import CallStore, Recording
from moa_dspy.errors import StudyError, UnknownCallError
from moa_dspy.optimize import run_study

Make = Callable[..., Any]
PAGES = ["report.html", "report.md"]
FILES = ["answers.json", "calls.sqlite", "program.json", *PAGES, "result.json", "study.sqlite3"]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.slow
def test_a_study_writes_its_folder_and_running_it_again_asks_nobody(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    study, out = write_study(), tmp_path / "out"
    first = run_study(study, out=out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    # Errors are disjoint: a vote of three is always right, one alone on two of three.
    assert str(first.pick) == "e0 + e1 + e2 > vote(e0)"
    assert first.calls_made == len(server.asked) == len(set(server.asked))
    assert read_json(out / "program.json")["architecture"]["combine"] == "vote"
    assert read_json(out / "result.json") == first.to_json()
    with closing(sqlite3.connect(out / "calls.sqlite")) as store:
        assert store.execute("select count(*) from calls").fetchone() == (len(server.asked),)
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'study.sqlite3'}")
    (name,) = optuna.get_all_study_names(storage)
    kept = optuna.load_study(study_name=name, storage=storage)
    architectures = {trial.user_attrs["architecture"] for trial in kept.get_trials()}
    storage.engine.dispose()
    assert architectures <= {trial.architecture for trial in first.trials}

    n_asked = len(server.asked)
    second = run_study(str(study), out=str(out))
    assert len(server.asked) == n_asked
    # What a study paid is said of the study, not of the process that found it finished.
    assert second.to_json() == first.to_json() == read_json(out / "result.json")


def recording(out: Path, path: Path, *, without: str = "nothing") -> None:
    kept = [call for call in CallStore(out / "calls.sqlite") if without not in call.request]
    Recording(kept).write(path)


@pytest.mark.slow
def test_a_study_of_another_name_does_not_replace_what_is_in_the_folder(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_study(write_study(), out=out)
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".json"}
    n_asked = len(server.asked)
    other = write_study(('name = "toy"', 'name = "other"'), name="other.toml")
    with pytest.raises(
        StudyError, match=r"out holds the program .* Choose another folder with --out"
    ):
        run_study(other, out=out)
    assert len(server.asked) == n_asked
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert run_study(write_study(), out=out, resume=True).to_json() == read_json(
        out / "result.json"
    )


@pytest.mark.slow
def test_a_cut_reply_is_said_once_of_each_agent_whatever_shows_the_progress(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    server.finish_reason = "length"
    stream, logger = io.StringIO(), logging.getLogger("dspy")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        run_study(write_study(), out=tmp_path / "out", show=lambda snapshot: None)
    finally:
        logger.removeHandler(handler)
    said = [
        line.partition(" was ")[0] for line in stream.getvalue().splitlines() if "truncated" in line
    ]
    assert sorted(said) == [f"e{i}: LM response" for i in range(3)]


REPLAY = ("[space]", '[calls]\nrecording = "calls.parquet"\nreplay_only = true\n[space]')


@pytest.mark.slow
def test_a_recording_of_the_store_replays_without_a_server(
    server: Any, write_study: Make, tmp_path: Path, said: Make
) -> None:
    live = run_study(write_study(), out=tmp_path / "live")
    recording(tmp_path / "live", tmp_path / "calls.parquet")
    server.stop()
    replayed = run_study(write_study(REPLAY), out=tmp_path / "replay")
    assert said(replayed) == said(live)
    # Its agents have no price: what is not known is not 0.
    assert (replayed.calls_made, replayed.usd) == (0, None)
    # Live, two threads may want one answer at the same moment: it is made once, and reused.
    assert live.calls_made <= replayed.calls_reused <= live.calls_made + live.calls_reused


@pytest.mark.slow
def test_a_replay_names_the_call_that_nobody_recorded(write_study: Make, tmp_path: Path) -> None:
    run_study(write_study(), out=tmp_path / "live")
    recording(tmp_path / "live", tmp_path / "calls.parquet", without='"val 5')
    with pytest.raises(UnknownCallError, match="no call of agent 'e0' for example 'val-5'"):
        run_study(write_study(REPLAY), out=tmp_path / "replay")


class Mine(optuna.samplers.RandomSampler):
    """A sampler of the user's own, which has to bring its seed."""

    def __init__(self) -> None:
        super().__init__(seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", "gp", f"{__name__}:Mine"])
def test_a_study_names_its_sampler(
    write_study: Make, tmp_path: Path, said: Make, name: str
) -> None:
    if name == "gp":
        pytest.importorskip("torch", reason="Optuna's GPSampler needs torch")
    changes = [("[search]", f'[search]\nsampler = "{name}"'), ("n_trials = 8", "n_trials = 12")]
    found = run_study(write_study(*changes), out=tmp_path / "out")
    origins = [trial.origin for trial in found.trials]
    assert "sampler" in origins
    assert "model" not in origins
    again = run_study(write_study(*changes), out=tmp_path / "out")
    assert said(again) == said(found)


@pytest.mark.slow
def test_another_seed_asks_for_nothing_that_is_stored(
    server: Any, write_study: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_study(write_study(), out=out)
    before = set(server.asked)
    changed = run_study(write_study(("seed = 1", "seed = 2")), out=out)
    assert before
    assert len(server.asked) == len(set(server.asked))
    assert changed.seed == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (("seed = 1", "seed = 2"), "seed"),
        (("max_depth = 1", "max_depth = 2"), "space"),
        (("n_trials = 8", "n_trials = 9"), "search"),
        (('adapter = "plain"', 'adapter = "plain"\ninstructions = "Be brief."'), "task"),
    ],
)
def test_resume_refuses_another_study_and_names_what_changed(
    server: Any, write_study: Make, tmp_path: Path, change: tuple[str, str], changed: str
) -> None:
    out = tmp_path / "out"
    run_study(write_study(), out=out)
    n_asked = len(server.asked)
    with pytest.raises(StudyError, match=f"holds another study: {changed} changed since"):
        run_study(write_study(change), out=out, resume=True)
    assert len(server.asked) == n_asked


@pytest.mark.slow
def test_resume_refuses_other_rows_and_a_folder_without_a_run(
    write_study: Make, tmp_path: Path, data: list[dict[str, Any]]
) -> None:
    with pytest.raises(StudyError, match=r"nothing to resume: .*calls\.sqlite does not exist"):
        run_study(write_study(), out=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    run_study(write_study(), out=tmp_path / "out")
    data[-1]["answer"] = "another"
    with pytest.raises(StudyError, match="holds another study: data changed since"):
        run_study(write_study(rows=data), out=tmp_path / "out", resume=True)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Run = Callable[..., Result]


def test_a_worker_alone_finishes_a_study_and_says_where_its_result_is(
    run: Run, folder: Path
) -> None:
    storage = "sqlite:///shared.sqlite"
    done = run("worker", "study.toml", "--storage", storage, "--out", "out", "--threads", "2")
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("finished: the program is good; ")
    assert second.startswith("result: shared.sqlite, written to ")
    assert second.endswith(str(folder / "out"))
    # Who runs the study finds it finished, and writes what the worker found.
    again = run("optimize", "study.toml", "--storage", storage, "--out", "other")
    assert again.exit_code == 0, again.stderr
    for name in ("program.json", "result.json"):
        assert (folder / "out" / name).read_text() == (folder / "other" / name).read_text()
    late = run("worker", "study.toml", "--storage", storage)
    assert (
        late.stdout.splitlines()[0] == "finished: the program is good; tasks done by this worker: 0"
    )


def test_a_worker_needs_a_storage(run: Run, folder: Path) -> None:
    done = run("worker", "study.toml")
    assert done.exit_code == 2
    assert "--storage" in done.stderr

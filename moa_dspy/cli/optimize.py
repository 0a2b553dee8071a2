"""TODO."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moa_dspy.optimize import StudyResult


def optimize(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/NAME.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database that workers share; default: files in the folder."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this folder's run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Search for the best mixture, test it, and write program.json and result.json."""
    from moa_dspy.cli.progress import LiveProgress
    from moa_dspy.optimize import run_study
    from moa_dspy.optimize.progress import silent
    from moa_dspy.optimize.run import RUNS
    from moa_dspy.optimize.study_file import read_study

    folder = out or RUNS / read_study(study).name
    if as_json:
        # Metrics and data readers are the user's: what they print must not end up in the JSON.
        with redirect_stdout(sys.stderr), each_warning_once():
            result = run_study(study, out=folder, storage=storage, resume=resume, watcher=silent)
        typer.echo(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False))
        return
    with LiveProgress() as progress, each_warning_once():
        result = run_study(study, out=folder, storage=storage, resume=resume, watcher=progress)
    _show(result, folder)


class _Once(logging.Filter):
    """Lets every message of a handler through one time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new."""
        key = (record.name, record.getMessage())
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show what DSPy logs, such as a reply cut at ``max_tokens``, once and not per question."""
    # One filter per handler: each must pass a message on once.
    filters = [(handler, _Once()) for handler in logging.getLogger("dspy").handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)


def _show(result: StudyResult, folder: Path) -> None:
    from rich.console import Console

    from moa_dspy.optimize.report import report

    # Rich takes 80 columns where there is no terminal; a log has room for the whole table.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    Console(width=width).print(report(result))
    for name in ("program.json", "result.json"):
        typer.echo(f"wrote {folder / name}")


def worker(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    storage: Annotated[str, typer.Option(help="URL of the database that all processes share.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results, here too.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Questions at a time; default: the study's.")
    ] = None,
) -> None:
    """Work on a study with others, on any number of machines, until it is finished."""
    from moa_dspy.cli.progress import LiveProgress
    from moa_dspy.optimize.run import RUNS
    from moa_dspy.optimize.study_file import read_study
    from moa_dspy.optimize.workers import work_on

    folder = out or RUNS / read_study(study).name
    with LiveProgress() as progress, each_warning_once():
        ended = work_on(
            study,
            storage,
            out=folder,
            writes_files=out is not None,
            num_threads=threads,
            watcher=progress,
        )
    typer.echo(f"finished: {ended.result.recommended} is the program; {ended.n_tasks} tasks here")
    typer.echo(f"result: {ended.storage}, written to {ended.place}")

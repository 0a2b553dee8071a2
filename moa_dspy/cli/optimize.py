"""The commands ``optimize`` and ``worker``: run a study file, alone or beside other processes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moa_dspy.optimize.result import StudyResult


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
    from moa_dspy.optimize.run import work_on

    options: Any = {"out": out, "resume": resume}
    if as_json:
        # Metrics and data readers are the user's: what they print must not end up in the JSON.
        with redirect_stdout(sys.stderr), each_warning_once():
            ended = work_on(study, storage, **options)
        # ASCII: a model's half emoji or another console's encoding must not end the command.
        typer.echo(json.dumps(ended.result.to_json(), allow_nan=False))
        return
    from moa_dspy.cli.progress import LiveProgress

    with LiveProgress() as progress, each_warning_once():
        ended = work_on(study, storage, show=progress, **options)
    _show(ended.result, ended.folder)


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
    from moa_dspy.optimize.run import work_on

    with LiveProgress() as progress, each_warning_once():
        ended = work_on(
            study,
            storage,
            out=out,
            is_helper=True,
            writes_files=out is not None,
            num_threads=threads,
            show=progress,
        )
    typer.echo(f"finished: {ended.result.recommended} is the program; {ended.n_tasks} tasks here")
    typer.echo(f"result: {ended.storage}, written to {ended.place}")

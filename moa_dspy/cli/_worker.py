from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def worker(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")],
    storage: Annotated[str, typer.Option(help="URL of the database that all processes share.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results, here too.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Questions at a time; default: the study's.")
    ] = None,
) -> None:
    """Work on a study with others, on any number of machines, until it is finished."""
    from moa_dspy.cli._optimize import each_warning_once
    from moa_dspy.optimize.run import RUNS
    from moa_dspy.optimize.study import read_study
    from moa_dspy.optimize.workers import work_on
    from moa_dspy.progress_view import LiveProgress

    folder = out or RUNS / read_study(study).name
    with LiveProgress() as progress, each_warning_once():
        ended = work_on(
            study,
            storage,
            out=folder,
            writes_files=out is not None,
            n_threads=threads,
            watcher=progress,
        )
    typer.echo(f"finished: {ended.result.recommended} is the program; {ended.n_tasks} tasks here")
    typer.echo(f"result: {ended.storage}, written to {ended.place}")

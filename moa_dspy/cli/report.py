"""The final report in a terminal, and the commands ``report``, ``compare`` and ``pick``.

The commands write a run's report again, compare runs, and write the program of another architecture
of the Pareto front.
"""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from moa_dspy.cli.serve import agents_file, agents_of_run
from moa_dspy.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from moa_dspy.optimize.result import StudyResult
    from moa_dspy.pool import Pool

_SEEN: Final = "which is too high if it is the reason for choosing it"
"""Note on test scores of other architectures: only the pick was fixed before the test."""
_GAP: Final = 2
_ARCHITECTURE: Final = 22
_RUN = typer.Argument(metavar="RUN", help="The folder of a finished run.")


class Report:
    """Prints a ``StudyResult`` with rich, in 60 columns or more."""

    def __init__(self, result: StudyResult) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table of architectures, then one line per fact."""
        from rich.text import Text

        from moa_dspy.optimize import report as texts
        from moa_dspy.optimize.space.programs import in_short

        yield self._table(options.max_width)
        yield Text(texts.brackets_line(self.result), style="dim")
        yield Text("")
        yield from (Text(in_short(line)) for line in texts.result_lines(self.result))
        yield Text("")
        for line in texts.verdict_lines(self.result):
            yield Text(in_short(line), style="bold")
        yield Text(in_short(texts.program_line(self.result)))

    def _table(self, width: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        from moa_dspy.optimize.report import TABLE_COLUMNS, row_cells, row_names

        names = row_names(self.result)
        shown = fitting(width - max(map(len, names)) - _GAP)
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, expand=False)
        table.add_column("system", no_wrap=True, vertical="top")
        table.add_column("architecture", overflow="fold")
        for name in shown:
            table.add_column(TABLE_COLUMNS[name].head, justify="right", no_wrap=True)
        for name in names:
            cells = row_cells(self.result, name)
            texts = [cells[column] for column in ("system", "architecture", *shown)]
            table.add_row(*map(Text, texts), style="bold" if name == "pick" else "")
        return table


def fitting(width: int) -> list[str]:
    """Return the columns that fit beside the architectures, without the least important ones."""
    from moa_dspy.optimize.report import TABLE_COLUMNS

    shown = dict(TABLE_COLUMNS)
    while shown:
        used = sum(column.width + _GAP for column in shown.values())
        last = max(shown, key=lambda name: shown[name].rank)
        if width - used >= _ARCHITECTURE or shown[last].rank == 0:
            break
        del shown[last]
    return list(shown)


def rewrite_report(
    run: Annotated[Path, _RUN],
    opens: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Also write systems.parquet and trials.parquet.")
    ] = False,
) -> None:
    """Write report.html and report.md of a finished run into its folder, again."""
    from moa_dspy.optimize.page import read_run, write_pages

    result, answers = read_run(run)
    folder = run if run.is_dir() else run.parent
    tables: tuple[Literal["systems", "trials"], ...] = ("systems", "trials") if parquet else ()
    try:
        write_pages(result, answers, folder, name=folder.resolve().name)
        for table in tables:
            result.to_pandas(table).to_parquet(folder / f"{table}.parquet")
    except OSError as error:
        raise StudyError(f"{folder} cannot be written to: {error.strerror or error}.") from error
    for name in ("report.html", "report.md", *(f"{table}.parquet" for table in tables)):
        typer.echo(f"wrote {folder / name}")
    if opens:
        webbrowser.open((folder / "report.html").resolve().as_uri())


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Folders of runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare finished runs: picks, test scores, verdicts and costs.

    The scores of runs on different questions or metrics cannot be compared, and no run is
    tested against another here.
    """
    from moa_dspy.optimize.page import read_run

    if len(runs) < 2:
        raise StudyError("`compare` needs two runs or more, but got one.")
    facts_by_run = {str(run): compared_facts(read_run(run)[0]) for run in runs}
    if as_json:
        typer.echo(json.dumps(facts_by_run, allow_nan=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    for name in facts_by_run:
        table.add_column(Text(name), overflow="fold")
    for fact in next(iter(facts_by_run.values())):
        table.add_row(fact, *(Text(facts[fact]) for facts in facts_by_run.values()))
    print_wide(table)


def print_wide(shown: Any, *, width: int = 120) -> None:
    """Print with rich; without a terminal in this width, as a log has room for more than 80."""
    from rich.console import Console

    is_given = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if is_given else width).print(shown)


def compared_facts(result: StudyResult) -> dict[str, str]:
    """Return the facts of one run for ``compare``, in the form of its report."""
    from moa_dspy.optimize.report import NONE, amount, duration, row_cells
    from moa_dspy.winrate.intervals import points

    pick, single = row_cells(result, "pick"), row_cells(result, "best_single")
    expected = result.expected
    return {
        "pick": str(result.pick),
        "program": str(result.recommended),
        "verdict": result.verdict.text,
        "pick on test %": pick["test"],
        "best single": single["architecture"],
        "best single on test %": single["test"],
        "pick minus best single on test": single["difference"],
        "expected before the test %": NONE if expected is None else points(expected.estimate),
        "usd per 1,000 questions": pick["usd"],
        "architectures tried": f"{len(result.trials):,}",
        "calls made, reused": f"{result.calls_made:,}, {result.calls_reused:,}",
        "usd paid": NONE if result.usd is None else amount(result.usd),
        "time": duration(result.seconds),
        "seed": str(result.seed),
        "questions of the verdict": f"{result.verdict.n:,}",
    }


def pick(
    run: Annotated[Path, _RUN],
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="[N]", help="Its number on the front; without it, the front is listed."
        ),
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="FILE", help="Agents (TOML); default: those of the run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: program-N.json in RUN.")
    ] = None,
) -> None:
    """Write the program of another architecture of a run's Pareto front, or of an unproven pick."""
    from moa_dspy.optimize.page import read_run

    result, answers = read_run(run)
    folder = run if run.is_dir() else run.parent
    members = front_members(result)
    if number is None:
        _show_front(result, members)
        return
    if not 1 <= number <= len(members):
        raise StudyError(
            f"N must be from 1 to {len(members)}, the size of the front; got {number}."
        )
    text = members[number - 1]
    path = out or folder / f"program-{number}.json"
    source = folder / "program.json"
    agents = _agents(source, pool, answers.study.get("agents"))
    _write_program(source, text, agents, path, note=note_on_test(result, text))
    typer.echo(f"wrote {path}: {text}; {note_on_test(result, text)}")


def _show_front(result: StudyResult, members: list[str]) -> None:
    from moa_dspy.optimize.report import measured_text

    records = {record.architecture: record for record in result.trials}
    for place, text in enumerate(members, start=1):
        on_val = measured_text(records.get(text))
        typer.echo(f"{place}. {text}{on_val}; {note_on_test(result, text)}")


def front_members(result: StudyResult) -> list[str]:
    """Return the Pareto front of a run; without one, that of score and price or calls.

    A pick that is not recommended, as its gain is not proven, comes last if it is not among them.
    """
    from moa_dspy.optimize.objectives import front

    members = list(result.front)
    if not members:
        is_priced = all(trial.usd is not None for trial in result.trials)
        cost = "usd" if is_priced else "calls"
        members = [trial.architecture for trial in front(result.trials, ("score", cost))]
    is_left = result.pick != result.recommended and str(result.pick) not in members
    return [*members, str(result.pick)] if is_left else members


def note_on_test(result: StudyResult, architecture: str) -> str:
    """Return a note on an architecture's test score, or that there is none."""
    from moa_dspy.winrate.intervals import points

    for row in result.test.values():
        if row.architecture == architecture and row.score is not None:
            tested = f"tested: {points(row.score)} % on test"
            return tested if row.name == "pick" else f"{tested}, {_SEEN}"
    tested_for_less = {**result.savings, **result.front_verdicts}
    if architecture in tested_for_less:
        return f"tested, {_SEEN}: {tested_for_less[architecture].text}"
    on_val = next((t.score for t in result.trials if t.architecture == architecture), None)
    val_note = (
        ""
        if on_val is None
        else f"; {points(on_val)} % on val, which is too high for the best of many"
    )
    return f"not tested: it was not asked a test question{val_note}"


def _agents(source: Path, pool: str | None, listed: Sequence[Mapping[str, Any]] | None) -> Pool:
    """Return the agents of ``--pool``, of the file that the run had, or as the run lists them.

    No model is called: only names and settings are needed, and a table of answers has no file.
    """
    from moa_dspy.agent import Agent
    from moa_dspy.pool import Pool

    file = None if pool is not None else agents_of_run(source)
    if pool is None and file is None and listed:
        return Pool([Agent(**agent) for agent in listed])
    return Pool.read(file or agents_file(pool))


def _write_program(source: Path, text: str, pool: Pool, path: Path, *, note: str) -> None:
    from moa_dspy.architecture import Architecture
    from moa_dspy.mixture import MixtureOfAgents
    from moa_dspy.program_file import save_program

    architecture = Architecture.parse(text)
    if architecture.prompt is not None:
        raise StudyError(
            f"{text} has the prompt {architecture.prompt!r}, whose text only its study has; "
            "choose an architecture without a prompt."
        )
    program = MixtureOfAgents.load(source, pool=pool).with_architecture(architecture)
    save_program(program, path, scores={"note": note})

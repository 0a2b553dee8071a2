"""The closing table of a study: the pick against its rivals, the verdict, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Final, NamedTuple

from moa_dspy.optimize.result import Row, StudyResult
from moa_dspy.winrate import Interval

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

ORDER: Final = ("pick", "best_single", "self_moa", "top_k", "random", "oracle")
"""Rows that stand first; others follow as the study named them."""

_GAP: Final = 2
_ARCHITECTURE: Final = 22
NONE: Final = "—"


class Column(NamedTuple):
    """A column of fixed width; those of a higher rank are left out first in a narrow terminal."""

    head: str
    width: int
    rank: int


COLUMNS: Final = {
    "test": Column("test %", 13, 0),
    "difference": Column("pick minus\nrow, points", 13, 0),
    "val": Column("val %", 5, 3),
    "calls": Column("calls/\nquest.", 6, 2),
    "usd": Column("usd/1,000\nquestions", 9, 1),
    "seconds": Column("s/\nquest.", 6, 4),
}


class Report:
    """Prints a ``StudyResult`` with rich, in 60 columns or more."""

    def __init__(self, result: StudyResult) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, then one line per fact."""
        from rich.text import Text

        yield self._table(options.max_width)
        yield Text(
            "In brackets: 95 % intervals; those of the differences hold all at once.", style="dim"
        )
        yield Text("")
        yield from (Text(line) for line in facts(self.result))
        yield Text("")
        yield Text(self.result.verdict.text, style="bold")
        yield Text(program_line(self.result))

    def _table(self, width: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        names = row_names(self.result)
        shown = fitting(width - max(map(len, names)) - _GAP)
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, expand=False)
        table.add_column("system", no_wrap=True, vertical="top")
        table.add_column("architecture", overflow="fold")
        for name in shown:
            table.add_column(COLUMNS[name].head, justify="right", no_wrap=True)
        for name in names:
            cells = row_cells(self.result, name)
            texts = [cells[column] for column in ("system", "architecture", *shown)]
            table.add_row(*map(Text, texts), style="bold" if name == "pick" else "")
        return table


def report(result: StudyResult) -> Report:
    """Return the closing table as something rich can print."""
    return Report(result)


def report_text(result: StudyResult, width: int = 100) -> str:
    """Return the closing table as plain text, lines without trailing spaces."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(report(result))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def row_names(result: StudyResult) -> list[str]:
    """Return the names of the rows that the study has, in the table's order."""
    found = {**result.test, **result.val}
    return [n for n in ORDER if n in found] + [n for n in found if n not in ORDER]


def fitting(width: int) -> list[str]:
    """Return the columns that leave the architectures room, least important ones dropped."""
    shown = dict(COLUMNS)
    while shown:
        used = sum(column.width + _GAP for column in shown.values())
        last = max(shown, key=lambda name: shown[name].rank)
        if width - used >= _ARCHITECTURE or shown[last].rank == 0:
            break
        del shown[last]
    return list(shown)


def row_cells(result: StudyResult, name: str) -> dict[str, str]:
    """Return the cells of one row as text, by column."""
    row, val = result.test.get(name), result.val.get(name)
    system = row or val
    cells = dict.fromkeys(COLUMNS, NONE)
    cells |= {"system": name, "architecture": _who(system)}
    if val is not None and val.score is not None:
        cells["val"] = points(val.score)
    if row is None or row.score is None:
        return cells
    cells["test"] = points(row.score) + _brackets(row.low, row.high)
    cells["difference"] = NONE if name == "pick" else _difference(result.differences.get(name))
    cells["calls"] = NONE if row.calls is None else f"{row.calls:.1f}"
    cells["usd"] = NONE if row.usd is None else amount(1000 * row.usd)
    cells["seconds"] = NONE if row.seconds is None else amount(row.seconds)
    return cells


def _who(row: Row | None) -> str:
    if row is None or (row.score is not None and row.architecture is not None):
        return NONE if row is None else str(row.architecture)
    note = f": {row.note}" if row.note else ""
    if row.score is None:
        return f"not run{note}"
    return row.note or NONE


def points(share: float, *, sign: str = "") -> str:
    """Return a share in percent with one decimal; ``sign="+"`` shows it always, 0 has none."""
    value = round(100 * share, 1)
    return f"{value:{sign}.1f}" if value else "0.0"


def amount(value: float) -> str:
    """Return an amount with two digits that count at least, never in powers of ten."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.5f}".rstrip("0")


def _brackets(low: float | None, high: float | None, *, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"\n[{points(low, sign=sign)}, {points(high, sign=sign)}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return points(interval.estimate, sign="+") + _brackets(interval.low, interval.high, sign="+")


def facts(result: StudyResult) -> Iterator[str]:
    """Yield one line each on optimism, cost and failures."""
    yield f"Optimism: val flatters the pick by about {points(result.optimism)} points."
    space = "" if result.space_size is None else f" of {result.space_size:,} possible"
    end = f"; {result.stopped_by.rstrip('.')}" if result.stopped_by else ""
    yield f"Search: {len(result.trials):,} architectures measured{space}{end}."
    yield (
        f"Cost: {result.calls_made:,} calls made, {result.calls_reused:,} reused, "
        f"{amount(result.usd)} usd, {duration(result.seconds)}."
    )
    if failed := _counts({agent: str(n) for agent, n in result.failures.items() if n}):
        yield f"Failed responses: {failed}."
    shares = {name: row.failures for name, row in result.test.items() if row.failures}
    if unanswered := _counts({name: f"{points(share)} %" for name, share in shares.items()}):
        yield f"Test questions without an answer, which score 0: {unanswered}."
    for note in result.notes:
        yield f"Note: {note}"


def _counts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def program_line(result: StudyResult) -> str:
    """Return which program the study writes, and whether it is the pick."""
    why = "the pick" if result.recommended == result.pick else "the best single agent"
    return f"Program: {result.recommended} ({why})"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

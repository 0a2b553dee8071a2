"""The closing table of a study: the pick against its rivals, the verdict, and what it cost."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Final, NamedTuple

from moa_dspy.optimize.report._facts import facts
from moa_dspy.optimize.report._numbers import amount, points
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


def _brackets(low: float | None, high: float | None, *, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"\n[{points(low, sign=sign)}, {points(high, sign=sign)}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return points(interval.estimate, sign="+") + _brackets(interval.low, interval.high, sign="+")


def program_line(result: StudyResult) -> str:
    """Return which program the study writes, and whether it is the pick."""
    why = "the pick" if result.recommended == result.pick else "the best single agent"
    return f"Program: {result.recommended} ({why})"

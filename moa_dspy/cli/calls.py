"""The command ``calls``: shows, exports, imports and deletes the calls of a store."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moa_dspy.errors import StoreError

if TYPE_CHECKING:
    from moa_dspy.calls import AgentSummary, CallFilter, CallStore


_COLUMNS = {
    "calls": ",",
    "failed": ",",
    "prompt_tokens": ",",
    "completion_tokens": ",",
    "usd": ",.4f",
    "seconds": ",.0f",
    "paid_twice": ",",
}
"""Columns of the table, and the format of each."""


def calls(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A file, or postgresql://...")],
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed calls.")] = False,
    since: Annotated[str | None, typer.Option(help="Only from this day or time (UTC) on.")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this day or time (UTC).")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write them to a recording.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE.parquet", help="Add a recording's.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete them; needs --yes too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the calls of a store per agent; export, import or delete some of them.

    Options that choose calls hold for all of it, together. A password is best left to PGPASSWORD
    or ~/.pgpass.
    """
    from moa_dspy.calls import CallFilter

    chosen = CallFilter(agent, failed, _seconds("--since", since), _seconds("--before", before))
    if prune and chosen.is_all:
        raise typer.BadParameter(
            "--prune deletes what --agent, --failed, --since and --before choose; give one of them."
        )
    opened = _opened(store, may_make=import_ is not None)
    try:
        if import_ is not None:
            _import(opened, import_)
        if export is not None:
            _export(opened, chosen, export)
        if prune:
            _prune(opened, chosen, is_sure=yes)
        _show(opened, chosen, as_json=as_json)
    finally:
        opened.close()


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} must be a day or time such as 2026-11-22 or 2026-11-22T20:00, "
            f"but is {text!r}."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _opened(place: str, *, may_make: bool) -> CallStore:
    from moa_dspy.calls import CallStore, database_url

    url = database_url(place)
    is_file = url.get_backend_name() == "sqlite"
    if is_file and not may_make and not Path(str(url.database)).is_file():
        raise StoreError(f"There is no call store {url.database}.")
    return CallStore(place)


def _import(store: CallStore, path: Path) -> None:
    from moa_dspy.calls import Recording

    recording, n_before = Recording.read(path), len(store)
    store.put_all(recording)
    typer.echo(f"read {len(recording):,} calls, {len(store) - n_before:,} of them new", err=True)


def _export(store: CallStore, chosen: CallFilter, path: Path) -> None:
    from moa_dspy.calls import Recording, filtered_calls

    recording = Recording(filtered_calls(store.database, chosen))
    recording.write(path)
    typer.echo(f"wrote {len(recording):,} calls to {path}", err=True)


def _prune(store: CallStore, chosen: CallFilter, *, is_sure: bool) -> None:
    from moa_dspy.calls import prune, summaries

    if is_sure:
        typer.echo(f"deleted {prune(store.database, chosen):,} calls", err=True)
        return
    found = summaries(store.database, chosen)
    n, usd = sum(each.calls for each in found), sum(each.usd for each in found)
    typer.echo(f"--yes would delete {n:,} calls that cost {usd:,.4f} usd", err=True)


def _show(store: CallStore, chosen: CallFilter, *, as_json: bool) -> None:
    from moa_dspy.calls import summaries

    found = summaries(store.database, chosen)
    total = _total(found)
    if as_json:
        agents = [asdict(each) for each in found]
        content = {"store": store.database.name, "agents": agents, "total": asdict(total)}
        typer.echo(json.dumps(content, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=store.database.name, show_footer=len(found) > 1)
    table.add_column("agent", footer=total.agent, no_wrap=True)
    for name, style in _COLUMNS.items():
        footer = format(getattr(total, name), style)
        table.add_column(name.replace("_", " "), justify="right", footer=footer)
    for each in found:
        table.add_row(each.agent, *(format(getattr(each, n), _COLUMNS[n]) for n in _COLUMNS))
    # Rich takes 80 columns where there is no terminal; a log has room for the whole table.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    Console(width=width).print(table)


def _total(found: list[AgentSummary]) -> AgentSummary:
    from moa_dspy.calls import AgentSummary

    names = [f.name for f in fields(AgentSummary) if f.name != "agent"]
    return AgentSummary("all", **{n: sum(getattr(each, n) for each in found) for n in names})

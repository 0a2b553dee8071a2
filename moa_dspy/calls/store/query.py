"""Calls of a store by agent, time and failure: to sum up, export or delete them; and recordings.

A recording is one Parquet file of calls that can be committed, shared and replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from moa_dspy.calls.call import Call, call_key
from moa_dspy.calls.store.database import Database, Session
from moa_dspy.calls.store.schema import make_kept_answers
from moa_dspy.calls.store.store import read_all
from moa_dspy.errors import StoreError
from moa_dspy.files import replacing


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Conditions on calls of a store; without any, all calls.

    Attributes:
        agent: Only this agent's calls.
        is_failed: Only failed ones.
        since: Only those made at this time or later, in UTC seconds.
        before: Only those made earlier, in UTC seconds. A call whose time is unknown (of an
            imported file) is neither.
    """

    agent: str | None = None
    is_failed: bool = False
    since: float | None = None
    before: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether there is no condition."""
        return self == CallFilter()

    def where(self, *, has_response: bool = True) -> tuple[str, tuple[Any, ...]]:
        """Return the condition in SQL, and its values."""
        parts: dict[str, Any] = {"agent = ?": self.agent}
        parts |= {"time >= ?": self.since, "time < ?": self.before}
        given = {text: value for text, value in parts.items() if value is not None}
        texts = ["TRUE", *given]
        if self.is_failed:
            texts.append("response IS NULL" if has_response else "FALSE")
        if self.since is not None or self.before is not None:
            texts.append("time > 0")
        return " AND ".join(texts), tuple(given.values())


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """Totals of an agent's calls; ``paid_twice`` counts answers that came too late."""

    agent: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    paid_twice: int
    paid_twice_usd: float


def summaries(database: Database, calls: CallFilter) -> list[AgentSummary]:
    """Return one summary per agent that has such calls, by name."""
    where, values = calls.where()
    rows = database.rows(
        "SELECT agent, count(*), sum(CASE WHEN response IS NULL THEN 1 ELSE 0 END), "
        "sum(prompt_tokens), sum(completion_tokens), sum(usd), sum(seconds) FROM calls "
        f"WHERE {where} GROUP BY agent",
        values,
    )
    where, values = calls.where(has_response=False)
    query = f"SELECT agent, count(*), sum(usd) FROM paid_twice WHERE {where} GROUP BY agent"
    twice = {agent: (int(n), float(usd)) for agent, n, usd in database.rows(query, values)}
    found = [
        AgentSummary(agent, int(n), int(failed), int(prompt), int(answer), usd, seconds, *late)
        for agent, n, failed, prompt, answer, usd, seconds in rows
        for late in [twice.get(agent, (0, 0.0))]
    ]
    return sorted(found, key=lambda summary: summary.agent)


def filtered_calls(database: Database, calls: CallFilter) -> Iterator[Call]:
    """Yield such calls, ordered by key, a page at a time."""
    where, values = calls.where()
    return read_all(database, where, values)


def prune(database: Database, calls: CallFilter) -> int:
    """Delete such calls from the store and return how many; their requests will be sent again.

    Processes that have read them before still have them in memory. A file gives its
    space back, for which it must not be in use elsewhere.

    Raises:
        StoreError: If the store cannot be written.
    """
    where, values = calls.where()
    statement = f"DELETE FROM calls WHERE {where}"

    def work(session: Session) -> int:
        n = int(session.execute(statement, values).rowcount)
        # What their replies were read as is as private as they are.
        make_kept_answers(session)
        session.execute("DELETE FROM kept_answers WHERE call NOT IN (SELECT key FROM calls)")
        return n

    n = database.transact(work)
    if n and not database.is_postgresql:
        database.rows("VACUUM")
    return n


# The key is computed from the content. Time and number of the attempt are no part of request and
# answer: equal recordings are equal files, whenever they were made.
_NOT_IN_FILES = ("key", "attempt", "time")
_COLUMNS = {
    f.name: str(f.type).partition(" ")[0] for f in fields(Call) if f.name not in _NOT_IN_FILES
}


class Recording:
    """Calls by key, read from a file or written to one.

    Keys are computed again from the content when the file is read, so a row that
    was altered answers the altered request and never another one. The file holds neither the
    time of a call nor its attempt: read from it, they are 0.0 and 1. All calls are in memory,
    when a file is read and when it is written.

    Raises:
        StoreError: If the file is absent or is not a recording.
    """

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._calls = {call.key: call for call in calls}

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file that ``write`` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise StoreError(f"{path} cannot be read as a recording: there is no such file.")
        try:
            found = pq.read_schema(path).names
            if missing := [name for name in _COLUMNS if name not in found]:
                raise StoreError(
                    f"{path} cannot be read as a recording: a table of calls needs the columns "
                    f"{', '.join(_COLUMNS)}, but this one lacks {', '.join(missing)} and has "
                    f"{', '.join(found)}. A table of answers is data: `data.reader` = "
                    '"recorded".'
                )
            columns = pq.read_table(path, columns=list(_COLUMNS)).to_pydict()
        except (OSError, pa.ArrowException, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} cannot be read as a recording: {reason}") from error
        rows = zip(*columns.values(), strict=True)
        calls = (dict(zip(columns, row, strict=True)) for row in rows)
        return cls(Call(key=call_key(c["identity"], c["sample"], c["request"]), **c) for c in calls)

    def write(self, path: Path) -> None:
        """Write every call, ordered by content, so that equal recordings are equal files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(self, key=lambda c: (c.identity, c.request, c.sample))
        kept = [{name: getattr(call, name) for name in _COLUMNS} for call in rows]
        table = pa.Table.from_pylist(kept, schema=_schema())
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd")

    def get(self, key: str) -> Call | None:
        """Return the recorded call, or None."""
        return self._calls.get(key)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)


def _schema() -> Any:
    # Not inferred from the rows: a recording may have no failures, or no rows.
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in _COLUMNS.items()])

"""Calls of a store by agent, time and failure: to sum up, export or delete them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moa_dspy.calls.call import Call
from moa_dspy.calls.store.database import Database
from moa_dspy.calls.store.store import read_all


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
    n = int(database.transact(lambda session: session.execute(statement, values).rowcount))
    if n and not database.is_postgresql:
        database.rows("VACUUM")
    return n

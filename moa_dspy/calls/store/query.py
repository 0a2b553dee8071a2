"""Calls of a store by who made them, when, and whether they failed: to sum up, export, delete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moa_dspy.calls.call import Call
from moa_dspy.calls.store.store import CallStore, read_all


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which calls of a store are meant; without any condition, all of them.

    Attributes:
        agent: Only this agent's.
        is_failed: Only failed ones.
        since: Only those made at this time or later, in UTC seconds.
        before: Only those made earlier, in UTC seconds. A call whose time is unknown (of an
            imported file, or of a store of version 1) is neither.
    """

    agent: str | None = None
    is_failed: bool = False
    since: float | None = None
    before: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether there is no condition."""
        return self == Chosen()

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
    """What an agent's calls come to; ``paid_twice`` counts answers that came too late."""

    agent: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    paid_twice: int
    paid_twice_usd: float


def summaries(store: CallStore, chosen: Chosen) -> list[AgentSummary]:
    """Return one summary per agent that has such calls, by name."""
    where, values = chosen.where()
    rows = store.database.rows(
        "SELECT agent, count(*), sum(CASE WHEN response IS NULL THEN 1 ELSE 0 END), "
        "sum(prompt_tokens), sum(completion_tokens), sum(usd), sum(seconds) FROM calls "
        f"WHERE {where} GROUP BY agent",
        values,
    )
    where, values = chosen.where(has_response=False)
    query = f"SELECT agent, count(*), sum(usd) FROM paid_twice WHERE {where} GROUP BY agent"
    twice = {agent: (int(n), float(usd)) for agent, n, usd in store.database.rows(query, values)}
    found = [
        AgentSummary(agent, int(n), int(failed), int(prompt), int(answer), usd, seconds, *late)
        for agent, n, failed, prompt, answer, usd, seconds in rows
        for late in [twice.get(agent, (0, 0.0))]
    ]
    return sorted(found, key=lambda summary: summary.agent)


def chosen_calls(store: CallStore, chosen: Chosen) -> Iterator[Call]:
    """Yield such calls, ordered by key, a page at a time."""
    where, values = chosen.where()
    return read_all(store.database, where, values)


def prune(store: CallStore, chosen: Chosen) -> int:
    """Delete such calls from the store and return how many; what asked for them is asked again.

    What this process, or another, has read before it still has in memory. A file gives its
    space back, for which it must not be in use elsewhere.

    Raises:
        StoreError: If the store cannot be written.
    """
    where, values = chosen.where()
    statement = f"DELETE FROM calls WHERE {where}"
    n = int(store.database.transact(lambda session: session.execute(statement, values).rowcount))
    if n and not store.database.is_postgresql:
        store.database.rows("VACUUM")
    return n

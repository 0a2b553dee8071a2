"""The statements on what studies have spent, and on what their calls in flight may spend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moa_dspy.calls.budgets._budget import LIMITS, Estimate, Spending
from moa_dspy.calls.store._database import Session
from moa_dspy.calls.store._owner import Owner

_NO_LIMIT = 1e300


class Reservations:
    """The row of one study, and its open reservations.

    Args:
        owner: Of this process.
        study: Whose row it is.
    """

    def __init__(self, owner: Owner, study: str) -> None:
        self.owner, self.study = owner, study
        clock = owner.database.clock
        gap = f"({clock} - ticked_at)"
        self.running = (
            f"(CASE WHEN {gap} BETWEEN 0 AND {owner.lease_seconds} THEN {gap} ELSE 0 END)"
        )
        """SQL for the seconds since the last tick; 0 before the first and after a pause."""
        self.tick = f"seconds = seconds + {self.running}, ticked_at = {clock}"
        """SQL that lets these seconds count."""

    def reserve(
        self,
        session: Session,
        ticket: str,
        estimate: Estimate,
        *,
        limits: Mapping[str, float],
        key: str | None,
    ) -> bool:
        """Reserve if it stays within the limits, and return whether it does."""
        tokens, usd = estimate.tokens, estimate.usd
        row = (ticket, self.study, self.owner.id, key, tokens, usd)
        insert = (
            "INSERT INTO reservations (ticket, study, owner, key, tokens, usd) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (ticket) DO NOTHING"
        )
        # First, because nobody waits for it; the row that all share is locked last.
        if not session.execute(insert, row).rowcount:
            return True  # done before the connection was lost
        within = (
            f"UPDATE spending SET {self.tick}, open_calls = open_calls + 1, "
            "open_tokens = open_tokens + ?, open_usd = open_usd + ? WHERE study = ? "
            "AND made + open_calls + 1 <= ? AND tokens + open_tokens + ? <= ? "
            f"AND usd + open_usd + ? <= ? AND seconds + {self.running} <= ?"
        )
        calls, most_tokens, most_usd, seconds = (
            float(limits.get(name, _NO_LIMIT)) for name in LIMITS
        )
        values = (tokens, usd, self.study, calls, tokens, most_tokens, usd, most_usd, seconds)
        if session.execute(within, values).rowcount:
            return True
        session.execute("DELETE FROM reservations WHERE ticket = ?", (ticket,))
        return False

    def settle(self, session: Session, *, ticket: str, spent: Spending) -> None:
        """Replace a reservation by what was spent; one that is settled is left alone."""
        taken = "DELETE FROM reservations WHERE ticket = ? RETURNING tokens, usd"
        for tokens, usd in session.rows(taken, (ticket,)):
            session.execute(
                f"UPDATE spending SET {self.tick}, made = made + ?, reused = reused + ?, "
                "tokens = tokens + ?, usd = usd + ?, open_calls = open_calls - 1, "
                "open_tokens = open_tokens - ?, open_usd = "
                # Sums of floats leave crumbs: with nothing open, nothing is charged.
                "CASE WHEN open_calls = 1 THEN 0 ELSE open_usd - ? END WHERE study = ?",
                (spent.made, spent.reused, spent.tokens, spent.usd, tokens, usd, self.study),
            )

    def of_the_dead(self) -> list[tuple[str, Spending]]:
        """Return tickets of dead workers whose answers are stored, and what these cost."""
        database = self.owner.database
        found: list[Any] = database.rows(
            "SELECT reservations.ticket, reservations.owner, owners.beat, "
            f"coalesce(owners.expires < {database.clock}, FALSE), "
            "calls.prompt_tokens + calls.completion_tokens, calls.usd FROM reservations "
            "JOIN calls ON calls.key = reservations.key AND calls.response IS NOT NULL "
            "LEFT JOIN owners ON owners.owner = reservations.owner WHERE reservations.study = ?",
            (self.study,),
        )
        return [
            (ticket, Spending(made=1, tokens=tokens, usd=usd))
            for ticket, owner, beat, has_expired, tokens, usd in found
            if owner != self.owner.id
            and self.owner.is_dead(owner, beat, has_expired=bool(has_expired))
        ]

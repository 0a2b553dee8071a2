from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from functools import partial

from moa_dspy.calls._budget import LIMITS, Estimate, Spending, Totals
from moa_dspy.calls._database import Session
from moa_dspy.calls._owner import Owner
from moa_dspy.errors import StoreError

_NO_LIMIT = 1e300


class DatabaseBook:
    """A book in the store, which all workers of a study share, and which outlives them.

    What a worker reserved and never settled, because it died, stays charged by its upper
    bound; once the answer of its call is in the store, by what that cost. Time runs while a
    worker lives: every reservation, settlement and beat adds the time since the last one of
    anybody, unless that is longer than a lease, which is a pause, or the clock went back.

    Args:
        owner: Of this process.
        study: Whose book it is.
        spent: Where a new book starts.

    Raises:
        StoreError: If the store cannot be used.
    """

    def __init__(self, owner: Owner, study: str, *, spent: Spending | None = None) -> None:
        self.owner, self.database, self.study = owner, owner.database, study
        self._unsettled: dict[str, Spending] = {}
        self._lock = threading.Lock()
        start = spent or Spending()
        self.database.transact(lambda session: self._open(session, start))

    @property
    def _running(self) -> str:
        """SQL for the seconds since the last tick; 0 before the first and after a pause."""
        gap = f"({self.database.clock} - ticked_at)"
        lease = self.owner.lease_seconds
        return f"(CASE WHEN {gap} BETWEEN 0 AND {lease} THEN {gap} ELSE 0 END)"

    @property
    def _tick(self) -> str:
        return f"seconds = seconds + {self._running}, ticked_at = {self.database.clock}"

    def _open(self, session: Session, start: Spending) -> None:
        session.execute(
            "INSERT INTO spending (study, made, reused, tokens, usd, seconds, open_calls, "
            "open_tokens, open_usd) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT DO NOTHING",
            (self.study, start.made, start.reused, start.tokens, start.usd, start.seconds),
        )

    def restart(self) -> None:
        """Begin anew: nothing is spent or reserved, whatever was before."""

        def begin(session: Session) -> None:
            session.execute("DELETE FROM reservations WHERE study = ?", (self.study,))
            session.execute("DELETE FROM spending WHERE study = ?", (self.study,))
            self._open(session, Spending())

        self.database.transact(begin)

    def spending(self) -> Spending:
        """Return what was spent, calls in flight not included."""
        (row,) = self.database.rows(
            f"SELECT made, reused, tokens, usd, seconds + {self._running} FROM spending "
            "WHERE study = ?",
            (self.study,),
        )
        return Spending(*row)

    def totals(self) -> Totals:
        """Return what counts against a budget, calls in flight included."""
        (row,) = self.database.rows(
            "SELECT made + open_calls, tokens + open_tokens, usd + open_usd, "
            f"seconds + {self._running} FROM spending WHERE study = ?",
            (self.study,),
        )
        return Totals(*row)

    def reserve(
        self, estimate: Estimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve room for one call, or return None if it goes beyond a limit."""
        self.owner.enlist()
        self.flush()
        ticket = uuid.uuid4().hex
        is_reserved = self._reserve(ticket, estimate, limits, key)
        if not is_reserved and self.resolve():
            is_reserved = self._reserve(ticket, estimate, limits, key)
        return ticket if is_reserved else None

    def _reserve(
        self, ticket: str, estimate: Estimate, limits: Mapping[str, float], key: str | None
    ) -> bool:
        tokens, usd = estimate.tokens, estimate.usd
        insert = (
            "INSERT INTO reservations (ticket, study, owner, key, tokens, usd) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (ticket) DO NOTHING"
        )
        within = (
            f"UPDATE spending SET {self._tick}, open_calls = open_calls + 1, "
            "open_tokens = open_tokens + ?, open_usd = open_usd + ? WHERE study = ? "
            "AND made + open_calls + 1 <= ? AND tokens + open_tokens + ? <= ? "
            f"AND usd + open_usd + ? <= ? AND seconds + {self._running} <= ?"
        )
        most = {name: float(limits.get(name, _NO_LIMIT)) for name in LIMITS}
        values = (tokens, usd, self.study, most["calls"], tokens, most["tokens"])
        more = (usd, most["usd"], most["seconds"])

        def work(session: Session) -> bool:
            # First, because nobody waits for it; the row that all share is locked last.
            row = (ticket, self.study, self.owner.id, key, tokens, usd)
            if not session.execute(insert, row).rowcount:
                return True  # done before the connection was lost
            if session.execute(within, (*values, *more)).rowcount:
                return True
            session.execute("DELETE FROM reservations WHERE ticket = ?", (ticket,))
            return False

        return self.database.transact(work, is_durable=False)

    def settle(self, ticket: str, spent: Spending) -> None:
        """Replace a reservation by what was spent; what cannot be written is written later."""
        try:
            # What is forgotten by a server that crashes is found again by the stored answer.
            settle = partial(self._settle, ticket=ticket, spent=spent)
            self.database.transact(settle, is_durable=False)
        except StoreError:
            # The answer that was paid for must be handed out: who reserves next is told.
            with self._lock:
                self._unsettled[ticket] = spent

    def _settle(self, session: Session, *, ticket: str, spent: Spending) -> None:
        taken = "DELETE FROM reservations WHERE ticket = ? RETURNING tokens, usd"
        for tokens, usd in session.rows(taken, (ticket,)):
            session.execute(
                f"UPDATE spending SET {self._tick}, made = made + ?, reused = reused + ?, "
                "tokens = tokens + ?, usd = usd + ?, open_calls = open_calls - 1, "
                "open_tokens = open_tokens - ?, open_usd = "
                # Sums of floats leave crumbs: with nothing open, nothing is charged.
                "CASE WHEN open_calls = 1 THEN 0 ELSE open_usd - ? END WHERE study = ?",
                (spent.made, spent.reused, spent.tokens, spent.usd, tokens, usd, self.study),
            )

    def flush(self) -> None:
        """Write the settlements that could not be written.

        Raises:
            StoreError: If they still cannot be.
        """
        for ticket, spent in list(self._unsettled.items()):
            self.database.transact(partial(self._settle, ticket=ticket, spent=spent))
            with self._lock:
                self._unsettled.pop(ticket, None)

    def resolve(self) -> int:
        """Charge calls of dead workers what their stored answers cost; return how many."""
        found = self.database.rows(
            "SELECT reservations.ticket, reservations.owner, owners.beat, "
            f"coalesce(owners.expires < {self.database.clock}, FALSE), "
            "calls.prompt_tokens + calls.completion_tokens, calls.usd FROM reservations "
            "JOIN calls ON calls.key = reservations.key AND calls.response IS NOT NULL "
            "LEFT JOIN owners ON owners.owner = reservations.owner WHERE reservations.study = ?",
            (self.study,),
        )
        dead = [
            (ticket, Spending(made=1, tokens=tokens, usd=usd))
            for ticket, owner, beat, has_expired, tokens, usd in found
            if owner != self.owner.id
            and self.owner.is_dead(owner, beat, has_expired=bool(has_expired))
        ]
        for ticket, spent in dead:
            self.settle(ticket, spent)
        return len(dead)

    def add(self, spent: Spending) -> None:
        """Count what was spent elsewhere."""
        self.database.transact(
            lambda session: session.execute(
                "UPDATE spending SET made = made + ?, reused = reused + ?, tokens = tokens + ?, "
                "usd = usd + ?, seconds = seconds + ? WHERE study = ?",
                (spent.made, spent.reused, spent.tokens, spent.usd, spent.seconds, self.study),
            )
        )

    def tick(self) -> None:
        """Note that somebody is at work: time runs."""
        self.database.transact(
            lambda session: session.execute(
                f"UPDATE spending SET {self._tick} WHERE study = ? AND ticked_at IS NOT NULL",
                (self.study,),
            ),
            is_durable=False,
        )

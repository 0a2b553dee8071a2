"""Spending of studies in a store, with reservations for their calls in flight."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from moa_dspy.calls.budget import LIMITS, Spending, Totals
from moa_dspy.calls.scope import CallEstimate
from moa_dspy.calls.store.database import Session
from moa_dspy.calls.store.leases import Owner
from moa_dspy.errors import StoreError

_NO_LIMIT = 1e300


class Reservations:
    """The database row of one study, and its open reservations.

    Args:
        owner: The owner of this process.
        study: Name of the study.
    """

    def __init__(self, owner: Owner, study: str) -> None:
        self.owner, self.study = owner, study
        clock = owner.database.clock
        gap = f"({clock} - ticked_at)"
        self.running = (
            f"(CASE WHEN {gap} BETWEEN 0 AND {owner.lease_seconds} THEN {gap} ELSE 0 END)"
        )
        """SQL for the seconds since the last tick; 0 before the first tick and after a pause."""
        self.tick = f"seconds = seconds + {self.running}, ticked_at = {clock}"
        """SQL that adds these seconds to the study."""

    def reserve(
        self,
        session: Session,
        ticket: str,
        estimate: CallEstimate,
        *,
        limits: Mapping[str, float],
        key: str | None,
    ) -> bool:
        """Reserve if this stays within the limits, and return whether it did."""
        tokens, usd = estimate.tokens, estimate.usd
        row = (ticket, self.study, self.owner.id, key, tokens, usd)
        insert = (
            "INSERT INTO reservations (ticket, study, owner, key, tokens, usd) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (ticket) DO NOTHING"
        )
        # First, as it locks no row of others; the shared row is locked last.
        if not session.execute(insert, row).rowcount:
            return True  # it was done before the connection was lost
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
        """Replace a reservation by the real spending, unless it is settled already."""
        taken = "DELETE FROM reservations WHERE ticket = ? RETURNING tokens, usd"
        for tokens, usd in session.rows(taken, (ticket,)):
            session.execute(
                f"UPDATE spending SET {self.tick}, made = made + ?, reused = reused + ?, "
                "tokens = tokens + ?, usd = usd + ?, open_calls = open_calls - 1, "
                "open_tokens = open_tokens - ?, open_usd = "
                # Sums of floats leave remainders; without open reservations the charge is set to 0.
                "CASE WHEN open_calls = 1 THEN 0 ELSE open_usd - ? END WHERE study = ?",
                (spent.made, spent.reused, spent.tokens, spent.usd, tokens, usd, self.study),
            )

    def in_flight(self) -> tuple[Totals, Totals]:
        """Return all totals, and the part of open calls of living processes, at one moment."""
        database = self.owner.database
        rows = database.rows(
            "SELECT made + open_calls, spending.tokens + open_tokens, spending.usd + open_usd, "
            f"seconds + {self.running}, reservations.owner, owners.beat, "
            f"coalesce(owners.expires < {database.clock}, FALSE), "
            "reservations.tokens, reservations.usd FROM spending "
            "LEFT JOIN reservations ON reservations.study = spending.study "
            "LEFT JOIN owners ON owners.owner = reservations.owner WHERE spending.study = ?",
            (self.study,),
        )
        living = [
            CallEstimate(tokens, usd)
            for *_, owner, beat, has_expired, tokens, usd in rows
            if owner is not None and self._lives(owner, beat, has_expired)
        ]
        return Totals(*rows[0][:4]), Totals.in_flight(living)

    def _lives(self, owner: str, beat: int | None, has_expired: object) -> bool:
        is_own = owner == self.owner.id
        return is_own or not self.owner.is_dead(owner, beat, has_expired=bool(has_expired))

    def of_the_dead(self) -> list[tuple[str, Spending]]:
        """Return tickets of dead workers whose answers are stored, with the cost of each."""
        database = self.owner.database
        rows: list[Any] = database.rows(
            "SELECT reservations.ticket, reservations.owner, owners.beat, "
            f"coalesce(owners.expires < {database.clock}, FALSE), "
            "calls.prompt_tokens + calls.completion_tokens, calls.usd FROM reservations "
            "JOIN calls ON calls.key = reservations.key AND calls.response IS NOT NULL "
            "LEFT JOIN owners ON owners.owner = reservations.owner WHERE reservations.study = ?",
            (self.study,),
        )
        return [
            (ticket, Spending(made=1, tokens=tokens, usd=usd))
            for ticket, owner, beat, has_expired, tokens, usd in rows
            if not self._lives(owner, beat, has_expired)
        ]


class DatabaseBudget:
    """Spending of a study in the store, shared by all its workers and kept when they end.

    The reservation of a worker that died stays charged at its upper bound, or at the real cost once
    the answer of its call is in the store. Time counts while a worker lives: every reservation,
    settlement and heartbeat adds the time since the last such event of any worker, unless that is
    longer than a lease (a pause) or the clock went back.

    Args:
        owner: The owner of this process.
        study: Name of the study.
        spent: Spending with which a new study starts.

    Raises:
        StoreError: If the store cannot be used.
    """

    def __init__(self, owner: Owner, study: str, *, spent: Spending | None = None) -> None:
        self.owner, self.database, self.study = owner, owner.database, study
        self._rows = Reservations(owner, study)
        self._unsettled: dict[str, Spending] = {}
        self._is_registered = False
        self._lock = threading.Lock()
        start = spent or Spending()
        self.database.transact(lambda session: self._open(session, start))

    def _open(self, session: Session, start: Spending) -> None:
        session.execute(
            "INSERT INTO spending (study, made, reused, tokens, usd, seconds, open_calls, "
            "open_tokens, open_usd) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT DO NOTHING",
            (self.study, start.made, start.reused, start.tokens, start.usd, start.seconds),
        )

    def restart(self) -> None:
        """Reset all spending and reservations to nothing."""

        def begin(session: Session) -> None:
            session.execute("DELETE FROM reservations WHERE study = ?", (self.study,))
            session.execute("DELETE FROM spending WHERE study = ?", (self.study,))
            self._open(session, Spending())

        self.database.transact(begin)

    def spending(self) -> Spending:
        """Return what was spent, calls in flight not included."""
        columns = f"made, reused, tokens, usd, seconds + {self._rows.running}"
        query = f"SELECT {columns} FROM spending WHERE study = ?"
        return Spending(*self.database.rows(query, (self.study,))[0])

    def totals(self) -> Totals:
        """Return what counts against a budget, calls in flight included."""
        return self.totals_and_in_flight()[0]

    def totals_and_in_flight(self) -> tuple[Totals, Totals]:
        """Return ``totals``, and the tokens and usd in them of open calls of living processes."""
        return self._rows.in_flight()

    def reserve(
        self, estimate: CallEstimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve room for one call, or return None if it goes beyond a limit."""
        self._register()
        self.flush()
        ticket = uuid.uuid4().hex

        def work(session: Session) -> bool:
            return self._rows.reserve(session, ticket, estimate, limits=limits, key=key)

        is_reserved = self.database.transact(work, is_durable=False)
        if not is_reserved and self.resolve():
            is_reserved = self.database.transact(work, is_durable=False)
        return ticket if is_reserved else None

    def _register(self) -> None:
        self.owner.register()
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                # The heartbeat thread must not keep an unused object alive.
                self.owner.on_heartbeat.append(partial(_on_heartbeat, weakref.ref(self)))

    def settle(self, number: str, spent: Spending) -> None:
        """Replace a reservation by the real spending, later if it cannot be written now."""
        try:
            self._settle(number, spent)
        except StoreError:
            # The answer that was paid for must be returned, so the next reservation raises the
            # error.
            with self._lock:
                self._unsettled[number] = spent

    def _settle(self, ticket: str, spent: Spending) -> None:
        # If a server crashes and loses this, the cost is read from the stored answer.
        work = partial(self._rows.settle, ticket=ticket, spent=spent)
        self.database.transact(work, is_durable=False)

    def flush(self) -> None:
        """Write the settlements that could not be written before.

        Raises:
            StoreError: If they still cannot be.
        """
        for ticket, spent in list(self._unsettled.items()):
            self._settle(ticket, spent)
            with self._lock:
                self._unsettled.pop(ticket, None)

    def resolve(self) -> int:
        """Charge dead workers' calls the cost of their stored answers; return their number."""
        dead = self._rows.of_the_dead()
        for ticket, spent in dead:
            self.settle(ticket, spent)
        return len(dead)

    def add(self, spent: Spending) -> None:
        """Add the spending of another process."""
        change = (
            "UPDATE spending SET made = made + ?, reused = reused + ?, tokens = tokens + ?, "
            "usd = usd + ?, seconds = seconds + ? WHERE study = ?"
        )
        values = (spent.made, spent.reused, spent.tokens, spent.usd, spent.seconds, self.study)
        self.database.transact(lambda session: session.execute(change, values))

    def tick(self) -> None:
        """Record that a worker is alive, so that its time counts."""
        change = f"UPDATE spending SET {self._rows.tick} WHERE study = ? AND ticked_at IS NOT NULL"
        self.database.transact(
            lambda session: session.execute(change, (self.study,)), is_durable=False
        )


def _on_heartbeat(forgettable: weakref.ref[DatabaseBudget]) -> None:
    budget = forgettable()
    if budget is not None:
        budget.flush()
        budget.tick()

"""Claims: who, of all processes and machines on one store, does a thing; the others wait."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

from moa_dspy.calls.store._database import Session
from moa_dspy.calls.store._owner import Owner

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.5


class Claims:
    """Names that one owner at a time may hold; the names of a dead owner are free again.

    A claim is one short transaction, and none is open while it is held. Safe for threads:
    of those of one process, too, one gets a name.

    Args:
        owner: Of this process.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._look = (
            "SELECT claims.owner, owners.beat, "
            f"coalesce(owners.expires < {owner.database.clock}, FALSE) FROM claims "
            "LEFT JOIN owners ON owners.owner = claims.owner WHERE claims.key = ?"
        )

    def claim(self, key: str) -> bool:
        """Take ``key`` if nobody alive holds it; return whether this call took it.

        Raises:
            StoreError: If the database cannot be used.
        """
        with self._lock:
            if key in self._held:
                return False
            self._held.add(key)
        is_mine = False
        try:
            is_mine = self._claim(key)
        finally:
            if not is_mine:
                self.forget(key)
        return is_mine

    def _claim(self, key: str) -> bool:
        database = self.owner.database
        # Who waits looks often: it must not take a lock each time.
        holders = database.rows(self._look, (key,))
        if holders and not self._is_free(*holders[0]):
            return False
        self.owner.enlist()
        return database.transact(
            lambda session: self._take(session, key, *holders), is_durable=False
        )

    def _is_free(self, who: str, beat: int | None, has_expired: object) -> bool:
        # Ours, though not held: from a transaction whose end was lost with the connection.
        return who == self.owner.id or self.owner.is_dead(who, beat, has_expired=bool(has_expired))

    def _take(self, session: Session, key: str, holder: Any = None) -> bool:
        me = self.owner.id
        if holder is None or holder[0] == me:
            insert = "INSERT INTO claims (key, owner) VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
            session.execute(insert, (key, me))
            return session.rows("SELECT owner FROM claims WHERE key = ?", (key,)) == [(me,)]
        who, beat, _ = holder
        take_over = (
            "UPDATE claims SET owner = ? WHERE key = ? AND owner = ? AND NOT EXISTS "
            "(SELECT 1 FROM owners WHERE owner = ? AND beat <> ?)"
        )
        # With a beat since the look it lives after all; another heir may have been faster.
        values = (me, key, who, who, -1 if beat is None else beat)
        return bool(session.execute(take_over, values).rowcount)

    def holds(self, key: str) -> bool:
        """Whether this process believes that it holds ``key``."""
        return key in self._held

    def release(self, key: str) -> None:
        """Give ``key`` back, if it is held.

        Raises:
            StoreError: If the database cannot be used; the claim ends with this process then.
        """
        if self.holds(key):
            self.owner.database.transact(lambda session: self.drop(session, key), is_durable=False)
            self.forget(key)

    def drop(self, session: Session, key: str) -> None:
        """Give ``key`` back as a part of other work; ``forget`` it when that is done."""
        session.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner.id))

    def forget(self, key: str) -> None:
        """Note that ``key`` is not held any more."""
        with self._lock:
            self._held.discard(key)


def pauses() -> Iterator[float]:
    """Yield seconds to wait between looks: 5 ms at first, half a second in the end, never even."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)

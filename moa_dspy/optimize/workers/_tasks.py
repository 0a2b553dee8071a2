"""What a study wants asked, as rows that any process may take; those of the dead are free again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moa_dspy.calls import CallStore

_FIRST_LATER = 2**40
"""Tasks with this number and more wait until there are no others."""
_OF_STUDY = "study = ? AND is_done = 0"


@dataclass(frozen=True, slots=True)
class Task:
    """One architecture on one example.

    Attributes:
        architecture: In text notation.
        example: Its id.
        share: The part of the budget that the stage which wants it may use.
    """

    architecture: str
    example: str
    share: float = 1.0


class TaskBoard:
    """The tasks of one study; taking the same one twice costs nothing, for calls are made once.

    Args:
        store: Where they lie.
        study: Whose they are.
    """

    def __init__(self, store: CallStore, study: str) -> None:
        self._owner, self._database, self._study = store.owner, store.database, study
        of_nobody = f"{_OF_STUDY} AND owner IS NULL"
        self._look = f"SELECT 1 FROM tasks WHERE {of_nobody} LIMIT 1"
        first = f"SELECT number FROM tasks WHERE {of_nobody} ORDER BY number LIMIT ?"
        chosen = f"IN ({first})"
        if self._database.is_postgresql:
            # As an array it is read once; a plain subquery may be run again, and take more.
            chosen = f"= ANY (ARRAY ({first} FOR UPDATE SKIP LOCKED))"
        self._take = (
            f"UPDATE tasks SET owner = ? WHERE {_OF_STUDY} AND number {chosen} "
            "RETURNING number, architecture, example, share"
        )

    def clear(self) -> None:
        """Forget what is open: a new coordinator says itself what it wants."""
        delete = f"DELETE FROM tasks WHERE {_OF_STUDY}"
        self._database.transact(lambda session: session.execute(delete, (self._study,)))

    def publish(self, tasks: Iterable[Task], *, is_urgent: bool = True) -> None:
        """Offer tasks, in this order; of those that are known only their place may change.

        Args:
            tasks: What is wanted.
            is_urgent: Whether they go before all that is not.
        """
        wanted = list(tasks)
        first = 0 if is_urgent else _FIRST_LATER
        last = "SELECT max(number) FROM tasks WHERE study = ? AND number BETWEEN ? AND ?"
        insert = (
            "INSERT INTO tasks (study, architecture, example, number, share, is_done) "
            "VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (study, architecture, example) "
            "DO UPDATE SET number = excluded.number "
            "WHERE tasks.is_done = 0 AND tasks.number > excluded.number"
        )

        def work(session: Any) -> None:
            ((number,),) = session.rows(last, (self._study, first, first + _FIRST_LATER - 1))
            numbered = enumerate(wanted, start=(first if number is None else number) + 1)
            session.execute_many(
                insert,
                [(self._study, t.architecture, t.example, n, t.share) for n, t in numbered],
            )

        self._database.transact(work, is_durable=False)

    def exchange(self, done: Sequence[Task], *, n: int) -> list[Task]:
        """Hand in tasks that are done, and take at most ``n`` others, the first ones first."""
        if not done and not (n and self._database.rows(self._look, (self._study,))):
            return []
        self._owner.enlist()
        finish = (
            "UPDATE tasks SET is_done = 1, owner = NULL "
            "WHERE study = ? AND architecture = ? AND example = ?"
        )

        def work(session: Any) -> list[Any]:
            if done:
                rows = [(self._study, task.architecture, task.example) for task in done]
                session.execute_many(finish, rows)
            values = (self._owner.id, self._study, self._study, n)
            return session.execute(self._take, values).fetchall() if n else []

        taken = self._database.transact(work, is_durable=False)
        return [Task(*rest) for _, *rest in sorted(taken)]

    def open_examples(self, architecture: str) -> set[str]:
        """Return the examples on which ``architecture`` is still to be asked."""
        query = f"SELECT example FROM tasks WHERE {_OF_STUDY} AND architecture = ?"
        return {example for (example,) in self._database.rows(query, (self._study, architecture))}

    def free_the_dead(self, *, with_mine: bool = False) -> None:
        """Offer the tasks of processes that are gone again.

        Args:
            with_mine: Whether those of this process are free too: it is at work on none, so they
                were taken in a transaction whose end was lost with the connection.
        """
        found = self._database.rows(
            "SELECT tasks.owner, min(owners.beat), "
            f"min(CASE WHEN owners.expires < {self._database.clock} THEN 1 ELSE 0 END) "
            "FROM tasks LEFT JOIN owners ON owners.owner = tasks.owner "
            f"WHERE {_OF_STUDY} AND tasks.owner IS NOT NULL GROUP BY tasks.owner",
            (self._study,),
        )
        for who, beat, has_expired in found:
            is_mine = who == self._owner.id
            if is_mine and not with_mine:
                continue
            if is_mine or self._owner.is_dead(who, beat, has_expired=bool(has_expired)):
                self._database.transact(partial(self._free, who=who), is_durable=False)

    def _free(self, session: Any, *, who: str) -> None:
        free = f"UPDATE tasks SET owner = NULL WHERE {_OF_STUDY} AND owner = ?"
        session.execute(free, (self._study, who))

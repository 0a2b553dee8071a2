"""A study in a database: which one it is, for all who work on it, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moa_dspy.calls import CallStore
from moa_dspy.errors import StudyError


@dataclass(frozen=True, slots=True)
class Finished:
    """What a study ended with.

    Attributes:
        result: ``StudyResult.to_json``, as text.
        program: Content of the program's file.
        place: Machine and folder where files were written.
    """

    result: str
    program: str
    place: str


class SharedStudy:
    """The row of a study; everybody who works on it must have the same parts and budget.

    Args:
        store: Where the row is.
        name: Of the study.
        parts: A digest of every part by name.
        budget: The limits by name.
    """

    def __init__(
        self, store: CallStore, name: str, *, parts: Mapping[str, str], budget: Mapping[str, Any]
    ) -> None:
        self._database, self.name = store.database, name
        self._parts, self._budget = dict(parts), dict(budget)

    def join(self, *, must_exist: bool, may_set_budget: bool) -> None:
        """Begin the study, or check that it is this one.

        Args:
            must_exist: Whether somebody must have begun it.
            may_set_budget: Whether another budget reopens it, instead of being an error.

        Raises:
            StudyError: If it is another study, naming what changed, or was to exist.
        """
        query = "SELECT parts, budget FROM shared_studies WHERE study = ?"
        insert = (
            "INSERT INTO shared_studies (study, parts, budget) VALUES (?, ?, ?) "
            "ON CONFLICT (study) DO NOTHING"
        )
        values = (self.name, json.dumps(self._parts), json.dumps(self._budget))
        if not must_exist:
            self._database.transact(lambda session: session.execute(insert, values))
        rows = self._database.rows(query, (self.name,))
        if not rows:
            raise StudyError(
                f"There is nothing to resume: {self._database.name} has no study {self.name!r}."
            )
        parts, budget = map(json.loads, rows[0])
        names = self._parts.keys() | parts.keys()
        changed = sorted(name for name in names if self._parts.get(name) != parts.get(name))
        if budget != self._budget and not may_set_budget:
            changed.append("budget")
        if changed:
            raise StudyError(
                f"{self._database.name} holds another study {self.name!r}: {', '.join(changed)} "
                "changed since. Give this one another `name`, or another --storage."
            )
        if budget != self._budget:
            self._reopen()

    def _reopen(self) -> None:
        def work(session: Any) -> None:
            session.execute("DELETE FROM tasks WHERE study = ?", (self.name,))
            session.execute(
                "UPDATE shared_studies SET budget = ?, result = NULL, program = NULL "
                "WHERE study = ?",
                (json.dumps(self._budget), self.name),
            )

        self._database.transact(work)

    def finished(self) -> Finished | None:
        """Return what the study ended with; None while it goes on."""
        query = "SELECT result, program, place FROM shared_studies WHERE study = ?"
        found = self._database.rows(query, (self.name,))
        return Finished(*found[0]) if found and found[0][0] is not None else None

    def finish(self, finished: Finished) -> None:
        """Write what the study ended with; everybody else stops working on it."""
        update = "UPDATE shared_studies SET result = ?, program = ?, place = ? WHERE study = ?"
        values = (finished.result, finished.program, finished.place, self.name)
        self._database.transact(lambda session: session.execute(update, values))

"""A judge that looks up preferences which were recorded earlier."""

from __future__ import annotations

import math
from collections.abc import Mapping

import dspy

from moa_dspy.errors import DataError, MetricError
from moa_dspy.judges.base import Judgement, JudgeReport, OutcomeCounter, id_of
from moa_dspy.winrate import RecordedPreferences


class RecordedJudge:
    """Looks preferences up in a table; asks nobody.

    Args:
        table: ``RecordedPreferences``, or preferences by (system, example id), None or NaN where
            nobody judged: in [0, 1], 1 where the system is preferred to the table's reference.

    Raises:
        MetricError: A preference outside [0, 1].
    """

    def __init__(self, table: RecordedPreferences | Mapping[tuple[str, str], float | None]) -> None:
        named = _by_name(table) if isinstance(table, RecordedPreferences) else table
        self._systems = {system for system, _ in named}
        self._table: dict[tuple[str, str], float] = {}
        for (system, example_id), preference in named.items():
            if preference is None or math.isnan(preference):
                continue
            if not 0 <= preference <= 1:
                raise MetricError(
                    f"A preference must be in [0, 1], but {system!r} has {preference} "
                    f"on example {example_id!r}."
                )
            # As text: the ids of examples are, whatever type a table's column has.
            self._table[system, str(example_id)] = float(preference)
        self._tally = OutcomeCounter()

    def compare(
        self, example: dspy.Example, candidate: str, reference: str | None = None
    ) -> Judgement:
        """Return the recorded preference for the system that ``candidate`` names.

        Args:
            example: Has the ``id`` under which it was recorded.
            candidate: A system's name.
            reference: Not read: it is the one the table was recorded against.

        Raises:
            DataError: The table has no such system.
        """
        if candidate not in self._systems:
            known = ", ".join(sorted(self._systems))
            raise DataError(f"Unknown system {candidate!r}; the table has {known}.")
        found = self._table.get((candidate, id_of(example)))
        if found is None:
            reason = f"Nothing is recorded for {candidate!r} here."
            judgement = Judgement(excluded="missing", reason=reason)
        else:
            judgement = Judgement(preference=found)
        self._tally.add(judgement)
        return judgement

    def report(self) -> JudgeReport:
        """Return the counts of every look-up."""
        return self._tally.report


def _by_name(table: RecordedPreferences) -> dict[tuple[str, str], float | None]:
    named: dict[tuple[str, str], float | None] = {}
    for system in table.systems:
        ids = table.examples(system)
        values = table.of(system, ids).tolist() if ids else []
        named[system, ""] = None  # a system nobody judged is known all the same
        named |= {(system, str(i)): value for i, value in zip(ids, values, strict=True)}
    return named

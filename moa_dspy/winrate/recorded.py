"""Preferences between two systems: from their scores, or from a recorded table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import Scores, Vector, paired_vectors

_SHOWN = 3


class RecordedPreferences:
    """A table of judgements: per example and system, how much the system was preferred."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, object]],
        *,
        example: str = "example",
        system: str = "system",
        preference: str = "preference",
    ) -> None:
        """Read the table; a preference of None is a judgement that was never made.

        Args:
            rows: One mapping per judgement; other columns are ignored.
            example: Column of the example's id, anything hashable; "3" is not 3.
            system: Column of the system's name.
            preference: Column of the preference, in [0, 1]: 1 where the system is preferred to
                what it was compared with, 0.5 for a tie.

        Raises:
            MetricError: no row, a missing column, a preference that is not a number in [0, 1]
                (NaN included), or the same example and system twice.
        """
        self._values: dict[str, dict[Hashable, float | None]] = {}
        for place, row in enumerate(rows):
            missing = {example, system, preference} - row.keys()
            if missing:
                raise MetricError(
                    f"Row {place} has no {_shown(sorted(missing))}; its columns are {_shown(row)}."
                )
            self._add(row[example], str(row[system]), row[preference], place)
        if not self._values:
            raise MetricError("The table of preferences has no row.")

    def _add(self, example: object, system: str, value: object, place: int) -> None:
        where = f"Row {place} (example {example!r}, system {system!r})"
        if not isinstance(example, Hashable):
            raise MetricError(f"{where}: the example's id must be hashable.")
        if value is not None and not (isinstance(value, Real) and 0 <= float(value) <= 1):
            raise MetricError(
                f"{where}: the preference must be in [0, 1], or None where there is no judgement, "
                f"but is {value!r}."
            )
        judged = self._values.setdefault(system, {})
        if example in judged:
            raise MetricError(f"{where}: this example and system were there before.")
        judged[example] = None if value is None else float(value)

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems in the table, in the order of their first rows."""
        return tuple(self._values)

    def examples(self, system: str) -> tuple[Hashable, ...]:
        """Return the ids of the examples that ``system`` was judged on, in the table's order.

        Raises:
            MetricError: an unknown system.
        """
        return tuple(k for k, value in self._of(system).items() if value is not None)

    def of(
        self, system: str, examples: Sequence[Hashable], *, missing_as_nan: bool = False
    ) -> Vector:
        """Return the preference for ``system`` per example, in the order of ``examples``.

        Examples of the table that are not asked for are left out: they may be another split.

        Args:
            system: A name from the table.
            examples: Ids, at least one.
            missing_as_nan: Give NaN where the table has no judgement, instead of raising; at
                least one judgement must be there, else the ids are of another data set.

        Raises:
            MetricError: an unknown system, no example, or an example without a judgement.
        """
        table = self._of(system)
        if not examples:
            raise MetricError("`examples` must hold at least one id, but got 0.")
        values = [table.get(example) for example in examples]
        missing = [key for key, v in zip(examples, values, strict=True) if v is None]
        if missing and (not missing_as_nan or len(missing) == len(examples)):
            raise MetricError(
                f"{len(missing)} of {len(examples)} examples have no preference for {system!r}: "
                f"{_shown(missing)}. Ids in the table look like {_shown(table)}."
            )
        return np.array([np.nan if value is None else value for value in values])

    def _of(self, system: str) -> dict[Hashable, float | None]:
        if system not in self._values:
            raise MetricError(f"Unknown system {system!r}; the table has {_shown(self._values)}.")
        return self._values[system]


def _shown(items: Iterable[object]) -> str:
    every = [repr(item) for item in items]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def preferences(scores: Scores, reference: Scores, *, tolerance: float = 0.0) -> Vector:
    """Say per example whether ``scores`` wins (1), ties (0.5) or loses (0) against ``reference``.

    Works on the scores of any DSPy metric where more is better, on any scale. Differences of at
    most ``tolerance`` are ties. Swapping the arguments gives one minus the result.

    Raises:
        MetricError: lengths differ, nothing to compare, a score that is not finite, or a
            negative tolerance.
    """
    if not tolerance >= 0:
        raise MetricError(f"`tolerance` must be at least 0, but got {tolerance}.")
    ours, theirs = paired_vectors(scores, reference, names=("scores", "reference"))
    gap = ours - theirs
    return np.where(np.abs(gap) <= tolerance, 0.5, np.where(gap > 0, 1.0, 0.0))

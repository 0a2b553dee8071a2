"""The Pareto front of measured architectures, and its knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from moa_dspy.optimize.objectives import OBJECTIVES, Objective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits

_SCORES: Final = ("win_rate", "score")
_HIGH: Final = (*_SCORES, "diversity")
_DECIMALS: Final = 12
"""Means of the same numbers in another order are equal up to this."""

Point = tuple[float, ...]


def names_of(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return the names under which ``OBJECTIVES`` knows these."""
    known = {kind: name for name, kind in OBJECTIVES.items()}
    return tuple(known[type(one)] for one in objectives if type(one) in known)


def front(
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    *,
    limits: Limits | None = None,
    shrunk: Mapping[str, float] | None = None,
    diversity_weight: float = 0.0,
) -> tuple[TrialRecord, ...]:
    """Return the Pareto front of what was measured on all rows, best first objective first.

    Win rate and score are high, costs low. Diversity is no end in itself: it counts only
    where the user gave it a weight. Of several that are equal in everything, one stays, that with
    fewest calls. Empty where fewer than two objectives count.

    Args:
        records: Any order; those that were stopped early are left out.
        objectives: Names from ``OBJECTIVES``.
        limits: What a question may cost at most.
        shrunk: By architecture as text, what stands for its win rate and score, all of them on
            one scale; of records that it lacks, nothing is known well enough.
        diversity_weight: The user's.
    """
    counted = _counted(objectives, diversity_weight)
    admitted = [
        record
        for record in records
        if not record.is_stopped_early
        and (limits is None or limits.admit(record))
        and (shrunk is None or record.architecture in shrunk)
    ]
    if len(counted) < 2:
        return ()
    ordered = sorted(admitted, key=lambda record: (record.calls, record.architecture))
    points: dict[Point, TrialRecord] = {}
    for record in ordered:
        points.setdefault(_point(record, counted, shrunk), record)
    kept = [point for point in points if not any(_dominates(other, point) for other in points)]
    return tuple(points[point] for point in sorted(kept, reverse=True))


def knee(
    found: Sequence[TrialRecord],
    objectives: Sequence[str],
    *,
    shrunk: Mapping[str, float] | None = None,
    diversity_weight: float = 0.0,
) -> TrialRecord | None:
    """Return the point of a front that lies farthest beyond the line between its ends.

    Every objective is scaled to [0, 1] on the front. With two, the ends are (1, 0) and
    (0, 1), and the distance from their line grows with the sum of both (Das 1999, Structural
    Optimization 18, 107-115); with more, the plane through the corners takes the line's place.
    Of equals, the first. None with fewer than two objectives, or points.

    Args:
        found: What ``front`` returned.
        objectives: As given to ``front``, and so the rest.
        shrunk: See ``front``.
        diversity_weight: See ``front``.
    """
    counted = _counted(objectives, diversity_weight)
    if len(counted) < 2 or len(found) < 2:
        return None
    points = [_point(record, counted, shrunk) for record in found]
    lows = [min(values) for values in zip(*points, strict=True)]
    spans = [max(values) - min(values) for values in zip(*points, strict=True)]
    gains = [
        sum((v - low) / span for v, low, span in zip(point, lows, spans, strict=True) if span > 0)
        for point in points
    ]
    return found[max(range(len(found)), key=lambda i: round(gains[i], _DECIMALS))]


def _counted(objectives: Sequence[str], diversity_weight: float) -> tuple[str, ...]:
    return tuple(name for name in objectives if name != "diversity" or diversity_weight > 0)


def _point(
    record: TrialRecord, objectives: Sequence[str], shrunk: Mapping[str, float] | None
) -> Point:
    """Return the values of the objectives, each the better the higher."""
    values = []
    for name in objectives:
        value = float(getattr(record, name))
        if name in _SCORES and shrunk is not None:
            value = shrunk[record.architecture]
        values.append(round(value if name in _HIGH else -value, _DECIMALS))
    return tuple(values)


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))

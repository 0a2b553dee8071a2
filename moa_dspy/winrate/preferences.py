"""Preferences, recorded or from scores, and diagnostics of judges."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import atanh, sqrt, tanh
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import (
    Interval,
    Scores,
    Vector,
    check_share,
    mean_interval,
    paired_interval,
    paired_vectors,
    score_vector,
)

_SHOWN = 3


class RecordedPreferences:
    """A table of judgements: the preference for each system on each example."""

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
            raise MetricError(f"{where}: this example and system occur a second time.")
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
    """Return per example if ``scores`` wins (1), ties (0.5) or loses (0) against ``reference``.

    Works on the scores of any DSPy metric where more is better, on any scale. Differences of at
    most ``tolerance`` are ties. Swapping the arguments gives one minus the result.

    Raises:
        MetricError: lengths differ, nothing to compare, a score that is not finite, or a
            negative tolerance.
    """
    if not tolerance >= 0:
        raise MetricError(f"`tolerance` must be at least 0, but got {tolerance}.")
    vector, reference_vector = paired_vectors(scores, reference, names=("scores", "reference"))
    gap = vector - reference_vector
    return np.where(np.abs(gap) <= tolerance, 0.5, np.where(gap > 0, 1.0, 0.0))


@dataclass(frozen=True, slots=True)
class PositionConsistency:
    """The effect of the order of the two responses on a judge."""

    consistent: Interval
    """Share of examples with the same verdict in both orders, in [0, 1]; 1 is best."""
    first_advantage: Interval
    """Preference when shown first minus when shown second, in [-1, 1]; 0 is best."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two judges."""

    raw: Interval
    """Share of examples with the same verdict, in [0, 1]."""
    kappa: Interval | None
    """Cohen's kappa: 1 is perfect, 0 is chance, below 0 is worse. None where both judges give the
    same verdict on every example, as kappa is then 0 / 0."""


def position_consistency(
    shown_first: Scores, shown_second: Scores, *, confidence: float = 0.95
) -> PositionConsistency:
    """Compare a judge's preferences for one system when its response came first and second.

    Both are preferences for the same system, in [0, 1], on the same examples. A verdict is the
    side of 0.5 that a preference is on, so a win and a tie differ. Zheng et al.
    (arXiv:2306.05685, section 3.3) call the first number consistency.

    Raises:
        MetricError: lengths differ, no example, one outside [0, 1], or a bad confidence.
    """
    first, second = paired_vectors(
        shown_first, shown_second, names=("shown_first", "shown_second"), unit=True
    )
    same = (_verdicts(first) == _verdicts(second)).astype(np.float64)
    return PositionConsistency(
        mean_interval(same, confidence=confidence),
        paired_interval(first, second, confidence=confidence),
    )


def consistency_p(
    shown_first: Scores, shown_second: Scores, *, draws: int = 1_999, seed: int = 0
) -> float:
    """Return the p-value of a judge's consistency, against a judge that goes by position only.

    The verdicts of such a judge (first, second or neither) are draws from one distribution, so any
    two of them may belong to the same example. The permutation test pairs all verdicts at random;
    its statistic is the number of examples where the same response is preferred in both orders,
    minus those where the same position is. A judge that always prefers one position gets 1.

    Args:
        shown_first: Preferences for one system when its response came first, in [0, 1].
        shown_second: When it came second, on the same examples.
        draws: Number of random pairings.
        seed: Seed of the draws.

    Raises:
        MetricError: lengths differ, no example, or one outside [0, 1].
    """
    first, second = paired_vectors(
        shown_first, shown_second, names=("shown_first", "shown_second"), unit=True
    )
    leanings = np.concatenate([_verdicts(first), -_verdicts(second)])
    rng, n = np.random.default_rng([seed, first.size]), first.size
    same_place = float(leanings[:n] @ leanings[n:])
    drawn = (rng.permutation(leanings) for _ in range(draws))
    as_good = sum(float(sample[:n] @ sample[n:]) <= same_place for sample in drawn)
    return (1 + as_good) / (1 + draws)


def length_correlation(
    preferences: Scores, lengths: Scores, baseline_lengths: Scores, *, confidence: float = 0.95
) -> Interval:
    """Correlate preferences with the excess length of the responses; above 0: longer ones win.

    Spearman's rank correlation, ties at mid-ranks, in [-1, 1]; the interval is Fisher's z with
    Bonett and Wright's (Psychometrika 65, 2000) variance (1 + r^2 / 2) / (n - 3). A perfect
    correlation is bounded as if two neighbours were swapped, so the interval has a width. A
    correlation is no proof of bias, as longer responses may be better.

    Raises:
        MetricError: lengths differ in number, fewer than 4 examples, a preference outside
            [0, 1], preferences or length differences that are all equal, or a bad confidence.
    """
    check_share(confidence, name="confidence")
    own, other = paired_vectors(lengths, baseline_lengths, names=("lengths", "baseline_lengths"))
    longer = own - other
    wins, _ = paired_vectors(
        score_vector(preferences, name="preferences", unit=True),
        longer,
        names=("preferences", "lengths"),
    )
    if wins.size < 4:
        raise MetricError(f"A correlation needs at least 4 examples, but got {wins.size}.")
    for name, values in (("preferences", wins), ("length differences", longer)):
        if np.ptp(values) == 0:
            raise MetricError(f"All {name} are {values[0]:g}: nothing can correlate with them.")
    correlation = _spearman(wins, longer)
    low, high = _fisher(correlation, wins.size, confidence)
    return Interval(correlation, min(low, correlation), max(high, correlation), confidence)


def judge_agreement(a: Scores, b: Scores, *, confidence: float = 0.95) -> Agreement:
    """Compare the verdicts of two judges (win, tie, loss: the side of 0.5) on the same examples.

    Cohen's kappa (1960) corrects for the agreement of judges that give the same shares of verdicts
    at random; its interval is Fleiss, Cohen and Everitt's (Psychological Bulletin 72,
    1969), for large samples: judges that never differ get 1 to 1, and then only the
    interval of ``raw`` shows the uncertainty. Swapping the judges changes nothing.

    Raises:
        MetricError: lengths differ, no example, one outside [0, 1], or a bad confidence.
    """
    first, second = paired_vectors(a, b, unit=True)
    first_verdicts, second_verdicts = _verdicts(first), _verdicts(second)
    raw = mean_interval(
        (first_verdicts == second_verdicts).astype(np.float64), confidence=confidence
    )
    table = np.zeros((3, 3))
    np.add.at(
        table,
        (first_verdicts.astype(int) + 1, second_verdicts.astype(int) + 1),
        1 / first_verdicts.size,
    )
    return Agreement(raw, _kappa(table, first_verdicts.size, confidence))


def _verdicts(preferences: Vector) -> Vector:
    verdicts: Vector = np.sign(preferences - 0.5)
    return verdicts


def _spearman(a: Vector, b: Vector) -> float:
    # Imported here: scipy costs a second that most callers of this package never need.
    from scipy.stats import spearmanr

    result: Any = spearmanr(a, b)
    return float(np.clip(result.statistic, -1.0, 1.0))


def _fisher(correlation: float, n: int, confidence: float) -> tuple[float, float]:
    # Swapping two neighbours of n ranks takes off 12 / (n^3 - n), the least possible.
    largest = 1 - 12 / (n**3 - n)
    centre = atanh(min(max(correlation, -largest), largest))
    error = sqrt((1 + correlation**2 / 2) / (n - 3))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return tanh(centre - half), tanh(centre + half)


def _kappa(table: Vector, n: int, confidence: float) -> Interval | None:
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    by_chance, observed = float(rows @ columns), float(np.trace(table))
    if 1 - by_chance < 1e-12:
        return None
    kappa = (observed - by_chance) / (1 - by_chance)
    # Derivative of kappa by each cell's share; kappa's variance is the derivative's, over n.
    chance = columns[:, None] + rows[None, :]
    slope = np.eye(3) / (1 - by_chance) - chance * (1 - observed) / (1 - by_chance) ** 2
    variance = float((table * slope**2).sum() - (table * slope).sum() ** 2) / n
    half = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(max(variance, 0.0))
    return Interval(kappa, max(kappa - half, -1.0), min(kappa + half, 1.0), confidence)

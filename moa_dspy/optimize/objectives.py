"""Objectives of a study, computed from measurements, and the best architectures by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from math import hypot, inf, isfinite
from numbers import Real
from statistics import fmean
from typing import Any, ClassVar, Final, Literal, Protocol

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import Disagreement, DiversityMetric, PairwiseMetric
from moa_dspy.errors import MetricError, StudyError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import (
    CAUTION,
    Choice,
    Evidence,
    Limits,
    gains_over,
    key_of,
    of_all_members,
    stops_early,
)
from moa_dspy.optimize.space.programs import read_architecture
from moa_dspy.optimize.votes.ballots import StopRule
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS
from moa_dspy.optimize.votes.weights import stop_early


@dataclass(frozen=True, slots=True)
class MeasuredArchitecture:
    """The measurements of one architecture that objectives read, per example, in one order.

    Attributes:
        scores: The metric.
        reference: The metric of the best single agent; None if scores are preferences over a
            reference, which are win rates already.
        layers: Texts that the last step read.
        calls: Requests.
        usd: Price.
        seconds: Time to the answer.
    """

    scores: Sequence[float]
    reference: Sequence[float] | None
    layers: Sequence[Sequence[str]]
    calls: Sequence[float]
    usd: Sequence[float]
    seconds: Sequence[float]


class Objective(Protocol):
    """Reduces measurements to one finite float, without a call, so it can be recomputed."""

    direction: ClassVar[Literal["maximize", "minimize"]]

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """Return the value, the mean of ``rows``; ``measured`` holds at least one example."""
        return fmean(self.rows(measured))

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """Return the value of each example."""
        ...


@dataclass(frozen=True, slots=True)
class CallsObjective(Objective):
    """Requests to models per question."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        return measured.calls


@dataclass(frozen=True, slots=True)
class UsdObjective(Objective):
    """Price per question, at the pool's prices; a stored call counts with its original cost."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        return measured.usd


@dataclass(frozen=True, slots=True)
class SecondsObjective(Objective):
    """Time to the answer per question: the slowest proposer of each layer, then the aggregator."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        return measured.seconds


@dataclass(frozen=True, slots=True)
class DiversityObjective(Objective):
    """Mean diversity of the texts that the last step reads; 0 for a single agent."""

    metric: DiversityMetric = field(default_factory=Disagreement)
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    _known: dict[tuple[str, ...], float] = field(
        default_factory=dict[tuple[str, ...], float], compare=False, repr=False
    )

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        return [self._of(tuple(texts)) for texts in measured.layers]

    def _of(self, texts: tuple[str, ...]) -> float:
        if texts not in self._known:
            value = self.metric(texts) if texts else 0.0
            if not isinstance(value, Real) or not isfinite(value):
                raise MetricError(f"`diversity` must give a finite number, but gave {value!r}.")
            self._known[texts] = float(value)
        return self._known[texts]


def mean_distances(
    metric: DiversityMetric, texts: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float]:
    """Return the mean diversity of the texts of each pair of agents, with names in order."""
    names = sorted(texts)
    pairs = list(combinations(range(len(names)), 2))
    distances: list[list[float]] = []
    for row in zip(*(texts[name] for name in names), strict=True):
        if isinstance(metric, PairwiseMetric):
            alike = metric.pairs(row)
            distances.append([float(1.0 - alike[i, j]) for i, j in pairs])
        else:
            distances.append([metric((row[i], row[j])) for i, j in pairs])
    means = map(fmean, zip(*distances, strict=True))
    return {(names[i], names[j]): mean for (i, j), mean in zip(pairs, means, strict=True)}


@dataclass(frozen=True, slots=True)
class WinRateObjective(Objective):
    """Share of examples won against the best single agent, ties counting one half.

    It is 0.5 for the best single agent itself. If a judge picks, it is the mean preference over the
    study's reference.
    """

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        if measured.reference is None:
            return measured.scores
        pairs = zip(measured.scores, measured.reference, strict=True)
        return [1.0 if score > other else 0.5 if score == other else 0.0 for score, other in pairs]


@dataclass(frozen=True, slots=True)
class ScoreObjective(Objective):
    """Mean of the metric."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def rows(self, measured: MeasuredArchitecture, /) -> Sequence[float]:
        """See the protocol."""
        return measured.scores


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "calls": CallsObjective,
    "diversity": DiversityObjective,
    "score": ScoreObjective,
    "seconds": SecondsObjective,
    "usd": UsdObjective,
    "win_rate": WinRateObjective,
}
"""Objectives by their names in study files. Adding a line here is the registration."""

_SCORES: Final = ("win_rate", "score")
_HIGH: Final = (*_SCORES, "diversity")
_DECIMALS: Final = 12
"""Digits that are compared: means of the same numbers in different orders agree up to these."""

Point = tuple[float, ...]


def names_of(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return the names of these objectives in ``OBJECTIVES``."""
    name_of = {kind: name for name, kind in OBJECTIVES.items()}
    return tuple(name_of[type(objective)] for objective in objectives if type(objective) in name_of)


def front(
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    *,
    limits: Limits | None = None,
    shrunk: Mapping[str, float] | None = None,
) -> tuple[TrialRecord, ...]:
    """Return the Pareto front of the trials on all rows, best by the first objective first.

    Win rate and score are maximised, costs minimised; trials with an unknown value are left out.
    Diversity is no objective here: a weight that the user gave it is in the shrunken scores. Of
    trials that are equal in all objectives, that with fewest calls is kept. Empty if there are
    fewer than two objectives.

    Args:
        records: Trials in any order; those that were stopped early are left out.
        objectives: Names from ``OBJECTIVES``.
        limits: Maximum costs of a question.
        shrunk: Per architecture as text, a shrunken estimate that replaces win rate and score, all
            on one scale; records that are not in it are left out, as too little is known of them.
    """
    counted = _counted(objectives)
    admitted = [
        record
        for record in records
        if not record.is_stopped_early
        and all(getattr(record, name) is not None for name in counted)
        and (limits is None or limits.admit(record))
        and (shrunk is None or record.architecture in shrunk)
    ]
    if len(counted) < 2:
        return ()
    known = {record.architecture: record for record in admitted}
    # A vote that gives its tie-breaker's answers has another shrunken score than that agent.
    kept = [record for record in admitted if not _is_idle_vote(record, known)]
    ordered = sorted(kept, key=lambda record: (record.calls, record.architecture))
    points: dict[Point, TrialRecord] = {}
    for record in ordered:
        points.setdefault(_point(record, counted, shrunk), record)
    best = [point for point in points if not any(_dominates(other, point) for other in points)]
    return tuple(points[point] for point in sorted(best, reverse=True))


def _is_idle_vote(record: TrialRecord, known: Mapping[str, TrialRecord]) -> bool:
    """True for a vote of two that gave the answers of its tie-breaker, which is ``known``."""
    vote = read_architecture(record.architecture)
    alone = known.get(vote.aggregator or "")
    is_vote_of_two = vote.combine == "vote" and len(vote.agents) == 2
    return is_vote_of_two and alone is not None and alone.score == record.score


def knee(
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    *,
    shrunk: Mapping[str, float] | None = None,
) -> TrialRecord | None:
    """Return the knee of a front: the point farthest beyond the line between its ends.

    Every objective is scaled to [0, 1] on the front. With two objectives, the ends are (1, 0) and
    (0, 1), and the distance from the line grows with the sum of both (Das 1999, Structural
    Optimization 18, 107-115); with more, the plane through the corners replaces the line.
    Ties go to the first point. None with fewer than two objectives or points.

    Args:
        records: The result of ``front``.
        objectives: See ``front``.
        shrunk: See ``front``.
    """
    counted = _counted(objectives)
    if len(counted) < 2 or len(records) < 2:
        return None
    points = [_point(record, counted, shrunk) for record in records]
    lows = [min(values) for values in zip(*points, strict=True)]
    spans = [max(values) - min(values) for values in zip(*points, strict=True)]
    gains = [
        sum((v - low) / span for v, low, span in zip(point, lows, spans, strict=True) if span > 0)
        for point in points
    ]
    return records[max(range(len(records)), key=lambda i: round(gains[i], _DECIMALS))]


def _counted(objectives: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in objectives if name != "diversity")


def _point(
    record: TrialRecord, objectives: Sequence[str], shrunk: Mapping[str, float] | None
) -> Point:
    """Return the values of the objectives, with signs such that higher is better."""
    values: list[float] = []
    for name in objectives:
        value = float(getattr(record, name))
        if name in _SCORES and shrunk is not None:
            value = shrunk[record.architecture]
        values.append(round(value if name in _HIGH else -value, _DECIMALS))
    return tuple(values)


def _dominates(point: Point, other: Point) -> bool:
    return point != other and all(a >= b for a, b in zip(point, other, strict=True))


def within_limits(trials: Sequence[TrialRecord], limits: Limits) -> list[TrialRecord]:
    """Return the trials that may be picked: measured on all rows, and within the limits.

    Raises:
        StudyError: If there is no such trial.
    """
    fair = [trial for trial in trials if not trial.is_stopped_early and limits.admit(trial)]
    if not fair:
        given = {name: value for name, value in asdict(limits).items() if value is not None}
        shown = ", ".join(f"{name} = {value:g}" for name, value in given.items())
        raise StudyError(
            f"No architecture stays within the limits ({shown or 'none'}); even the single agents "
            "exceed them."
        )
    return fair


_MARGIN: Final = 4.0
"""An agent's usd and seconds are taken to be at least this part of those of one question."""


def check_about_one_within(limits: Limits, found: Mapping[str, Any]) -> None:
    """Check as ``check_one_within``, where the costs are known from one question, or estimated.

    Args:
        limits: Maximum costs of a question.
        found: By agent an object with ``calls``, which are exact, ``usd`` and ``seconds``.

    Raises:
        StudyError: If no agent can stay within the limits.
    """
    costs = {
        agent: {"calls": o.calls, "usd": o.usd / _MARGIN, "seconds": o.seconds / _MARGIN}
        for agent, o in found.items()
    }
    check_one_within(limits, costs, takes="takes at least about")


def check_one_within(
    limits: Limits, costs: Mapping[str, Mapping[str, float]], *, takes: str = "takes"
) -> None:
    """Check that a single agent stays within the limits, as a mixture costs no less.

    Args:
        limits: Maximum costs of a question.
        costs: Costs of a question to each agent, by the names of the limits.
        takes: Verb of the message.

    Raises:
        StudyError: If none does; the message has the cost of each.
    """
    if any(limits.allow(**cost) for cost in costs.values()):
        return
    given = {name: value for name, value in asdict(limits).items() if value is not None}
    shown = "; ".join(
        f"{agent} {takes} {', '.join(f'{cost[name]:.3g} {name}' for name in given)}"
        for agent, cost in costs.items()
    )
    raise StudyError(
        f"`limits` allow {', '.join(f'{value:g} {name}' for name, value in given.items())} for a "
        f"question, but no agent answers within that: {shown}. Raise them, or add another agent."
    )


def best_on_val(
    trials: Sequence[TrialRecord], *, limits: Limits | None = None, diversity_weight: float = 0.0
) -> TrialRecord:
    """Return the trial with the highest win rate; ties go to fewer calls, then less money.

    Random search and baselines choose in this way, without regard to luck on val.

    Raises:
        StudyError: If no trial stays within the limits.
    """
    return min(
        within_limits(trials, limits or Limits()),
        key=lambda t: (
            -round(t.win_rate + diversity_weight * t.diversity, 12),
            t.calls,
            t.usd or 0.0,  # an unknown price breaks no tie
            read_architecture(t.architecture).calls,
            t.architecture,
        ),
    )


NEGLIGIBLE: Final = 1 / 6
"""Part of the smallest gain worth having: a loss below it is accepted for a lower cost."""


def stopping_vote(
    evidence: Evidence,
    vote: Architecture,
    stops: Sequence[StopRule],
    *,
    min_gain: float,
    asks_all: bool = False,
) -> Architecture | None:
    """Return the vote with the admitted stopping rule that makes the fewest calls.

    The loss is computed on redrawn answers, without calls. A rule is admitted if a loss of a sixth
    of ``min_gain`` is excluded at 5 %. None if no rule is admitted, or none saves a call.
    ``asks_all``: members are asked at once, so that no lead saves a call.
    """
    members, ballots = vote.layers[-1], evidence.ballots
    # If a larger group agrees, the remaining members cannot change the answer anyway.
    half = len(members) // 2
    fit = [rule for rule in stops if (rule[1] <= half if rule[0] == "agree" else not asks_all)]
    if ballots is None or len(members) < 3 or not fit:
        return None
    best_first = tuple(sorted(members, key=evidence.ranking.index))
    weights, seed = dict(vote.weights), evidence.seed
    stopping = stop_early(ballots, best_first, fit, weights, seed=seed, asks_all=asks_all)
    is_fair = stopping.gains - CAUTION * stopping.errors >= -NEGLIGIBLE * min_gain
    calls = np.where(is_fair, stopping.calls, inf)
    if calls.min() >= stopping.exact_calls:
        return None
    kind, value = stopping.stops[int(calls.argmin())]
    group, lead = (int(value), None) if kind == "agree" else (None, value)
    return replace(vote, aggregator=best_first[0], order=best_first, agree=group, lead=lead)


def cheapest_as_good(
    evidence: Evidence,
    choice: Choice,
    records: Mapping[Architecture, TrialRecord],
    *,
    cost: str,
    min_gain: float,
    pseudo: int = PSEUDO_ROWS,
) -> TrialRecord | None:
    """Return the cheapest trial that val shows to be no worse than the pick; None if none is.

    Candidates are votes and agents that were measured on all rows and may be picked, for which a
    loss of a sixth of ``min_gain`` is excluded at 5 %, paired by row: by cross-fitting, and on
    redrawn answers. Other architectures cannot be judged in this way.
    """
    evidence, picked, ranking = evidence.counted(pseudo), choice.picked, evidence.ranking
    whole = of_all_members(picked, ranking) if stops_early(picked) else picked
    gains = gains_over(evidence, key_of(whole), pseudo=pseudo)
    own, spread, _ = gains.get(key_of(picked), (0.0, 0.0, 0.0))
    as_good = [records[picked]]
    for candidate in evidence.measured:
        gain, error, _ = gains.get(key_of(candidate.architecture), (-inf, 0.0, 0.0))
        bound = gain - own - CAUTION * hypot(error, spread)
        if candidate.is_whole and candidate.is_admitted and bound >= -NEGLIGIBLE * min_gain:
            as_good.append(records[candidate.architecture])
    priced = [record for record in as_good if getattr(record, cost) is not None]
    best = min(priced, key=lambda r: (getattr(r, cost), -r.score), default=as_good[0])
    return None if best is as_good[0] else best

"""The rule of the pick: the incumbent, unless another architecture is better.

Better on rows with which it was not chosen, or beyond noise. The incumbent is the best vote of
single agents with equal weights, or the best single agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import hypot
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.files import check_limits
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.votes.ballots import Ballots, StopRule
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS, SmoothedVotes, smooth
from moa_dspy.optimize.votes.weights import (
    N_PARTITIONS,
    CrossFittedVotes,
    VoteWeights,
    cross_fit,
    stop_early,
)

_Rows = NDArray[np.intp]
ScoreMatrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CandidateScores:
    """An architecture with its score on every row of val; NaN on rows after it was stopped.

    ``bonus`` is added to its score: the user's weight on diversity, times its diversity.
    """

    architecture: Architecture
    scores: ScoreMatrix
    calls: float
    usd: float
    bonus: float = 0.0
    is_admitted: bool = True

    @property
    def is_whole(self) -> bool:
        """True if it was measured on all rows."""
        return not np.isnan(self.scores).any()


class Shrink(Protocol):
    """Shrinks measured scores towards the scores of similar architectures."""

    def __call__(
        self, evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return the gain of each of ``measured`` over the incumbent, and the error of each gain.

        The incumbent is among them; what was stopped early is in ``evidence`` only.
        """
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured on val, as numbers; a choice made from it asks nothing more.

    Attributes:
        singles: Score per row of each agent alone, in the pool's order.
        measured: Architectures that may be picked, and those that were stopped early.
        ballots: The answers of each agent alone; None where no vote is allowed or possible.
        widths: Fewest and most members of a vote.
        admits: Whether a vote of these members may be picked.
        shrink: Estimates the gains of architectures that are not plain votes.
        seed: Seed of the redrawing of answers.
        admits_weighted: Whether these members may vote with weights; None allows no weights.
        smoothed: Every vote on redrawn answers, if that was computed already.
        ways: Votes of the best agents, equal and weighted, if that was computed already.
    """

    singles: Mapping[str, ScoreMatrix]
    measured: tuple[CandidateScores, ...]
    ballots: Ballots | None
    widths: tuple[int, int]
    admits: Callable[[tuple[str, ...]], bool]
    shrink: Shrink
    seed: int
    admits_weighted: Callable[[tuple[str, ...]], bool] | None = None
    smoothed: SmoothedVotes | None = None
    ways: CrossFittedVotes | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows of val."""
        return len(next(iter(self.singles.values())))

    @property
    def ranking(self) -> tuple[str, ...]:
        """Agents by their score alone, best first; the pool's order breaks ties."""
        return tuple(sorted(self.singles, key=lambda name: -round(self.singles[name].mean(), 12)))

    def take(self, rows: _Rows) -> Evidence:
        """Return the evidence of these rows alone."""
        return replace(
            self,
            singles={name: scores[rows] for name, scores in self.singles.items()},
            measured=tuple(replace(entry, scores=entry.scores[rows]) for entry in self.measured),
            ballots=None if self.ballots is None else self.ballots.take(rows),
            smoothed=None,
            ways=None,
        )

    def counted(self, pseudo: int) -> Evidence:
        """Return the evidence with all votes scored on redrawn answers; makes no call.

        Args:
            pseudo: Number of redrawn questions; proportionally fewer for less than 90 rows.
        """
        if self.ballots is None:
            return self
        pseudo = round(pseudo * min(1.0, self.n_rows / FULL_ROWS))
        smoothed, ways = self.smoothed, self.ways
        if smoothed is None:
            smoothed = smooth(
                self.ballots,
                widths=range(self.widths[0], self.widths[1] + 1),
                seed=self.seed,
                admits=self.admits,
                pseudo=pseudo,
            )
        if ways is None:
            ways = cross_fit(
                self.ballots,
                widths=self.widths,
                seed=self.seed,
                admits=self.admits,
                admits_weighted=self.admits_weighted,
                columns=max(1, pseudo // COLUMNS_SHARE),
                # A choice that is one of many needs no partitions: their mean reduces the noise.
                partitions=N_PARTITIONS if pseudo >= FULL_PSEUDO else 1,
            )
        return replace(self, smoothed=smoothed, ways=ways)


VoteGain: TypeAlias = tuple[float, float, float]
"""A gain, its standard error, and the number of errors that are subtracted."""
Key: TypeAlias = tuple[str, ...] | Architecture
"""The names of different agents that vote, or of a single one; else the architecture."""

ALWAYS_TIED = 4
"""With at most so many voters every vote is tied if any is, so the first of them decides alone."""


def key_of(architecture: Architecture) -> Key:
    """Return a key that all forms of one plain vote share, whichever agent decides its ties."""
    if not architecture.layers:
        return (str(architecture),)
    is_vote = architecture.combine == "vote" and architecture.chooses_among_singles
    if not is_vote or architecture.weights or stops_early(architecture):
        return architecture
    return tuple(sorted(architecture.layers[-1]))


def stops_early(architecture: Architecture) -> bool:
    """True if it is a vote of different agents that may stop before it is decided."""
    may_stop = (architecture.agree, architecture.lead) != (None, None)
    return may_stop and architecture.combine == "vote" and architecture.chooses_among_singles


def of_all_members(architecture: Architecture, ranking: Sequence[str]) -> Architecture:
    """Return the same vote without a rule that stops it before it is decided."""
    return canonical_evidence(replace(architecture, agree=None, lead=None, order=()), ranking)


def architecture_of(members: VoteWeights | Sequence[str], ranking: Sequence[str]) -> Architecture:
    """Return the vote of these members, with their weights if it has any, or the single one."""
    if len(members) == 1:
        return Architecture.single(next(iter(members)))
    weights = tuple(members.items()) if isinstance(members, Mapping) else ()
    seats = (tuple(sorted(members)),)
    return canonical_evidence(Architecture(seats, None, "vote", weights=weights), ranking)


def canonical_evidence(architecture: Architecture, ranking: Sequence[str]) -> Architecture:
    """Return a vote with its best voters as tie-breakers, so that equal votes compare equal.

    As many are named as it can take to find one whose answer is tied: of n voters at most n - 4
    have another answer (two pairs are tied, and no other agent agrees). With weights the best
    voter is enough, as ties then go to the heaviest.
    """
    if architecture.combine != "vote":
        return architecture
    voters = sorted(architecture.layers[-1], key=ranking.index)
    first, *rest = dict.fromkeys(voters[: max(1, len(voters) - ALWAYS_TIED + 1)])
    order = () if architecture.weights else tuple(rest)
    return replace(architecture, aggregator=first, order=order)


CAUTION: Final = 1.645
"""Standard errors subtracted from a gain that was not cross-fitted, over a vote: one-sided 5 %."""
SINGLE_CAUTION: Final = 0.84
"""The same over a single agent: fewer, as the pick is tested against that agent afterwards, on
as many new rows. A gain of z(0.95) + z(0.8) errors is found by that test in 80 % of studies; with
z(0.8) errors subtracted here, it fails to be picked in 5 %."""
FULL_ROWS: Final = 90
"""Rows from which on all are redrawn; with fewer, noise of the rows outweighs the rest."""
FULL_PSEUDO: Final = 60_000
"""Redrawn questions from which on cross-fitted votes are made in three partitions of the rows."""
COLUMNS_SHARE: Final = 10
"""Redrawn questions for all votes, divided by those for a partition of cross-fitted votes."""
N_UNMEASURED: Final = 5
"""Best votes that were not trials and may still be picked."""


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate of the pick: its gain over the incumbent, and that gain's standard error.

    ``caution`` is the number of errors that are subtracted: none from a gain that was
    cross-fitted, which is unbiased.
    """

    architecture: Architecture
    gain: float
    error: float
    calls: float
    usd: float
    caution: float = CAUTION

    @property
    def cautious_gain(self) -> float:
        """The gain less ``caution`` errors, as chance may have added to it."""
        return round(self.gain - self.caution * self.error, 12)


@dataclass(frozen=True, slots=True)
class Choice:
    """The picked architecture, the incumbent, and all options, best first."""

    picked: Architecture
    incumbent: Architecture
    options: tuple[Option, ...]
    ranking: tuple[str, ...]

    def scores(self, evidence: Evidence) -> ScoreMatrix:
        """Return the score of the pick on each row of ``evidence``: those of the choice, or others.

        The agent that wins the ties of a vote is the one best on the rows of the choice.
        """
        key, ballots = key_of(self.picked), evidence.ballots
        if ballots is not None and isinstance(key, tuple):
            return ballots.vote(key, ranking=self.ranking)
        is_whole = self.picked.chooses_among_singles and not stops_early(self.picked)
        if ballots is not None and self.picked.weights and is_whole:
            members, weights = self.picked.layers[-1], dict(self.picked.weights)
            return ballots.vote(members, ranking=self.ranking, weights=weights)
        return next(m.scores for m in evidence.measured if key_of(m.architecture) == key)


class _Votes:
    """Votes by key: cross-fitted ones, and all others as scored on redrawn answers."""

    def __init__(self, evidence: Evidence) -> None:
        self.ways, self._smoothed = evidence.ways, evidence.smoothed
        votes = () if self.ways is None else self.ways.votes
        ranking = evidence.ranking if self.ways is None else self.ways.ranking
        self.architectures = [architecture_of(_plain(vote), ranking) for vote in votes]
        self.places = {key_of(architecture): i for i, architecture in enumerate(self.architectures)}
        layers = () if self._smoothed is None else self._smoothed.layers
        self.layers = {tuple(sorted(layer)): layer for layer in layers}

    @property
    def several(self) -> set[Key]:
        """All votes of more than one member."""
        return {key for key in (*self.layers, *self.places) if not _is_single(key)}

    def best_equal(self, allowed: AbstractSet[Key]) -> Key | None:
        """Return the best allowed of the cross-fitted votes without weights and single agents."""
        if self.ways is None:
            return None
        means = self.ways.smoothed.mean(1).round(12)
        fair = [key for key in self.places if isinstance(key, tuple) and key in allowed]
        return max(fair, key=lambda key: (means[self.places[key]], -len(key)), default=None)

    def gains(self, incumbent: Key) -> dict[Key, VoteGain]:
        """Return the gain over ``incumbent`` of every known vote.

        Two votes are compared in the same way: both cross-fitted, or both on all rows.
        """
        by_key: dict[Key, VoteGain] = {}
        if isinstance(incumbent, tuple) and incumbent in self.layers:
            assert self._smoothed is not None  # it has the layers
            gained = zip(self.layers, *self._smoothed.gains(self.layers[incumbent]), strict=True)
            by_key = {key: (float(gain), float(error), CAUTION) for key, gain, error in gained}
        if self.ways is not None and incumbent in self.places:
            gains, errors = self.ways.gains(self.places[incumbent])
            for key, i in self.places.items():
                by_key[key] = float(gains[i]), float(errors[i]), 0.0
        return by_key


def _plain(vote: VoteWeights) -> VoteWeights | tuple[str, ...]:
    return tuple(vote) if len(set(vote.values())) == 1 else vote


def _is_single(key: Key) -> bool:
    return isinstance(key, tuple) and len(key) == 1


def choose(
    evidence: Evidence, *, pseudo: int = PSEUDO_ROWS, may_be_unmeasured: bool = False
) -> Choice:
    """Return the architecture with the greatest cautious gain; on a tie the one with fewer calls.

    The incumbent is the best vote of the best agents with equal weights, of any number, or the
    best agent alone, by cross-fitting (``votes.weights.cross_fit``). Votes with learned weights
    are cross-fitted too, so nothing is subtracted from their gains. Other votes of different
    agents are scored on redrawn answers (``votes.smooth``), and all other architectures by
    ``evidence.shrink``; some of their errors are subtracted from these gains.

    Args:
        evidence: All that was measured.
        pseudo: Number of redrawn questions; proportionally fewer for less than 90 rows.
        may_be_unmeasured: Whether a vote may be picked that was not a trial, as the answers of
            its members are known.

    Raises:
        StudyError: If nothing stays within the limits.
    """
    evidence = evidence.counted(pseudo)
    votes = _Votes(evidence)
    entries = {key_of(m.architecture): m for m in evidence.measured if m.is_whole and m.is_admitted}
    allowed = set(entries) | (votes.several if may_be_unmeasured else set())
    if not allowed:
        raise StudyError(
            "No architecture stays within the limits; even the single agents exceed them."
        )
    key = votes.best_equal(allowed) or _best_single(evidence, allowed)
    gains = gains_over(evidence, key, pseudo=pseudo)
    free = sorted(
        (vote for vote in gains if vote in allowed and vote not in entries and vote != key),
        key=lambda vote: gains[vote][2] * gains[vote][1] - gains[vote][0],
    )
    new = (vote for vote in (key, *free[:N_UNMEASURED]) if vote not in entries)
    entries |= {vote: _unmeasured(evidence, vote, votes) for vote in new}
    others = [other for other in entries if other not in gains]
    caution = SINGLE_CAUTION if _is_single(key) else CAUTION
    shrunk = _shrunk(evidence, entries[key], entries) if others or not gains else {}
    gained = {other: (*pair, caution) for other, pair in shrunk.items()}
    gained |= {vote: gains[vote] for vote in gains if vote in entries}
    options = [_option(entries[name], entries[key], *gain) for name, gain in gained.items()]
    options.sort(key=_first)
    incumbent = entries[key].architecture
    return Choice(options[0].architecture, incumbent, tuple(options), evidence.ranking)


def gains_over(evidence: Evidence, incumbent: Key, *, pseudo: int) -> dict[Key, VoteGain]:
    """Return gains of votes over ``incumbent``; for a vote with a stop rule, with its effect."""
    gains = _Votes(evidence).gains(incumbent)
    for vote in (m.architecture for m in evidence.measured if stops_early(m.architecture)):
        whole = gains.get(key_of(of_all_members(vote, evidence.ranking)))
        if whole is None or evidence.ballots is None:
            continue
        gain, error, caution = whole
        stop: StopRule = ("agree", vote.agree) if vote.agree else ("lead", vote.lead or 0)
        read = [vote.layers[-1][seat] for seat in vote.reading]
        decider = vote.aggregator or read[0]
        if vote.agree and decider != read[0]:
            continue  # the group that must agree is then not that of the members asked first
        read.sort(key=lambda name: name != decider)
        weights, columns = dict(vote.weights), max(1, pseudo // COLUMNS_SHARE)
        seed, ballots = evidence.seed, evidence.ballots
        stopped = stop_early(ballots, read, [stop], weights, seed=seed, columns=columns)
        change, spread = float(stopped.gains[0]), float(stopped.errors[0])
        taken, both = caution * error + CAUTION * spread, hypot(error, spread)
        gains[vote] = gain + change, both, taken / both if both else 0.0
    return gains


def _best_single(evidence: Evidence, allowed: AbstractSet[Key]) -> Key:
    """Return the best agent; where none is allowed, the first architecture by name."""
    singles = ((name,) for name in evidence.ranking if (name,) in allowed)
    return next(singles, None) or min(allowed, key=str)


def _unmeasured(evidence: Evidence, key: Key, votes: _Votes) -> CandidateScores:
    assert evidence.ballots is not None  # a key of a vote comes from ballots
    ranking = evidence.ranking
    if isinstance(key, tuple):
        scores = evidence.ballots.vote(key, ranking=ranking)
        return CandidateScores(architecture_of(key, ranking), scores, calls=len(key), usd=0.0)
    architecture = votes.architectures[votes.places[key]]
    scores = Choice(architecture, architecture, (), ranking).scores(evidence)
    return CandidateScores(architecture, scores, calls=architecture.calls, usd=0.0)


def _shrunk(
    evidence: Evidence, incumbent: CandidateScores, entries: Mapping[Key, CandidateScores]
) -> dict[Key, tuple[float, float]]:
    measured = [m for m in evidence.measured if entries.get(key_of(m.architecture)) is m]
    if incumbent not in measured:
        measured.append(incumbent)
    gains, errors = evidence.shrink(evidence, incumbent, measured)
    pairs = zip(gains, errors, strict=True)
    return {key_of(m.architecture): pair for m, pair in zip(measured, pairs, strict=True)}


def _option(
    entry: CandidateScores, incumbent: CandidateScores, gain: float, error: float, caution: float
) -> Option:
    gain += entry.bonus - incumbent.bonus
    return Option(entry.architecture, gain, error, entry.calls, entry.usd, caution)


def _first(option: Option) -> tuple[float, float, float, int, str]:
    architecture = option.architecture
    # By the measured calls a vote of two that stops early may cost no more than a single agent.
    return (-option.cautious_gain, option.calls, option.usd, architecture.calls, str(architecture))


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a question may cost; None means no limit. A pick never exceeds one.

    Raises:
        StudyError: If a limit is not positive, or infinite.
    """

    calls: float | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_limits(self, ("calls", "usd", "seconds"), table="limits")

    def admit(self, trial: TrialRecord) -> bool:
        """True if the trial stays within every limit."""
        return self.allow(calls=trial.calls, usd=trial.usd, seconds=trial.seconds)

    def allow(self, *, calls: float, usd: float | None, seconds: float | None) -> bool:
        """True if these costs of a question stay within every limit; an unknown one does not."""
        pairs = ((self.calls, calls), (self.usd, usd), (self.seconds, seconds))
        return all(
            limit is None or (value is not None and value <= limit) for limit, value in pairs
        )

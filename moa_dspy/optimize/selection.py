"""The rule of the pick: leave the incumbent only as far as the evidence carries.

Also the score that the whole way of choosing promises on new rows, by cross-fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS, SHORTLIST, SmoothedVotes, smooth
from moa_dspy.winrate import Interval, mean_interval

_Rows = NDArray[np.intp]
ScoreMatrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CandidateScores:
    """An architecture with its score on every row of val; NaN where it was stopped before.

    ``bonus`` is what a user's weight on diversity adds to its score.
    """

    architecture: Architecture
    scores: ScoreMatrix
    calls: float
    usd: float
    bonus: float = 0.0
    is_admitted: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether it was measured on all rows."""
        return not np.isnan(self.scores).any()


class Shrink(Protocol):
    """Shrinks measured scores towards what is known of such architectures."""

    def __call__(
        self, evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return the gain of each of ``measured`` over the incumbent, one of them, and its error.

        What was stopped early is in ``evidence`` only.
        """
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured on val, as numbers: what a choice is made from, at no further call.

    Attributes:
        singles: Score per row of each agent alone, in the pool's order.
        measured: What may be picked, and what was stopped early.
        ballots: What each agent answered alone; None where no vote is allowed or possible.
        widths: Fewest and most members of a vote.
        admits: Whether a vote of these members may be picked.
        shrink: Of architectures that are no plain vote.
        seed: Of the redrawing of answers.
        smoothed: Every vote on redrawn answers, where that was computed before.
    """

    singles: Mapping[str, ScoreMatrix]
    measured: tuple[CandidateScores, ...]
    ballots: Ballots | None
    widths: tuple[int, int]
    admits: Callable[[tuple[str, ...]], bool]
    shrink: Shrink
    seed: int
    smoothed: SmoothedVotes | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows of val."""
        return len(next(iter(self.singles.values())))

    @property
    def ranking(self) -> tuple[str, ...]:
        """Agents by their score alone, best first; the pool's order breaks ties."""
        return tuple(sorted(self.singles, key=lambda name: -round(self.singles[name].mean(), 12)))

    def take(self, rows: _Rows) -> Evidence:
        """Return the evidence as if only these rows had been there."""
        return replace(
            self,
            singles={name: scores[rows] for name, scores in self.singles.items()},
            measured=tuple(replace(one, scores=one.scores[rows]) for one in self.measured),
            ballots=None if self.ballots is None else self.ballots.take(rows),
            smoothed=None,
        )


Key: TypeAlias = tuple[str, ...] | Architecture
"""Different agents that vote, or one alone, by name; all else by its architecture."""

ALWAYS_TIED = 4
"""Of so few votes every one is tied where any are, so the tie-breaker decides alone."""


def key_of(architecture: Architecture) -> Key:
    """Return what is equal for two forms of one plain vote, whichever agent decides its ties."""
    if not architecture.layers:
        return architecture.agents
    (*before, members) = architecture.layers
    is_plain = architecture.combine == "vote" and not before and len(set(members)) == len(members)
    return tuple(sorted(members)) if is_plain else architecture


def architecture_of(members: Sequence[str], ranking: Sequence[str]) -> Architecture:
    """Return the vote of these members, or the single one of them."""
    if len(members) == 1:
        return Architecture.single(members[0])
    return canonical_evidence(Architecture((tuple(sorted(members)),), None, "vote"), ranking)


def canonical_evidence(architecture: Architecture, ranking: Sequence[str]) -> Architecture:
    """Let the best voters decide ties, so that one vote is one architecture.

    As many are named as it can take to find one among the tied: of n votes at most n - 4
    are not (two pairs are tied, and no other agent agrees).
    """
    if architecture.combine != "vote":
        return architecture
    voters = sorted(architecture.layers[-1], key=ranking.index)
    first, *rest = dict.fromkeys(voters[: max(1, len(voters) - ALWAYS_TIED + 1)])
    return replace(architecture, aggregator=first, order=tuple(rest))


Members = tuple[str, ...]

WORTH: Final = 0.55
"""Least score of a member of the incumbent, as a share of the best agent's: 0.5 to 0.6 measure
the same, and a vote with much worse members is too easy to beat to be a yardstick."""


class VoteTable:
    """Smoothed votes by their members' names, in the order of names; empty without votes."""

    def __init__(self, smoothed: SmoothedVotes | None) -> None:
        self._smoothed = smoothed
        layers = () if smoothed is None else smoothed.layers
        self._layers = {tuple(sorted(layer)): layer for layer in layers}

    def __contains__(self, key: object) -> bool:
        return key in self._layers

    @property
    def several(self) -> set[Key]:
        """All votes of more than one member."""
        return {key for key in self._layers if len(key) > 1}

    def gains(self, incumbent: Members) -> dict[Members, tuple[float, float]]:
        """Return the gain of every vote over ``incumbent``, and its error."""
        assert self._smoothed is not None  # the incumbent is in the table
        gains, errors = self._smoothed.gains(self._layers[incumbent])
        pairs = zip(gains.tolist(), errors.tolist(), strict=True)
        return dict(zip(self._layers, pairs, strict=True))


def incumbent_of(evidence: Evidence, allowed: AbstractSet[Key], votes: VoteTable) -> Key:
    """Return the vote of the best agents, as many as there may be; without one, the best agent.

    Members score at least 0.55 of what the best agent scores; 0 must mean worthless. Where
    neither is allowed, the architecture that is first by name.
    """
    vote = next((key for key in _top_votes(evidence) if key in allowed and key in votes), None)
    singles = ((name,) for name in evidence.ranking if (name,) in allowed)
    return vote or next(singles, None) or min(allowed, key=str)


def _top_votes(evidence: Evidence) -> Iterator[Members]:
    fewest, most = evidence.widths
    ranking = evidence.ranking
    widest = min(most, _n_worthy(evidence), SHORTLIST)
    for width in range(widest, max(fewest, 2) - 1, -1):
        yield tuple(sorted(ranking[:width]))


def _n_worthy(evidence: Evidence) -> int:
    means = [round(float(scores.mean()), 12) for scores in evidence.singles.values()]
    return sum(mean >= WORTH * max(means) for mean in means)


CAUTION: Final = 1.645
"""Standard errors taken off a gain over a vote: the one-sided 5 % point, as in every test of a
study."""
SINGLE_CAUTION: Final = 0.84
"""Those taken off a gain over a single agent: fewer, as the pick is tested against it afterwards on
as many new rows, and must be found twice. Of gains that the test finds in 80 % of studies, z(0.95)
+ z(0.8) errors, 5 % are then not picked: z(0.8) are taken off."""
FULL_ROWS: Final = 90
"""Rows from which on all pseudo rows are redrawn: with fewer of them fewer do, as the luck of the
rows is then the greater error by far, and small studies are quick."""
N_UNMEASURED: Final = 5
"""Votes that are no trials of which the best may be picked."""


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate of the pick: its gain over the incumbent, shrunk, and that gain's error.

    ``caution`` is how many errors are taken off.
    """

    architecture: Architecture
    gain: float
    error: float
    calls: float
    usd: float
    caution: float = CAUTION

    @property
    def cautious_gain(self) -> float:
        """The gain, less what luck may have added."""
        return round(self.gain - self.caution * self.error, 12)


@dataclass(frozen=True, slots=True)
class Choice:
    """The picked option, what it was held against, and all options, best first."""

    picked: Architecture
    incumbent: Architecture
    options: tuple[Option, ...]
    ranking: tuple[str, ...]

    def scores(self, evidence: Evidence) -> ScoreMatrix:
        """Return the score of the pick on each row of ``evidence``, of the same rows or others.

        Who wins the ties of a vote was decided by the rows of the choice.
        """
        key = key_of(self.picked)
        if isinstance(key, tuple) and evidence.ballots is not None:
            return evidence.ballots.vote(key, ranking=self.ranking)
        return next(m.scores for m in evidence.measured if key_of(m.architecture) == key)


def choose(
    evidence: Evidence, *, pseudo: int = PSEUDO_ROWS, may_be_unmeasured: bool = False
) -> Choice:
    """Return the architecture with the greatest cautious gain; of equals, that with fewer calls.

    The incumbent is the vote of as many of the best agents as may vote and are worth it, or
    the best agent where no vote is allowed: simple rules that searches seldom beat on new
    questions. Votes of different agents are judged on redrawn answers
    (``votes.smooth``), all else by ``evidence.shrink``. A gain counts less some of its errors.

    Args:
        evidence: What was measured.
        pseudo: Redrawn questions, of 90 rows or more.
        may_be_unmeasured: Whether a vote may be picked that is no trial: what its members
            answer is known all the same.

    Raises:
        StudyError: If nothing stays within the limits.
    """
    ranking, votes = evidence.ranking, VoteTable(_smooth(evidence, pseudo))
    known = {key_of(m.architecture): m for m in evidence.measured if m.is_whole and m.is_admitted}
    allowed = set(known) | (votes.several if may_be_unmeasured else set())
    if not allowed:
        raise StudyError("No architecture stays within the limits; even single agents go beyond.")
    key = incumbent_of(evidence, allowed, votes)
    incumbent = known[key] if key in known else _unmeasured(evidence, key, ranking)
    known[key] = incumbent
    is_vote = isinstance(key, tuple) and key in votes
    others = [one for one in known if not (is_vote and one in votes)]
    found = _shrunk(evidence, incumbent, known) if others else {}
    if isinstance(key, tuple) and key in votes:
        gains = votes.gains(key)
        found |= {one: gains[one] for one in gains if one in known}
        free = (one for one in gains if one in allowed and one not in known)
        best = sorted(free, key=lambda one: CAUTION * gains[one][1] - gains[one][0])[:N_UNMEASURED]
        known |= {one: _unmeasured(evidence, one, ranking) for one in best}
        found |= {one: gains[one] for one in best}
    options = [_option(known[one], incumbent, *gain) for one, gain in found.items()]
    options.sort(key=_first)
    return Choice(options[0].architecture, incumbent.architecture, tuple(options), ranking)


def _smooth(evidence: Evidence, pseudo: int) -> SmoothedVotes | None:
    if evidence.ballots is None or evidence.smoothed is not None:
        return evidence.smoothed
    fewest, most = evidence.widths
    return smooth(
        evidence.ballots,
        widths=range(fewest, most + 1),
        seed=evidence.seed,
        admits=evidence.admits,
        pseudo=round(pseudo * min(1.0, evidence.n_rows / FULL_ROWS)),
    )


def _unmeasured(evidence: Evidence, key: Key, ranking: Sequence[str]) -> CandidateScores:
    assert evidence.ballots is not None  # a key of a vote comes from ballots
    assert isinstance(key, tuple)
    scores = evidence.ballots.vote(key, ranking=ranking)
    return CandidateScores(architecture_of(key, ranking), scores, calls=len(key), usd=0.0)


def _shrunk(
    evidence: Evidence, incumbent: CandidateScores, known: Mapping[Key, CandidateScores]
) -> dict[Key, tuple[float, float]]:
    measured = [m for m in evidence.measured if known.get(key_of(m.architecture)) is m]
    if incumbent not in measured:
        measured.append(incumbent)
    gains, errors = evidence.shrink(evidence, incumbent, measured)
    pairs = zip(gains, errors, strict=True)
    return {key_of(m.architecture): pair for m, pair in zip(measured, pairs, strict=True)}


def _option(one: CandidateScores, incumbent: CandidateScores, gain: float, error: float) -> Option:
    gain += one.bonus - incumbent.bonus
    caution = CAUTION if incumbent.architecture.layers else SINGLE_CAUTION
    return Option(one.architecture, gain, error, one.calls, one.usd, caution)


def _first(option: Option) -> tuple[float, float, float, str]:
    return (-option.cautious_gain, option.calls, option.usd, str(option.architecture))


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a question may cost; None means no limit. A pick never goes beyond.

    Raises:
        StudyError: If a limit is not positive, or infinite.
    """

    calls: float | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "usd", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise StudyError(f"`limits.{name}` must be positive and finite, but got {value}.")

    def admit(self, trial: TrialRecord) -> bool:
        """Whether the trial stays within every limit."""
        return self.allow(calls=trial.calls, usd=trial.usd, seconds=trial.seconds)

    def allow(self, *, calls: float, usd: float, seconds: float) -> bool:
        """Whether these costs of a question stay within every limit."""
        pairs = ((self.calls, calls), (self.usd, usd), (self.seconds, seconds))
        return all(limit is None or value <= limit for limit, value in pairs)


def within_limits(trials: Sequence[TrialRecord], limits: Limits) -> list[TrialRecord]:
    """Return the trials that may be picked: measured on all rows, and within the limits.

    Raises:
        StudyError: If there is none.
    """
    fair = [trial for trial in trials if not trial.is_stopped_early and limits.admit(trial)]
    if not fair:
        raise StudyError(f"No architecture stays within {limits}; even single agents go beyond.")
    return fair


def best_on_val(
    trials: Sequence[TrialRecord], *, limits: Limits | None = None, diversity_weight: float = 0.0
) -> TrialRecord:
    """Return the trial with the highest win rate; ties go to fewer calls, then less money.

    This is how a random search chooses, and a baseline does: what was luckiest on val wins.

    Raises:
        StudyError: If no trial stays within the limits.
    """
    return min(
        within_limits(trials, limits or Limits()),
        key=lambda t: (
            -round(t.win_rate + diversity_weight * t.diversity, 12),
            t.calls,
            t.usd,
            t.architecture,
        ),
    )


def paired(
    evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
) -> tuple[Sequence[float], Sequence[float]]:
    """Return plain paired differences with their standard errors: nothing is shrunk."""
    del evidence
    gaps = np.array([one.scores - incumbent.scores for one in measured])
    n = gaps.shape[1]
    errors = gaps.std(1, ddof=1) / sqrt(n) if n > 1 else np.ones(len(gaps))
    return gaps.mean(1).tolist(), errors.tolist()


FOLDS: Final = 10
REPEATS: Final = 3
"""Partitions into folds, averaged: which rows a fold holds is luck of its own."""
PSEUDO: Final = 60_000
"""Redrawn questions of a fold: fewer than for the pick, as thirty folds average their noise."""
CORRELATED: Final = 0.9
"""Folds share most of their rows, so their scores are worth fewer rows than they are:
counted as 0.9 of them the interval covers in about 95 % of splits instead of 92."""


def expected_score(evidence: Evidence, *, seed: int) -> Interval | None:
    """Estimate the score of a pick on rows that it was not chosen on; costs no call.

    The choice is made again on nine tenths of the rows and scored on the rest, ten times in
    each of three partitions (cross-fitting). The mean is that of the procedure, which now
    and then picks another architecture. None with fewer than 10 rows.
    """
    if evidence.n_rows < FOLDS:
        return None
    rng = np.random.default_rng([seed, evidence.n_rows])
    held = np.mean([_held_out(evidence, rng) for _ in range(REPEATS)], axis=0)
    return _wider(mean_interval(held.clip(0, 1)))


def _held_out(evidence: Evidence, rng: np.random.Generator) -> ScoreMatrix:
    """Return the score of each row, of what was picked without its fold."""
    n = evidence.n_rows
    is_free = not any(one.bonus for one in evidence.measured)  # a bonus is known where measured
    fold = rng.permutation(np.arange(n) % FOLDS)
    held = np.zeros(n)
    for k in range(FOLDS):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        choice = choose(evidence.take(inside), pseudo=PSEUDO, may_be_unmeasured=is_free)
        held[outside] = choice.scores(evidence.take(outside))
    return held


def _wider(interval: Interval) -> Interval:
    low, high = (
        interval.estimate + (end - interval.estimate) / sqrt(CORRELATED)
        for end in (interval.low, interval.high)
    )
    return replace(interval, low=max(low, 0.0), high=min(high, 1.0))

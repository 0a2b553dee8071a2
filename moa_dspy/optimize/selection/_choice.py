"""The rule of the pick: move from the incumbent only as far as the evidence carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.selection._evidence import Evidence, Measured, Scores
from moa_dspy.optimize.selection._keys import Key, architecture_of, key_of
from moa_dspy.optimize.votes import PSEUDO_ROWS, SHORTLIST, SmoothedVotes, smooth

CAUTION: Final = 1.645
"""Standard errors taken off a gain over a vote: the one-sided 5 % point, as in every test of a
study. Off a gain over a single agent nothing is taken: the pick is tested against it afterwards
on new rows, and a mixture that had to be proven twice would be found in 68 % instead of 80 %."""


@dataclass(frozen=True, slots=True)
class Option:
    """What may be picked: its gain over the incumbent, shrunk, and that gain's error.

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

    def scores(self, evidence: Evidence) -> Scores:
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

    The incumbent is the vote of as many of the best agents as may vote, or the best agent
    where no vote is allowed: simple rules that searches seldom beat on new questions. Votes
    of different agents are judged on redrawn answers (``votes.smooth``), all else by
    ``evidence.shrink``. A gain over a vote counts less 1.645 of its errors.

    Args:
        evidence: What was measured.
        pseudo: Redrawn questions.
        may_be_unmeasured: Whether a vote may be picked that is no trial: what its members
            answer is known all the same.

    Raises:
        StudyError: If nothing stays within the limits.
    """
    ranking = evidence.ranking
    smoothed = _smooth(evidence, pseudo)
    known = {key_of(m.architecture): m for m in evidence.measured if m.is_whole and m.is_admitted}
    votes = [] if smoothed is None else [tuple(sorted(layer)) for layer in smoothed.layers]
    if may_be_unmeasured:
        free = [key for key in votes if len(key) > 1 and key not in known]
        known |= {key: _unmeasured(evidence, key, ranking) for key in free}
    if not known:
        raise StudyError("No architecture stays within the limits; even single agents go beyond.")
    incumbent = known[_incumbent(evidence, ranking, known)]
    found = _shrunk(evidence, incumbent, known)
    if smoothed is not None and key_of(incumbent.architecture) in votes:
        found |= _smoothed(smoothed, incumbent, known)
    options = sorted(
        (_option(known[key], incumbent, *gain) for key, gain in found.items()), key=_first
    )
    return Choice(options[0].architecture, incumbent.architecture, tuple(options), ranking)


def _smooth(evidence: Evidence, pseudo: int) -> SmoothedVotes | None:
    if evidence.ballots is None or evidence.smoothed is not None:
        return evidence.smoothed
    fewest, most = evidence.widths
    widths = range(fewest, most + 1)
    return smooth(
        evidence.ballots, widths=widths, seed=evidence.seed, admits=evidence.admits, pseudo=pseudo
    )


def _unmeasured(evidence: Evidence, key: tuple[str, ...], ranking: Sequence[str]) -> Measured:
    assert evidence.ballots is not None  # a key of a vote comes from ballots
    scores = evidence.ballots.vote(key, ranking=ranking)
    return Measured(architecture_of(key, ranking), scores, calls=len(key), usd=0.0)


def _incumbent(evidence: Evidence, ranking: Sequence[str], known: Mapping[Key, Measured]) -> Key:
    fewest, most = evidence.widths if evidence.ballots is not None else (1, 1)
    for width in range(min(most, len(ranking), SHORTLIST), max(fewest, 2) - 1, -1):
        if (key := tuple(sorted(ranking[:width]))) in known:
            return key
    singles = ((name,) for name in ranking if (name,) in known)
    return next(singles, min(known, key=lambda key: (known[key].calls, str(key))))


def _shrunk(
    evidence: Evidence, incumbent: Measured, known: Mapping[Key, Measured]
) -> dict[Key, tuple[float, float]]:
    measured = [m for m in evidence.measured if known.get(key_of(m.architecture)) is m]
    if incumbent not in measured:
        measured.append(incumbent)
    gains, errors = evidence.shrink(evidence, incumbent, measured)
    pairs = zip(gains, errors, strict=True)
    return {key_of(m.architecture): pair for m, pair in zip(measured, pairs, strict=True)}


def _smoothed(
    smoothed: SmoothedVotes, incumbent: Measured, known: Mapping[Key, Measured]
) -> dict[Key, tuple[float, float]]:
    by_key = {tuple(sorted(layer)): layer for layer in smoothed.layers}
    gains, errors = smoothed.gains(by_key[tuple(sorted(_members(incumbent.architecture)))])
    pairs = zip(by_key, zip(gains.tolist(), errors.tolist(), strict=True), strict=True)
    return {key: pair for key, pair in pairs if key in known}


def _members(architecture: Architecture) -> tuple[str, ...]:
    return architecture.layers[-1] if architecture.layers else architecture.agents


def _option(one: Measured, incumbent: Measured, gain: float, error: float) -> Option:
    gain += one.bonus - incumbent.bonus
    caution = CAUTION if incumbent.architecture.layers else 0.0
    return Option(one.architecture, gain, error, one.calls, one.usd, caution)


def _first(option: Option) -> tuple[float, float, float, str]:
    return (-option.cautious_gain, option.calls, option.usd, str(option.architecture))

"""The rule of the pick: move from the incumbent only as far as the evidence carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.selection._evidence import Evidence, Measured, Scores
from moa_dspy.optimize.selection._incumbent import VoteTable, incumbent_of
from moa_dspy.optimize.selection._keys import Key, architecture_of, key_of
from moa_dspy.optimize.votes import PSEUDO_ROWS, SmoothedVotes, smooth

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


def _unmeasured(evidence: Evidence, key: Key, ranking: Sequence[str]) -> Measured:
    assert evidence.ballots is not None  # a key of a vote comes from ballots
    assert isinstance(key, tuple)
    scores = evidence.ballots.vote(key, ranking=ranking)
    return Measured(architecture_of(key, ranking), scores, calls=len(key), usd=0.0)


def _shrunk(
    evidence: Evidence, incumbent: Measured, known: Mapping[Key, Measured]
) -> dict[Key, tuple[float, float]]:
    measured = [m for m in evidence.measured if known.get(key_of(m.architecture)) is m]
    if incumbent not in measured:
        measured.append(incumbent)
    gains, errors = evidence.shrink(evidence, incumbent, measured)
    pairs = zip(gains, errors, strict=True)
    return {key_of(m.architecture): pair for m, pair in zip(measured, pairs, strict=True)}


def _option(one: Measured, incumbent: Measured, gain: float, error: float) -> Option:
    gain += one.bonus - incumbent.bonus
    caution = CAUTION if incumbent.architecture.layers else SINGLE_CAUTION
    return Option(one.architecture, gain, error, one.calls, one.usd, caution)


def _first(option: Option) -> tuple[float, float, float, str]:
    return (-option.cautious_gain, option.calls, option.usd, str(option.architecture))

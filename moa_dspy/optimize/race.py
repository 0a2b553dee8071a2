"""The test that stops losers of a race on val rows; races and answers played for a forecast.

One error rate holds for a whole race. What is played follows from the single agents' answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space.programs import ProgramArchitecture
from moa_dspy.winrate import sign_flip_mid_p

N_BLOCKS = 5
"""Equal blocks, so four looks. At a fixed error of the whole race, 40 arms and 200 rows, arms that
are 5 to 55 points worse take 69 % of the rows with three blocks, 66 % with five, 66 % with ten."""
FEWEST_ROWS = 20
"""Rows below which no architecture is stopped."""


def look_points(n_rows: int) -> tuple[int, ...]:
    """Return after how many rows a race looks, ascending; the end is no look."""
    ends = (n_rows * block // N_BLOCKS for block in range(1, N_BLOCKS))
    return tuple(end for end in ends if end >= FEWEST_ROWS)


_Vector = NDArray[np.floating[Any]]
_FEWEST_SDS = 2.0
"""Standard deviations of randomly signed differences below which no arm is stopped. Only many tiny
differences beside a few large ones could pass the test below it; most tests are saved."""


@dataclass(frozen=True, slots=True)
class Race:
    """Arms enter one by one; each may be stopped at every look by any arm measured before it.

    The chance that some arm is stopped by one that is truly no better is at most ``alpha``
    over the whole race, whatever the arms have in common: there are n (n - 1) / 2 pairs of an
    arm and an earlier one, each is tested at ``n_looks`` looks, and each test gets an equal part
    of ``alpha`` (Bonferroni). Testing against the leader alone does not need less: who leads is
    chosen from the same data. The test is the paired sign-flip test with mid-p values, which may
    exceed its level a little; the sum does not (simulated: 1 to 4 % of 2,000 races at 5 %).

    Args:
        n_arms: Most arms that will ever race, those that may not be stopped included.
        n_looks: Looks at each arm before its last example; stopping at the last saves nothing.
        alpha: Chance of one wrong stop or more.

    Raises:
        StudyError: If a number is below 1, or ``alpha`` not in (0, 1).
    """

    n_arms: int
    n_looks: int
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.n_arms < 1 or self.n_looks < 1:
            raise StudyError(
                "`n_arms` and `n_looks` must be at least 1, but got "
                f"{self.n_arms} and {self.n_looks}."
            )
        if not 0 < self.alpha < 1:
            raise StudyError(f"`alpha` must be in (0, 1), but got {self.alpha}.")

    @property
    def level(self) -> float:
        """The level of one test."""
        n_pairs = max(self.n_arms * (self.n_arms - 1) // 2, 1)
        return self.alpha / (self.n_looks * n_pairs)

    def is_lost(self, scores: Sequence[float] | _Vector, other: Sequence[float] | _Vector) -> bool:
        """True if ``other`` is better than ``scores`` on the same examples beyond doubt.

        Raises:
            StudyError: If the lengths differ.
        """
        if len(scores) != len(other):
            raise StudyError(
                f"Both arms must be scored on the same examples, but have {len(scores)} and "
                f"{len(other)}."
            )
        gaps = np.asarray(other, dtype=np.float64) - np.asarray(scores, dtype=np.float64)
        ahead = float(gaps.sum())
        if ahead <= _FEWEST_SDS * float(np.sqrt((gaps**2).sum())):
            return False
        return sign_flip_mid_p(gaps) <= self.level


class Said(NamedTuple):
    """An answer: what a reader of it reads, what a vote counts, and what it means.

    Right answers mean the same, however they are worded.
    """

    text: Hashable
    ballot: Hashable
    meaning: Hashable


_RIGHT = "right"
_ALIKE = 0.5
"""Share of equal answers worded alike from which on two agents share their words."""


class _Words:
    """The words that agents have for what they mean, as far as their answers on val show.

    Args:
        said: By agent, row by row.
        meant: Likewise.
    """

    def __init__(
        self,
        said: Mapping[str, Sequence[Hashable]],
        meant: Mapping[str, Sequence[Hashable]],
    ) -> None:
        self._said, self._meant = said, meant
        alike = {(a, b): self._alike(a, b) for a in said for b in said if a < b}
        shares = {a: {b: alike[min(a, b), max(a, b)] for b in said if b != a} for a in said}
        self._partners = {
            a: sorted([a, *(b for b, share in others.items() if share >= _ALIKE)])
            for a, others in shares.items()
        }
        self._fixed = {
            a: max([self._repeated(a), *others.values()]) for a, others in shares.items()
        }

    def _alike(self, one: str, other: str) -> float:
        """Return how often two agents have the same words where they mean the same."""
        rows = [row for row, pair in enumerate(self._pairs(self._meant, one, other)) if pair]
        equal = list(self._pairs(self._said, one, other))
        return sum(equal[row] for row in rows) / len(rows) if rows else 0.0

    @staticmethod
    def _pairs(table: Mapping[str, Sequence[Hashable]], one: str, other: str) -> Iterable[bool]:
        return (a == b for a, b in zip(table[one], table[other], strict=True))

    def _repeated(self, name: str) -> float:
        """Return how often an agent says what it says on another row too, such as a letter."""
        counts = Counter(self._said[name])
        return sum(n for n in counts.values() if n > 1) / len(self._said[name])

    def of(
        self, name: str, row: int, meaning: Hashable, rng: random.Random
    ) -> Hashable | tuple[str, int]:
        """Return the words of an agent for a meaning; new ones where its words are not fixed."""
        if rng.random() >= self._fixed[name]:
            return ("new", rng.random())
        for other in (name, *self._partners[name]):
            if self._meant[other][row] == meaning:
                return self._said[other][row]
        return (self._partners[name][0], meaning)


class PlayedAnswers:
    """Made-up answers on the rows of val: those of agents alone, and after they read others.

    Who reads means what a random one of those it reads means, or what it means alone, as the
    races take it; another sample of an agent means the same as often as two agents do. What is
    meant is said in the agent's own words.

    Args:
        scores: Of the single agents, row by row.
        replies: What each said, equal where a reader reads the same.
        ballots: What a vote counts there.
    """

    def __init__(
        self,
        scores: Mapping[str, Sequence[float] | _Vector],
        replies: Mapping[str, Sequence[Hashable]],
        ballots: Mapping[str, Sequence[Hashable]],
    ) -> None:
        self.scores = {name: np.asarray(found, np.float64) for name, found in scores.items()}
        self.replies, self._ballots = replies, ballots
        self._meant = {
            name: [
                _RIGHT if score >= 1 else ballot
                for score, ballot in zip(found, ballots[name], strict=True)
            ]
            for name, found in self.scores.items()
        }
        self._texts, self._votes = _Words(replies, self._meant), _Words(ballots, self._meant)
        pairs = [(a, b) for a in scores for b in scores if a < b]
        equal = [
            x == y for a, b in pairs for x, y in zip(self._meant[a], self._meant[b], strict=True)
        ]
        self._agreement = sum(equal) / len(equal) if equal else 0.0

    def alone(self, name: str, row: int) -> Said:
        """Return the answer of an agent that has read nothing."""
        return Said(self.replies[name][row], self._ballots[name][row], self._meant[name][row])

    def anew(self, name: str, row: int, read: Sequence[Said], rng: random.Random) -> Said:
        """Return an answer of an agent that has read others, or is asked another time."""
        own = self._meant[name][row]
        if read:
            meaning = rng.choice([own, *(one.meaning for one in read)])
        else:
            meaning = own if rng.random() < self._agreement else ("new", rng.random())
        text, ballot = (words.of(name, row, meaning, rng) for words in (self._texts, self._votes))
        return Said(text, ballot, meaning)

    def voted(self, vote: Architecture) -> _Vector:
        """Return the scores of a vote of single agents; who decides ties comes first."""
        (members,) = vote.layers
        decides = [name for name in (vote.aggregator, *vote.order) if name in members]
        ordered = list(dict.fromkeys([*decides, *members]))
        found = []
        for row in range(len(self.scores[ordered[0]])):
            said = {name: self._ballots[name][row] for name in ordered}
            counts = Counter(said.values())
            # Of equal counts the first, and so the one of who decides.
            chosen = max(ordered, key=lambda name: counts[said[name]])
            found.append(self.scores[chosen][row])
        return np.array(found)

    def diversity(self, one: str, other: str) -> float:
        """Return how often two agents say something else."""
        pairs = zip(self.replies[one], self.replies[other], strict=True)
        return float(np.mean([a != b for a, b in pairs]))


class PlayedRace:
    """Made-up races: a mixture is taken to answer as a random one of its seats, row by row.

    What votes of single agents answer is known.

    Args:
        answers: Of the single agents.
        n_trials: Of the study; the random baseline has as many.
        must_cost_less: Whether costs are objectives: then a mixture loses to a single agent only.
        seeds: Of the answers.
    """

    def __init__(
        self,
        answers: PlayedAnswers,
        *,
        n_trials: int,
        must_cost_less: bool = False,
        seeds: tuple[int, int] = (0, 0),
    ) -> None:
        self._answers, self._singles = answers, answers.scores
        self._n_rows = len(next(iter(self._singles.values())))
        self._looks = look_points(self._n_rows)
        self._race = Race(2 * n_trials, max(len(self._looks), 1))
        self._must_cost_less = must_cost_less
        self._whole: dict[Architecture, _Vector] = {}
        self._scores: dict[Architecture, _Vector] = {}
        self._rows: dict[Architecture, int] = {}
        self._rng = np.random.default_rng([seed % 2**32 for seed in seeds])
        for name in self._singles:
            self._admit(Architecture.single(name))

    def _admit(self, key: Architecture) -> _Vector:
        """Give an architecture its scores, as one that is measured on all rows."""
        one = key.parts[-1][1] if isinstance(key, ProgramArchitecture) else key
        if _is_plain_vote(one):
            self._put(key, self._answers.voted(one))
            return self._whole[key]
        seats = [name for layer in (*one.layers[-1:], *one.last_rounds) for name in layer]
        table = np.array([self._singles[name] for name in seats])
        found = table[self._rng.integers(len(seats), size=table.shape[1]), range(table.shape[1])]
        self._put(key, found)
        return found

    def _put(self, key: Architecture, scores: _Vector) -> None:
        self._whole[key] = self._scores[key] = scores
        self._rows[key] = self._n_rows

    def rows_of(self, one: Architecture) -> int:
        """Return on how many rows an architecture is measured."""
        if one not in self._rows:
            rival, found = self._rival(), self._admit(one)
            for look in self._looks:
                if self._race.is_lost(found[:look], rival[:look]):
                    del self._whole[one]
                    self._rows[one] = look
                    break
        return self._rows[one]

    def scores_of(self, one: Architecture) -> _Vector:
        """Return the scores of an architecture row by row; NaN where it is not measured."""
        n_rows = self.rows_of(one)
        return np.where(np.arange(self._n_rows) < n_rows, self._scores[one], np.nan)

    def _rival(self) -> _Vector:
        among = {o: f for o, f in self._whole.items() if not (self._must_cost_less and o.layers)}
        return max(among.values(), key=lambda found: float(found.mean()))

    def ordered(self, among: Iterable[Architecture]) -> list[Architecture]:
        """Return those of these that were measured on all rows, the best first."""
        whole = [one for one in among if one in self._whole]
        return sorted(whole, key=lambda one: -float(self._whole[one].mean()))

    def best(self, among: Iterable[Architecture] | None = None) -> Architecture | None:
        """Return the best of these that were measured on all rows; None is of all."""
        return next(iter(self.ordered(self._whole if among is None else among)), None)

    def pick(self) -> Architecture:
        """Return what is picked: the best, if it beats the best single agent beyond luck."""
        single = self.ordered(map(Architecture.single, self._singles))[0]
        best = self.ordered(self._whole)[0]
        gaps = self._whole[best] - self._whole[single]
        return best if gaps.sum() > _FEWEST_SDS * float(np.sqrt((gaps**2).sum())) else single


def _is_plain_vote(one: Architecture) -> bool:
    members = one.layers[0] if one.layers else ()
    is_first = one.combine == "vote" and one.depth == 1
    return is_first and len(set(members)) == len(members) and not one.weights


def made_up_answers(
    names: Sequence[str], n_rows: int, *, has_short_answers: bool, seeds: Sequence[int]
) -> PlayedAnswers:
    """Draw how good agents are and what they say; of short answers the right ones are equal."""
    rng = np.random.default_rng([seed % 2**32 for seed in seeds])
    ease = rng.normal(size=n_rows)
    skill = {name: rng.normal() for name in names}
    scores = {n: (skill[n] + ease + rng.normal(size=n_rows) > 0) * 1.0 for n in names}
    if has_short_answers:
        replies: dict[str, list[Hashable]] = {
            name: [_RIGHT if score else int(rng.integers(4)) for score in found]
            for name, found in scores.items()
        }
    else:
        replies = {name: [(name, row) for row in range(n_rows)] for name in names}
    return PlayedAnswers(scores, replies, replies)

"""Simulated answers, races and trials for a forecast, derived from the single agents' answers."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.early_facts import AgentCosts, Cost
from moa_dspy.optimize.space.programs import MOST_REPEATS, ProgramArchitecture
from moa_dspy.optimize.space.rules import told_apart
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import (
    Acquisition,
    Forecast,
    Prices,
    neighbours,
    nodes_of,
    single_agents,
)
from moa_dspy.optimize.surrogate.gp import Kernels, Traits
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.winrate.tests import FEWEST_SDS, Race, look_points

_Vector = NDArray[np.float64]


class PlayedAnswer(NamedTuple):
    """A simulated answer: the text that others read, the ballot of a vote, and the meaning.

    All right answers have the same meaning, whatever their wording.
    """

    text: Hashable
    ballot: Hashable
    meaning: Hashable


_RIGHT = "right"
_ALIKE = 0.5
"""Share of equal wording among answers of equal meaning from which two agents share wording."""


class _Words:
    """The wording that agents use for a meaning, estimated from their answers on val.

    Args:
        said: Wording by agent, row by row.
        meant: Meaning by agent, row by row.
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
        """Return the share of rows of equal meaning on which two agents' wording is equal."""
        rows = [row for row, pair in enumerate(self._pairs(self._meant, one, other)) if pair]
        equal = list(self._pairs(self._said, one, other))
        return sum(equal[row] for row in rows) / len(rows) if rows else 0.0

    @staticmethod
    def _pairs(table: Mapping[str, Sequence[Hashable]], one: str, other: str) -> Iterable[bool]:
        return (a == b for a, b in zip(table[one], table[other], strict=True))

    def _repeated(self, name: str) -> float:
        """Return the share of rows whose wording, such as a letter, recurs on another row."""
        counts = Counter(self._said[name])
        return sum(n for n in counts.values() if n > 1) / len(self._said[name])

    def of(self, name: str, row: int, meaning: Hashable, rng: random.Random) -> Hashable:
        """Return an agent's wording of a meaning; new wording where it is not fixed."""
        if rng.random() >= self._fixed[name]:
            return ("new", rng.random())
        for other in (name, *self._partners[name]):
            if self._meant[other][row] == meaning:
                return self._said[other][row]
        return (self._partners[name][0], meaning)


ReadingHabit = Literal["any", "own", "most", "right", "new"]
READING_HABITS: Final[tuple[ReadingHabit, ...]] = get_args(ReadingHabit)
"""Assumptions on how agents use answers that they read, which single agents' answers cannot show:
repeat a random answer among those read and its own, keep its own, follow the majority, find the
right answer if one is right, or often give a new answer, which is wrong."""
_FOUND: Final = 0.9
"""With the habit "right", share of the rows with a right answer on which it is found."""
_SAYS_NEW: Final = 0.3
"""With the habit "new", share of the rows on which an agent gives a new answer."""


class PlayedAnswers:
    """Simulated answers on the rows of val: of agents alone, and after they read others.

    Two samples of one agent have the same meaning as often as answers of two agents have. An
    agent expresses a meaning in its own wording.

    Args:
        scores: Scores of the single agents, row by row.
        replies: Answer of each agent, equal if another agent would read the same.
        ballots: Ballot of each agent.
        habit: How an agent uses the answers that it reads.
    """

    def __init__(
        self,
        scores: Mapping[str, Sequence[float] | _Vector],
        replies: Mapping[str, Sequence[Hashable]],
        ballots: Mapping[str, Sequence[Hashable]],
        habit: ReadingHabit = "any",
    ) -> None:
        self.habit: ReadingHabit = habit
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

    def with_habit(self, habit: ReadingHabit) -> PlayedAnswers:
        """Return the same answers of single agents with another reading habit."""
        found = copy(self)
        found.habit = habit
        return found

    def alone(self, name: str, row: int) -> PlayedAnswer:
        """Return the answer of an agent that has read no other answers."""
        return PlayedAnswer(
            self.replies[name][row], self._ballots[name][row], self._meant[name][row]
        )

    def anew(
        self, name: str, row: int, read: Sequence[PlayedAnswer], rng: random.Random
    ) -> PlayedAnswer:
        """Return an answer of an agent that has read others, or another sample."""
        own = self._meant[name][row]
        if read and self.habit == "own":
            return self.alone(name, row)
        if read:
            meaning = self._taken([own, *(one.meaning for one in read)], rng)
        else:
            meaning = own if rng.random() < self._agreement else ("new", rng.random())
        text, ballot = (words.of(name, row, meaning, rng) for words in (self._texts, self._votes))
        return PlayedAnswer(text, ballot, meaning)

    def _taken(self, meanings: Sequence[Hashable], rng: random.Random) -> Hashable:
        """Return the meaning that an agent chooses from its own and those that it reads."""
        taken, chance = rng.choice(meanings), rng.random()
        if self.habit == "most":
            return Counter(meanings).most_common(1)[0][0]
        if self.habit == "right" and _RIGHT in meanings and chance < _FOUND:
            return _RIGHT
        return ("new", chance) if self.habit == "new" and chance < _SAYS_NEW else taken

    def read_by(self, seats: Sequence[str], hands: Sequence[str], rng: Any) -> _Vector:
        """Draw the scores of mixtures whose last layer and last step have these agents."""
        table = np.array([self.scores[name] for name in (*seats, *hands)])
        n_rows = table.shape[1]
        last = table[-len(hands) :] if hands and self.habit == "own" else table
        found: _Vector = last[rng.integers(len(last), size=n_rows), range(n_rows)]
        chances = rng.random(n_rows)
        if self.habit == "most":
            meant = [[self._meant[name][row] for name in (*seats, *hands)] for row in range(n_rows)]
            most = [one.index(Counter(one).most_common(1)[0][0]) for one in meant]
            found = table[most, range(n_rows)]
        if self.habit == "right":
            found = np.where(chances < _FOUND, table.max(0), found)
        return np.where(chances < _SAYS_NEW, 0.0, found) if self.habit == "new" else found

    def voted(self, vote: Architecture) -> _Vector:
        """Return the scores of a vote of single agents, with its tie-breaker first."""
        (members,) = vote.layers
        decides = [name for name in (vote.aggregator, *vote.order) if name in members]
        ordered = list(dict.fromkeys([*decides, *members]))
        return self._counted.vote(ordered, ranking=ordered)

    @cached_property
    def _counted(self) -> Ballots:
        return Ballots.of(self._ballots, self.scores)

    def diversity(self, one: str, other: str) -> float:
        """Return the share of rows on which two agents' answers differ."""
        pairs = zip(self.replies[one], self.replies[other], strict=True)
        return float(np.mean([a != b for a, b in pairs]))


class PlayedRace:
    """Simulated races (early stopping of trials), on simulated scores of mixtures, row by row.

    Scores of votes of single agents are computed, not simulated.

    Args:
        answers: Answers of the single agents.
        n_trials: Trials of the study; the random baseline has as many.
        must_cost_less: Whether costs are objectives: then only a single agent stops a mixture.
        seeds: Seeds of the answers.
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
        self._drawn: dict[tuple[tuple[str, ...], ...], _Vector] = {}
        self._scores: dict[Architecture, _Vector] = {}
        self._rows: dict[Architecture, int] = {}
        self._rng = np.random.default_rng([seed % 2**32 for seed in seeds])
        for name in self._singles:
            self._admit(Architecture.single(name))

    def _admit(self, key: Architecture) -> _Vector:
        """Simulate the scores of an architecture on all rows."""
        one = key.parts[-1][1] if isinstance(key, ProgramArchitecture) else key
        if one.combine == "vote" and one.chooses_among_singles and not one.weights:
            self._put(key, self._answers.voted(one))
            return self._whole[key]
        # Mixtures with equal last layers and last steps have equal answers. With the habit
        # "right", a right answer of any layer may also be found in later ones.
        layers = one.layers if self._answers.habit == "right" else one.layers[-1:]
        read, hands = (tuple(sorted(chain(*n))) for n in (layers, one.last_rounds))
        ends = (read, hands)
        if ends not in self._drawn:
            self._drawn[ends] = self._answers.read_by(read, hands, self._rng)
        found = self._drawn[ends]
        self._put(key, found)
        return found

    def _put(self, key: Architecture, scores: _Vector) -> None:
        self._whole[key] = self._scores[key] = scores
        self._rows[key] = self._n_rows

    def rows_of(self, one: Architecture) -> int:
        """Return the number of rows on which an architecture is measured."""
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
        """Return the architectures measured on all rows, best first; ties go to fewer calls."""
        whole = [one for one in among if one in self._whole]
        return sorted(whole, key=lambda one: (-round(self._whole[one].mean(), 12), one.calls))

    def best(self, among: Iterable[Architecture] | None = None) -> Architecture | None:
        """Return the best architecture measured on all rows, of ``among`` or, if None, of all."""
        return next(iter(self.ordered(self._whole if among is None else among)), None)

    def pick(self) -> Architecture:
        """Return the pick: the best, if it beats the best single agent by more than chance."""
        single = self.ordered(map(Architecture.single, self._singles))[0]
        best = self.ordered(self._whole)[0]
        gaps = self._whole[best] - self._whole[single]
        return best if gaps.sum() > FEWEST_SDS * float(np.sqrt((gaps**2).sum())) else single


def made_up_answers(
    names: Sequence[str], n_rows: int, seeds: Sequence[int], *, has_short_answers: bool
) -> PlayedAnswers:
    """Draw the scores and answers of agents; if answers are short, all right ones are equal.

    Two answers in three are right, and two models that are both wrong on a question give the same
    answer in two of three cases (60 % of pairs in Kim, Garg, Peng & Garg 2025).
    """
    rng = np.random.default_rng([seed % 2**32 for seed in seeds])
    ease = rng.normal(size=n_rows)
    skill = {name: rng.normal(0.75) for name in names}
    lucks = {name: skill[name] + ease + rng.normal(size=n_rows) for name in names}
    scores = {name: np.asarray(luck > 0, np.float64) for name, luck in lucks.items()}
    if has_short_answers:
        wrong = rng.choice(5, p=[0.8, 0.05, 0.05, 0.05, 0.05], size=(len(names), n_rows))
        replies: dict[str, list[Hashable]] = {
            name: [_RIGHT if score else int(said) for score, said in zip(found, one, strict=True)]
            for (name, found), one in zip(scores.items(), wrong, strict=True)
        }
    else:
        replies = {name: [(name, row) for row in range(n_rows)] for name in names}
    return PlayedAnswers(scores, replies, replies)


_MOST_PROPOSED: Final = 120 // len(READING_HABITS)
"""Proposals by the acquisition in each simulated search: 15 ms each, one search per habit."""
_N_DRAWN: Final = 20
"""Random candidates of such a proposal, beside neighbours; a real search has more."""
_N_CANDIDATES: Final = 12
"""Neighbours, and as many draws, that are candidates of a proposal without the acquisition."""

_Canonical = Callable[[Architecture], Architecture]


def played_acquisition(
    space: SearchSpace,
    answers: PlayedAnswers,
    agents: Mapping[str, AgentCosts],
    costs: Sequence[str],
    canonical: _Canonical,
    seed: int,
) -> Acquisition:
    """Return the acquisition of a search, for simulated scores.

    ``costs`` names the costs that are objectives.
    """
    means = {name: float(found.mean()) for name, found in answers.scores.items()}
    forecast = Forecast(
        usd={name: agent.alone.usd for name, agent in agents.items()},
        seconds={name: agent.alone.seconds for name, agent in agents.items()},
    )
    traits = Traits(means, answers.diversity, space.prompts, told_apart(space))
    prices = Prices(forecast, costs, seed)
    return Acquisition(space, Kernels.of(traits), canonical, seed, prices.at, n_drawn=_N_DRAWN)


def played_trials(
    space: SearchSpace,
    given: Iterable[Architecture],
    n: int,
    *,
    race: PlayedRace,
    canonical: _Canonical,
    acquisition: Acquisition | None,
    rng: random.Random,
) -> list[Architecture]:
    """Return at most ``n`` mixtures that a search tries, in order.

    After the ``given`` mixtures, the acquisition proposes; if it is None, they are drawn.
    """
    known = dict.fromkeys(single_agents(space))
    n_known = len(known)
    known |= dict.fromkeys(given)
    made = {node for one in known for node in nodes_of(one)}
    while len(known) - n_known < n:
        if acquisition is not None and len(known) - n_known < _MOST_PROPOSED:
            scores = np.array([race.scores_of(one) for one in known])
            found = acquisition.propose(list(known), scores)
        else:
            found = _drawn(space, known, made, canonical, rng)
        if found is None:
            break
        known[found] = None
        made |= nodes_of(found)
    return list(known)[n_known:][:n]


def _drawn(
    space: SearchSpace,
    known: Mapping[Architecture, None],
    made: Set[Hashable],
    canonical: _Canonical,
    rng: random.Random,
) -> Architecture | None:
    """Return a mixture as another sampler may propose it: the best gain per new call.

    Candidates are neighbours of a known mixture and draws from the space; gains are random.
    """
    mixtures = [one for one in known if one.layers]
    near = list(neighbours(rng.choice(mixtures), space)) if mixtures else []
    draws = [space.draw(rng) for _ in range(_N_CANDIDATES)]
    some = [*rng.sample(near, min(len(near), _N_CANDIDATES)), *draws]
    new = [one for one in map(canonical, some) if one not in known]

    def promise(one: Architecture) -> float:
        return rng.expovariate(1) / (1 + len(nodes_of(one) - made))

    if new:
        return max(new, key=promise)
    others = (canonical(space.draw(rng)) for _ in range(MOST_REPEATS))
    return next((one for one in others if one not in known), None)


@dataclass(slots=True)
class PlayedRequests:
    """The requests of a stage, on the rows of a play."""

    cost: Cost = field(default_factory=Cost)
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, steps: Iterable[Sequence[tuple[str, Cost]]]) -> None:
        """Add the steps of one answer; the agents of a step are asked at the same time."""
        for step in steps:
            total = sum((cost for _, cost in step), Cost())
            slowest = max((cost.seconds for _, cost in step), default=0.0)
            self.cost += replace(total, seconds=slowest)
            for name, cost in step:
                self.busy[name] += cost.seconds

    def scaled(self, scale: float, *, num_threads: int, agents: Mapping[str, AgentCosts]) -> Cost:
        """Return the cost of these requests times ``scale``; seconds are wall time."""
        limits = {name: agents[name].max_concurrent for name in self.busy}
        waits = [self.busy[name] / n for name, n in limits.items() if n is not None]
        seconds = max([self.cost.seconds / num_threads, *waits])
        return replace(self.cost, seconds=seconds) * scale

"""Simulated answers of agents for a forecast, from what the agents answered alone on val."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.early_facts import AgentCosts, Cost
from moa_dspy.optimize.space.programs import ProgramArchitecture
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.pool import Pool
from moa_dspy.waves import Waves

RowScores = NDArray[np.float64]
RowMeanings = NDArray[np.int64]


class SimulatedAnswer(NamedTuple):
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
        self._fixed = {a: max([self._repeated(a), *o.values()]) for a, o in shares.items()}

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
right answer if one is right (or keep its own), or often give a new answer, which is wrong."""
FOUND: Final = 0.9
"""With the habit "right", share of the rows with a right answer on which it is found."""
SAYS_NEW: Final = 0.3
"""With the habit "new", share of the rows on which an agent gives a new answer."""


class SimulatedAnswers:
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
        scores: Mapping[str, Sequence[float] | RowScores],
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
        self._diversities: dict[tuple[str, str], float] = {}
        pairs = combinations(scores, 2)
        equal = [
            x == y for a, b in pairs for x, y in zip(self._meant[a], self._meant[b], strict=True)
        ]
        self.agreement = sum(equal) / len(equal) if equal else 0.0

    def with_habit(self, habit: ReadingHabit) -> SimulatedAnswers:
        """Return the same answers of single agents with another reading habit."""
        found = copy(self)
        found.habit, found.coded = habit, self.coded
        return found

    def alone(self, name: str, row: int) -> SimulatedAnswer:
        """Return the answer of an agent that has read no other answers."""
        return SimulatedAnswer(
            self.replies[name][row], self._ballots[name][row], self._meant[name][row]
        )

    def anew(
        self, name: str, row: int, read: Sequence[SimulatedAnswer], rng: random.Random
    ) -> SimulatedAnswer:
        """Return an answer of an agent that has read others, or another sample."""
        own = self._meant[name][row]
        if read and self.habit == "own":
            return self.alone(name, row)
        if read:
            meaning = self._taken([own, *(one.meaning for one in read)], rng)
        else:
            meaning = own if rng.random() < self.agreement else ("new", rng.random())
        return self._worded(name, row, meaning, rng)

    def elsewhere(self, name: str, row: int, rng: random.Random) -> SimulatedAnswer:
        """Return an answer of an agent on other inputs of the row, which it was not asked alone.

        It is what the agent, or as often any agent, answered on the inputs that it had.
        """
        other = rng.choice([name, rng.choice(list(self.scores))])
        return self._worded(name, row, self._meant[other][row], rng)

    def _worded(
        self, name: str, row: int, meaning: Hashable, rng: random.Random
    ) -> SimulatedAnswer:
        text, ballot = (words.of(name, row, meaning, rng) for words in (self._texts, self._votes))
        return SimulatedAnswer(text, ballot, meaning)

    def _taken(self, meanings: Sequence[Hashable], rng: random.Random) -> Hashable:
        """Return the meaning that an agent chooses from its own and those that it reads."""
        taken, chance = rng.choice(meanings), rng.random()
        if self.habit == "most":
            return Counter(meanings).most_common(1)[0][0]
        if self.habit == "right":
            return _RIGHT if _RIGHT in meanings and chance < FOUND else meanings[0]
        return ("new", chance) if self.habit == "new" and chance < SAYS_NEW else taken

    @cached_property
    def coded(self) -> tuple[dict[str, RowMeanings], RowScores]:
        """Return the meanings as numbers by agent and row, and the score of each, (rows, numbers).

        The right meaning of a row is 0.
        """
        names = list(self.scores)
        n_rows = len(self.scores[names[0]])
        codes = np.zeros((len(names), n_rows), np.int64)
        worth = np.zeros((n_rows, len(names) + 1))
        for row in range(n_rows):
            known: dict[Hashable, int] = {_RIGHT: 0}
            for place, name in enumerate(names):
                code = known.setdefault(self._meant[name][row], len(known))
                codes[place, row] = code
                worth[row, code] = max(worth[row, code], self.scores[name][row])
        return dict(zip(names, codes, strict=True)), worth

    def voted(self, vote: Architecture) -> RowScores:
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
        if (one, other) not in self._diversities:
            pairs = zip(self.replies[one], self.replies[other], strict=True)
            self._diversities[one, other] = float(np.mean([a != b for a, b in pairs]))
        return self._diversities[one, other]


class SimulatedMeanings:
    """Simulated meanings of mixtures' answers on all rows; equal nodes have equal answers.

    Args:
        answers: Answers of the single agents, and the reading habit.
        rng: Source of all draws.
    """

    def __init__(self, answers: SimulatedAnswers, rng: np.random.Generator) -> None:
        self._answers, self._rng = answers, rng
        self._alone, self._worth = answers.coded
        self._nodes: dict[Hashable, RowMeanings] = {}
        self._n_rows, self._n_new = len(self._worth), 0
        self._rows = np.arange(self._n_rows)
        self._deciding: dict[int, RowMeanings] = {}

    def scores(self, one: Architecture) -> RowScores:
        """Return the scores of an architecture, row by row.

        Each row of a program is decided by one of its mixtures, drawn once.
        """
        if isinstance(one, ProgramArchitecture):
            n = len(one.parts)
            if n not in self._deciding:
                self._deciding[n] = self._rng.integers(n, size=self._n_rows)
            every = np.array([self.scores(inside) for _, inside in one.parts])
            found: RowScores = every[self._deciding[n], self._rows]
            return found
        if one.combine == "vote" and one.chooses_among_singles and not one.weights:
            return self._answers.voted(one)
        said = self._said(one)
        found = np.where(said < 0, 0.0, self._worth[self._rows, np.maximum(said, 0)])
        return found

    def _said(self, one: Architecture) -> RowMeanings:
        """Return the meanings of an architecture's answers."""
        read: tuple[Hashable, ...] = ()
        for layer in one.layers:
            seats = [(name, layer[:seat].count(name)) for seat, name in enumerate(layer)]
            read = tuple(self._node(name, sample, read) for name, sample in seats)
        if not one.layers:
            return self._nodes[self._node(str(one.aggregator), 0, read)]
        if one.combine == "vote":
            return self._voted(one, [self._nodes[node] for node in read])
        who, kind = one.aggregator, (one.combine, one.prompt)
        if one.combine in ("synthesize", "fuse") and who is not None:
            is_own = kind == ("synthesize", None)
            return self._nodes[self._node(who, 0, read, () if is_own else kind)]
        node = (kind, who, read)
        if node not in self._nodes:
            self._nodes[node] = self._taken([self._nodes[one] for one in read], own=None)
        return self._nodes[node]

    def _node(
        self, name: str, sample: int, read: tuple[Hashable, ...], kind: Hashable = ()
    ) -> Hashable:
        """Simulate the answers of one agent that reads these nodes."""
        node = (name, sample, read, kind)
        if node not in self._nodes:
            own = self._alone[name]
            if read:
                own = self._taken([self._nodes[one] for one in read], own=own)
            elif sample:
                is_same = self._rng.random(self._n_rows) < self._answers.agreement
                own = np.where(is_same, own, self._new())
            self._nodes[node] = own
        return node

    def _taken(self, read: Sequence[RowMeanings], *, own: RowMeanings | None) -> RowMeanings:
        """Return the meanings that an agent, or a ranker without one of its own, chooses."""
        habit, chances = self._answers.habit, self._rng.random(self._n_rows)
        if habit == "own" and own is not None:
            return own
        table = np.array(read if own is None else [own, *read])
        taken: RowMeanings = table[self._rng.integers(len(table), size=self._n_rows), self._rows]
        if habit == "most":
            return _most(table, np.ones(len(table)))
        if habit == "right":
            return np.where(
                (table == 0).any(0) & (chances < FOUND), 0, taken if own is None else own
            )
        if habit == "new" and own is not None:
            return np.where(chances < SAYS_NEW, self._new(), taken)
        return taken

    def _voted(self, vote: Architecture, said: Sequence[RowMeanings]) -> RowMeanings:
        waves = Waves.of_vote(vote)
        worth = [waves.weights[seat] for seat in waves.priority]
        return _most(np.array([said[seat] for seat in waves.priority]), np.array(worth, np.float64))

    def _new(self) -> int:
        self._n_new += 1
        return -self._n_new


def _most(table: RowMeanings, weights: RowScores) -> RowMeanings:
    """Return the meaning of each column that has most weight; ties go to the first row."""
    heavy = [((table == row) * weights[:, None]).sum(0) for row in table]
    found: RowMeanings = table[np.round(heavy, 9).argmax(0), range(table.shape[1])]
    return found


def synthetic_answers(
    names: Sequence[str], n_rows: int, seeds: Sequence[int], *, has_short_answers: bool
) -> SimulatedAnswers:
    """Draw the scores and answers of agents; if answers are short, all right ones are equal.

    Two in three are right. Of two wrong ones 65 % or, in every second draw, 20 % are equal (60 % of
    models' pairs in Kim, Garg, Peng & Garg 2025).
    """
    rng = np.random.default_rng([seed % 2**32 for seed in seeds])
    ease = rng.normal(size=n_rows)
    skill = {name: rng.normal(0.75) for name in names}
    lucks = {name: skill[name] + ease + rng.normal(size=n_rows) for name in names}
    scores = {name: np.asarray(luck > 0, np.float64) for name, luck in lucks.items()}
    if has_short_answers:
        shares = [0.2] * 5 if seeds[-1] % 2 else [0.8, 0.05, 0.05, 0.05, 0.05]
        wrong = rng.choice(5, p=shares, size=(len(names), n_rows))
        replies: dict[str, list[Hashable]] = {
            name: [_RIGHT if score else int(said) for score, said in zip(found, one, strict=True)]
            for (name, found), one in zip(scores.items(), wrong, strict=True)
        }
    else:
        replies = {name: [(name, row) for row in range(n_rows)] for name in names}
    return SimulatedAnswers(scores, replies, replies)


def mean_costs(
    name: str,
    pool: Pool,
    rows: Iterable[tuple[float, float, float, float]],
    tokens: Iterable[tuple[float, float]],
) -> AgentCosts:
    """Return the costs of an agent: ``rows`` of calls, tokens, usd, seconds; of reply and text."""
    price, agent = pool.price(name), pool[name]
    per_token = (0.0, 0.0) if price is None else (price.usd(1, 0), price.usd(0, 1))
    reply_tokens, text_tokens = map(fmean, zip(*tokens, strict=True))
    return AgentCosts(
        Cost(*map(fmean, zip(*rows, strict=True))),
        reply_tokens,
        text_tokens,
        *per_token,
        is_greedy=agent.temperature == 0,
        max_concurrent=agent.max_concurrent,
        is_local=agent.is_local,
    )


@dataclass(frozen=True, slots=True)
class MixtureAnswers:
    """Answers of the single agents in one mixture of a program; each agent is in all mixtures.

    Attributes:
        agents: Cost of a question there.
        replies: Answer of each agent, row by row.
        ballots: Ballot of each agent, row by row.
        places: By agent and row, a key of the inputs: equal for equal inputs.
    """

    agents: Mapping[str, AgentCosts]
    replies: Mapping[str, Sequence[Hashable]]
    ballots: Mapping[str, Sequence[Hashable]]
    places: Mapping[str, Sequence[Hashable]]


class SimulatedInputs:
    """The inputs of the mixtures of a program, by the answers of the mixtures before each.

    What is known of single agents shows which earlier answers a mixture reads, and which of them
    are the same to it. Without any, it reads all of them.

    Args:
        answers: Answers of the single agents in each mixture, in the program's order.
        mixtures: The same with their inputs; empty where they are not known.
    """

    def __init__(
        self, answers: Sequence[SimulatedAnswers], mixtures: Sequence[MixtureAnswers] = ()
    ) -> None:
        self._answers, self._mixtures = answers, mixtures
        self._seen: dict[tuple[int, int], tuple[bool, dict[Hashable, Hashable]]] = {}

    def own(self, place: int, name: str, row: int) -> Hashable:
        """Return the inputs of a mixture where all mixtures have this agent."""
        said = [answers.replies[name][row] for answers in self._answers[:place]]
        return self.of(place, said)

    def of(self, place: int, said: Sequence[Hashable]) -> Hashable:
        """Return the inputs of the mixture at this place, after the answers of all before it."""
        found: list[Hashable] = []
        for earlier in range(place):
            is_read, same = self._known_of(place, earlier)
            if is_read:
                found.append(same.get(said[earlier], said[earlier]))
        return tuple(found)

    def _known_of(self, place: int, earlier: int) -> tuple[bool, dict[Hashable, Hashable]]:
        """Return whether a mixture reads an earlier one, and answers that are the same to it.

        It does not if all different answers there led to equal inputs. Of answers that led to equal
        inputs on some row, one stands for all.
        """
        key = (place, earlier)
        if key not in self._seen:
            pairs = self._pairs(place, earlier)
            same: dict[Hashable, Hashable] = {}
            for x, y in (pair for pair, is_equal in pairs.items() if is_equal):
                old, new = same.get(x, x), same.get(y, y)
                same |= {one: new for one in (old, *same) if same.get(one, one) == old}
            self._seen[key] = (not pairs or not all(pairs.values())), same
        return self._seen[key]

    def _pairs(self, place: int, earlier: int) -> dict[tuple[Hashable, Hashable], bool]:
        """Return for pairs of different answers of agents whether they led to equal inputs."""
        found: dict[tuple[Hashable, Hashable], bool] = {}
        if not self._mixtures:
            return found
        places, replies = self._mixtures[place].places, self._answers[earlier].replies
        for a, b in combinations(places, 2):
            for row, (one, other) in enumerate(zip(places[a], places[b], strict=True)):
                x, y = replies[a][row], replies[b][row]
                if x != y:
                    found[x, y] = found.get((x, y), False) or one == other
        return found

"""Simulated scores, races and trials for a forecast, from simulated answers of agents."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import ceil, inf
from typing import Any, Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.early_facts import AgentCosts, Cost
from moa_dspy.optimize.selection import CAUTION, SINGLE_CAUTION
from moa_dspy.optimize.simulated_answers import (
    READING_HABITS,
    RowScores,
    SimulatedAnswer,
    SimulatedAnswers,
    SimulatedInputs,
    SimulatedMeanings,
)
from moa_dspy.optimize.space.programs import MOST_REPEATS, ProgramArchitecture
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import (
    Acquisition,
    neighbours,
    nodes_of,
    single_agents,
)
from moa_dspy.optimize.surrogate.gp import Kernels, SurrogateModel, Traits
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, ANALYSE, RANK, REFERENCES_HEADING
from moa_dspy.waves import Waves
from moa_dspy.winrate.tests import FEWEST_SDS, Race, look_points


class SimulatedRace:
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
        answers: SimulatedAnswers,
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
        self._rival, self._rival_mean = np.zeros(self._n_rows), -inf
        self._whole: dict[Architecture, RowScores] = {}
        self._scores: dict[Architecture, RowScores] = {}
        self._rows: dict[Architecture, int] = {}
        rng = np.random.default_rng([seed % 2**32 for seed in seeds])
        self._meanings = SimulatedMeanings(answers, rng)
        self._alone = [Architecture.single(name) for name in self._singles]
        for one, name in zip(self._alone, self._singles, strict=True):
            self._scores[one] = self._singles[name]
            self._finish(one)

    def _finish(self, arch: Architecture) -> None:
        """Note that an architecture is measured on all rows, and may stop later ones."""
        scores = self._whole[arch] = self._scores[arch]
        self._rows[arch] = self._n_rows
        mean = float(scores.mean())
        if mean > self._rival_mean and not (self._must_cost_less and arch.layers):
            self._rival, self._rival_mean = scores, mean

    def rows_of(self, arch: Architecture) -> int:
        """Return the number of rows on which an architecture is measured."""
        if arch not in self._rows:
            scores = self._scores[arch] = self._meanings.scores(arch)
            for look in self._looks:
                if self._race.is_lost(scores[:look], self._rival[:look]):
                    self._rows[arch] = look
                    return look
            self._finish(arch)
        return self._rows[arch]

    def scores_of(self, arch: Architecture) -> RowScores:
        """Return the scores of an architecture row by row; NaN where it is not measured."""
        n_rows = self.rows_of(arch)
        return np.where(np.arange(self._n_rows) < n_rows, self._scores[arch], np.nan)

    def ordered(self, among: Iterable[Architecture]) -> list[Architecture]:
        """Return the architectures measured on all rows, best first; ties go to fewer calls."""
        whole = [arch for arch in among if arch in self._whole]
        return sorted(whole, key=lambda arch: (-round(self._whole[arch].mean(), 12), arch.calls))

    def best(self, among: Iterable[Architecture] | None = None) -> Architecture | None:
        """Return the best architecture measured on all rows, of ``among`` or, if None, of all."""
        return next(iter(self.ordered(self._whole if among is None else among)), None)

    def pick(self, among: Iterable[Architecture] | None = None) -> Architecture:
        """Return the pick of ``among`` or, if None, of all.

        A mixture must beat the best single agent, or the best vote of them, by more than chance.
        """
        known = [*(self._rows if among is None else dict.fromkeys(among))]
        alone = [one for one in (*self._alone, *known) if not one.layers and one in self._whole]
        single = self.ordered(alone)[0]
        votes = [one for one in known if one.combine == "vote" and one.chooses_among_singles]
        best = (self.ordered(votes) or [single])[0]
        gaps = self._whole[best] - self._whole[single]
        is_better = gaps.sum() > FEWEST_SDS * float(np.sqrt((gaps**2).sum()))
        others = [one for one in self.ordered(known) if one.layers and one not in votes]
        if others:
            # A study compares them with the best vote, however small its lead is.
            plain = self.ordered([single, *votes])[0]
            caution = CAUTION if plain.layers else SINGLE_CAUTION
            gains = self._cautious_gains(plain, caution, [*alone, *known])
            found = max(others, key=lambda one: (gains[one], -one.calls))
            if gains[found] > 0:
                return found
        return best if is_better else single

    def _cautious_gains(
        self, incumbent: Architecture, caution: float, known: Iterable[Architecture]
    ) -> dict[Architecture, float]:
        """Return the gains over the incumbent, shrunk as a study shrinks them, less some errors."""
        ones = [*dict.fromkeys([incumbent, *known])]
        if any(isinstance(one, ProgramArchitecture) for one in ones):
            rows = {one: self._scores[one] - self._scores[incumbent] for one in ones}
            spreads = {one: float(np.sqrt((gaps**2).sum())) for one, gaps in rows.items()}
            return {one: float(gaps.sum()) - caution * spreads[one] for one, gaps in rows.items()}
        means = {name: float(found.mean()) for name, found in self._singles.items()}
        prompts = dict.fromkeys(one.prompt for one in ones if one.prompt is not None)
        kernels = Kernels.of(Traits(means, self._answers.diversity, tuple(prompts)))
        scores = np.array([self.scores_of(one) for one in ones])
        # The time to learn grows with the cube of their number.
        some = slice(None, None, ceil(len(ones) / _MOST_LEARNED))
        weights = SurrogateModel(kernels, ones[some], scores[some]).weights
        gains, errors = SurrogateModel(kernels, ones, scores, weights=weights).gains(incumbent)
        return dict(zip(ones, (gains - caution * errors).round(12).tolist(), strict=True))


_MOST_LEARNED: Final = 100
"""Architectures from which a simulated pick learns the weights of the surrogate model."""
_TASKS: Final = {"select": RANK, "knockout": RANK, "fuse": ANALYSE}
"""Instructions of last steps that are not in the paper on mixtures of agents."""
_TOKENS_PER_WORD: Final = 1.2
"""Tokens per word of English instructions (cl100k: 1.17 to 1.19 for those of this library)."""
_MARK_TOKENS: Final = 5.0  # number and quotes around a response that is read
_RANKER_TOKENS: Final = 2.0  # tokens of a reply that is a number


_MOST_PROPOSED: Final = 120 // len(READING_HABITS)
"""Proposals by the acquisition in each simulated search: 15 ms each, one search per habit."""
_N_CANDIDATES: Final = 12
"""Neighbours, and as many draws, that are candidates of a proposal without the acquisition."""
_SHARED_DRAWS: Final = 500
"""Draws of which all searches take their candidates; a draw takes half a millisecond."""

_Canonical = Callable[[Architecture], Architecture]


class Candidates:
    """The candidates of proposals without the acquisition; searches over a space share them.

    Args:
        space: The architectures that may be tried.
        canonical: Gives architectures the form in which they are measured.
        seed: Seed of the draws.
    """

    def __init__(self, space: SearchSpace, canonical: _Canonical, seed: int) -> None:
        self.space, self.canonical = space, canonical
        self._seed = seed
        self._near: dict[Architecture, list[Architecture]] = {}

    @cached_property
    def _drawn(self) -> list[Architecture]:
        rng = random.Random(f"candidates-{self._seed}")
        return [self.draw(rng) for _ in range(_SHARED_DRAWS)]

    def draw(self, rng: random.Random) -> Architecture:
        """Return any architecture."""
        return self.canonical(self.space.draw(rng))

    def some(self, mixtures: Sequence[Architecture], rng: random.Random) -> list[Architecture]:
        """Return neighbours of one of the mixtures, if any, and draws."""
        near: list[Architecture] = []
        if mixtures:
            chosen = rng.choice(mixtures)
            if chosen not in self._near:
                self._near[chosen] = list(neighbours(chosen, self.space))
            near = self._near[chosen]
        near = rng.sample(near, min(len(near), _N_CANDIDATES))
        return [*map(self.canonical, near), *rng.sample(self._drawn, _N_CANDIDATES)]


def simulated_trials(
    candidates: Candidates,
    first: Iterable[Architecture],
    n: int,
    *,
    race: SimulatedRace,
    acquisition: Acquisition | None,
    rng: random.Random,
) -> list[Architecture]:
    """Return at most ``n`` mixtures that a search tries, in order.

    After the ``first`` mixtures, the acquisition proposes; if it is None, they are drawn.
    """
    architectures = dict.fromkeys(single_agents(candidates.space))
    n_known = len(architectures)
    architectures |= dict.fromkeys(first)
    nodes = {node for arch in architectures for node in nodes_of(arch)}
    while len(architectures) - n_known < n:
        if acquisition is not None and len(architectures) - n_known < _MOST_PROPOSED:
            scores = np.array([race.scores_of(arch) for arch in architectures])
            proposal = acquisition.propose(list(architectures), scores)
        else:
            proposal = _drawn(candidates, architectures, nodes, rng)
        if proposal is None:
            break
        architectures[proposal] = None
        nodes |= nodes_of(proposal)
    return list(architectures)[n_known:][:n]


def _drawn(
    candidates: Candidates,
    architectures: Mapping[Architecture, None],
    nodes: Set[Hashable],
    rng: random.Random,
) -> Architecture | None:
    """Return a mixture as another sampler may propose it: the best gain per new call.

    Candidates are neighbours of a known mixture and draws from the space; gains are random.
    """
    some = candidates.some([arch for arch in architectures if arch.layers], rng)
    new = [arch for arch in some if arch not in architectures]

    def promise(arch: Architecture) -> float:
        return rng.expovariate(1) / (1 + len(nodes_of(arch) - nodes))

    if new:
        return max(new, key=promise)
    others = (candidates.draw(rng) for _ in range(MOST_REPEATS))
    return next((arch for arch in others if arch not in architectures), None)


@dataclass(slots=True)
class StageCalls:
    """The requests of a stage, on the rows of a simulation."""

    calls: float = 0.0
    tokens: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, steps: Iterable[Sequence[tuple[str, Cost]]]) -> None:
        """Add the steps of one answer; the agents of a step are asked at the same time."""
        for step in steps:
            slowest = 0.0
            for name, cost in step:
                self.calls += cost.calls
                self.tokens += cost.tokens
                self.usd += cost.usd
                self.busy[name] += cost.seconds
                slowest = max(slowest, cost.seconds)
            self.seconds += slowest

    def scaled(self, scale: float, *, num_threads: int, agents: Mapping[str, AgentCosts]) -> Cost:
        """Return the cost of these requests times ``scale``; seconds are wall time."""
        limits = {name: agents[name].max_concurrent for name in self.busy}
        waits = [self.busy[name] / n for name, n in limits.items() if n is not None]
        waits.append(sum(busy * agents[name].processor_share for name, busy in self.busy.items()))
        seconds = max([self.seconds / num_threads, *waits])
        return Cost(self.calls, self.tokens, self.usd, seconds) * scale


def tokens_read(
    agents: Mapping[str, AgentCosts], layer: Iterable[str], task: str = AGGREGATE_AND_SYNTHESIZE
) -> float:
    """Return the tokens of an instruction and of the answers of a layer."""
    texts = sum(agents[name].text_tokens + _MARK_TOKENS for name in layer)
    return _TOKENS_PER_WORD * _n_words(task) + texts


@lru_cache(maxsize=16)
def _n_words(task: str) -> int:
    return len(f"{task} {REFERENCES_HEADING}".split())


@lru_cache(maxsize=10_000)
def _seats(names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Return each name with the number of the same names before it."""
    return tuple((name, names[:seat].count(name)) for seat, name in enumerate(names))


@lru_cache(maxsize=10_000)
def _waves(vote: Architecture, stops: bool) -> Waves:
    return Waves.of_vote(vote, stops=stops)


@dataclass(slots=True)
class SimulatedStudy:
    """The state of a simulated study: all that its requests depend on, and the answers so far.

    Attributes:
        by_mixture: Answers of the single agents in each mixture of a program; else one.
        inputs: Inputs of these mixtures.
        rng: Source of all draws.
        stops_early: Whether a vote asks only the members that decide its answer.
        beyond_val: Tokens by which inputs of other splits are longer than those of val.
        asked: Answers by request.
        costs: Cost of an agent's answer by what it depends on.
    """

    by_mixture: Sequence[SimulatedAnswers]
    inputs: SimulatedInputs
    rng: random.Random
    stops_early: bool = True
    beyond_val: Mapping[str, float] = field(default_factory=dict[str, float])
    asked: dict[Hashable, SimulatedAnswer] = field(default_factory=dict[Hashable, SimulatedAnswer])
    costs: dict[Hashable, Cost] = field(default_factory=dict[Hashable, Cost])


@dataclass(slots=True)
class SimulatedQuestions:
    """The questions of one answer of a mixture on one row.

    Attributes:
        study: All that was asked before.
        row: Split and number of the row.
        agents: Costs of the agents in this mixture.
        place: Place of the mixture in its program.
        given: Inputs of the mixture in a program, beside the row.
        part: Factor of the costs.
        steps: Requests of each step so far, with their costs.
    """

    study: SimulatedStudy
    row: Any
    agents: Mapping[str, AgentCosts]
    place: int = 0
    given: Hashable = ()
    part: float = 1.0
    steps: list[list[tuple[str, Cost]]] = field(default_factory=list[list[tuple[str, Cost]]])

    def answer(self, one: Architecture) -> SimulatedAnswer:
        """Ask the layers and the last step."""
        read: list[SimulatedAnswer] = []
        tokens, n_layers = 0.0, len(one.layers)
        for at, layer in enumerate(one.layers):
            if one.combine == "vote" and at == n_layers - 1:
                return self.vote(one, read, tokens)
            read = self.layer(_seats(layer), read, tokens)
            tokens = tokens_read(self.agents, layer)
        if n_layers and one.combine in _TASKS:
            tokens = tokens_read(self.agents, one.layers[-1], _TASKS[one.combine])
        chooses, said = one.combine in ("select", "knockout") and n_layers > 0, read
        for at, names in enumerate(one.last_step_rounds):
            is_own = one.combine == "synthesize" and one.prompt is None
            role = "propose" if is_own or not n_layers else (one.combine, one.prompt, at)
            reply = _RANKER_TOKENS if chooses else None
            said = self.layer(_seats(tuple(names)), read, tokens, role=role, reply=reply)
        return self.study.rng.choice(read) if chooses else said[-1]

    def layer(
        self,
        seats: Sequence[tuple[str, int]],
        read: Sequence[SimulatedAnswer],
        tokens: float,
        *,
        role: Hashable = "propose",
        reply: float | None = None,
    ) -> list[SimulatedAnswer]:
        """Ask seats at once; return the answer of each, with its text and its ballot."""
        step: list[tuple[str, Cost]] = []
        said = [self._ask(seat, read, tokens, role, reply, step) for seat in seats]
        self.steps.append(step)
        return said

    def vote(
        self, one: Architecture, read: Sequence[SimulatedAnswer], tokens: float
    ) -> SimulatedAnswer:
        """Ask the members of a vote until its answer is certain, or all; return that answer."""
        waves, seats = _waves(one, self.study.stops_early), _seats(one.layers[-1])
        said: dict[int, SimulatedAnswer] = {}
        while due := waves.due({place: answer.ballot for place, answer in said.items()}):
            found = self.layer([seats[place] for place in due], read, tokens)
            said |= zip(due, found, strict=True)
        asked = [place for place in waves.priority if place in said]
        totals = Counter[Hashable]()
        for place in asked:
            totals[said[place].ballot] += waves.weights[place]
        # Ties go to the first that was asked.
        return said[max(asked, key=lambda place: totals[said[place].ballot])]

    def _ask(
        self,
        seat: tuple[str, int],
        read: Sequence[SimulatedAnswer],
        tokens: float,
        role: Hashable,
        reply: float | None,
        step: list[tuple[str, Cost]],
    ) -> SimulatedAnswer:
        (name, sample), study = seat, self.study
        agent, texts = self.agents[name], tuple(one.text for one in read)
        sample = 0 if agent.is_greedy else sample
        key = (self.row, self.place, self.given, name, sample, role, texts)
        if (known := study.asked.get(key)) is None:
            step.append((name, self._cost(name, tokens, reply)))
            known = study.asked[key] = self._replies(name, sample, read)
        return known

    def _cost(self, name: str, tokens: float, reply: float | None) -> Cost:
        """Return the cost of an answer of an agent that reads ``tokens`` of others."""
        known, key = self.study.costs, (self.place, self.row[0], name, tokens, reply)
        if key not in known:
            more = tokens + self.study.beyond_val.get(self.row[0], 0.0)
            known[key] = self.agents[name].reading(more, reply=reply) * self.part
        return known[key]

    def _replies(self, name: str, sample: int, read: Sequence[SimulatedAnswer]) -> SimulatedAnswer:
        """Return what an agent answers: what it did, if it was asked the same alone."""
        study, row = self.study, self.row[1]
        answers = study.by_mixture[self.place]
        is_known = not self.given or self.given == study.inputs.own(self.place, name, row)
        if not read and not sample:
            return answers.alone(name, row) if is_known else answers.elsewhere(name, row, study.rng)
        return answers.anew(name, row, read, study.rng)

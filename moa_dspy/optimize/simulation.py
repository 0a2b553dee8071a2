"""Simulated scores, races and trials for a forecast, from simulated answers of agents."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
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
from moa_dspy.optimize.space.rules import combine_features
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import (
    Acquisition,
    Forecast,
    Prices,
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
        self._whole: dict[Architecture, RowScores] = {}
        self._scores: dict[Architecture, RowScores] = {}
        self._rows: dict[Architecture, int] = {}
        rng = np.random.default_rng([seed % 2**32 for seed in seeds])
        self._meanings = SimulatedMeanings(answers, rng)
        self._alone = [Architecture.single(name) for name in self._singles]
        for one, name in zip(self._alone, self._singles, strict=True):
            self._put(one, self._singles[name])

    def _put(self, key: Architecture, scores: RowScores) -> None:
        self._whole[key] = self._scores[key] = scores
        self._rows[key] = self._n_rows

    def rows_of(self, arch: Architecture) -> int:
        """Return the number of rows on which an architecture is measured."""
        if arch not in self._rows:
            rival, scores = self._rival(), self._meanings.scores(arch)
            self._put(arch, scores)
            for look in self._looks:
                if self._race.is_lost(scores[:look], rival[:look]):
                    del self._whole[arch]
                    self._rows[arch] = look
                    break
        return self._rows[arch]

    def scores_of(self, arch: Architecture) -> RowScores:
        """Return the scores of an architecture row by row; NaN where it is not measured."""
        n_rows = self.rows_of(arch)
        return np.where(np.arange(self._n_rows) < n_rows, self._scores[arch], np.nan)

    def _rival(self) -> RowScores:
        among = {o: f for o, f in self._whole.items() if not (self._must_cost_less and o.layers)}
        return max(among.values(), key=lambda scores: float(scores.mean()))

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
        model = SurrogateModel(kernels, ones, np.array([self.scores_of(one) for one in ones]))
        gains, errors = model.gains(incumbent)
        return dict(zip(ones, (gains - caution * errors).round(12).tolist(), strict=True))


_TASKS: Final = {"select": RANK, "knockout": RANK, "fuse": ANALYSE}
"""Instructions of last steps that are not in the paper on mixtures of agents."""
_TOKENS_PER_WORD: Final = 1.2
"""Tokens per word of English instructions (cl100k: 1.17 to 1.19 for those of this library)."""
_MARK_TOKENS: Final = 5.0  # number and quotes around a response that is read
_RANKER_TOKENS: Final = 2.0  # tokens of a reply that is a number


_MOST_PROPOSED: Final = 120 // len(READING_HABITS)
"""Proposals by the acquisition in each simulated search: 15 ms each, one search per habit."""
_N_DRAWN: Final = 20
"""Random candidates of such a proposal, beside neighbours; a real search has more."""
_N_CANDIDATES: Final = 12
"""Neighbours, and as many draws, that are candidates of a proposal without the acquisition."""

_Canonical = Callable[[Architecture], Architecture]


def simulated_acquisition(
    space: SearchSpace,
    answers: SimulatedAnswers,
    agents: Mapping[str, AgentCosts],
    costs: Sequence[str],
    canonical: _Canonical,
    seed: int,
) -> Acquisition:
    """Return the acquisition of a search, for simulated scores.

    ``costs`` names the costs that are objectives.
    """
    means = {name: float(row.mean()) for name, row in answers.scores.items()}
    forecast = Forecast(
        usd={name: agent.alone.usd for name, agent in agents.items()},
        seconds={name: agent.alone.seconds for name, agent in agents.items()},
    )
    traits = Traits(means, answers.diversity, space.prompts, combine_features(space))
    prices = Prices(forecast, costs, seed)
    return Acquisition(space, Kernels.of(traits), canonical, seed, prices.at, n_drawn=_N_DRAWN)


def simulated_trials(
    space: SearchSpace,
    first: Iterable[Architecture],
    n: int,
    *,
    race: SimulatedRace,
    canonical: _Canonical,
    acquisition: Acquisition | None,
    rng: random.Random,
) -> list[Architecture]:
    """Return at most ``n`` mixtures that a search tries, in order.

    After the ``first`` mixtures, the acquisition proposes; if it is None, they are drawn.
    """
    architectures = dict.fromkeys(single_agents(space))
    n_known = len(architectures)
    architectures |= dict.fromkeys(first)
    nodes = {node for arch in architectures for node in nodes_of(arch)}
    while len(architectures) - n_known < n:
        if acquisition is not None and len(architectures) - n_known < _MOST_PROPOSED:
            scores = np.array([race.scores_of(arch) for arch in architectures])
            proposal = acquisition.propose(list(architectures), scores)
        else:
            proposal = _drawn(space, architectures, nodes, canonical, rng)
        if proposal is None:
            break
        architectures[proposal] = None
        nodes |= nodes_of(proposal)
    return list(architectures)[n_known:][:n]


def _drawn(
    space: SearchSpace,
    architectures: Mapping[Architecture, None],
    nodes: Set[Hashable],
    canonical: _Canonical,
    rng: random.Random,
) -> Architecture | None:
    """Return a mixture as another sampler may propose it: the best gain per new call.

    Candidates are neighbours of a known mixture and draws from the space; gains are random.
    """
    mixtures = [arch for arch in architectures if arch.layers]
    near = list(neighbours(rng.choice(mixtures), space)) if mixtures else []
    draws = [space.draw(rng) for _ in range(_N_CANDIDATES)]
    some = [*rng.sample(near, min(len(near), _N_CANDIDATES)), *draws]
    new = [arch for arch in map(canonical, some) if arch not in architectures]

    def promise(arch: Architecture) -> float:
        return rng.expovariate(1) / (1 + len(nodes_of(arch) - nodes))

    if new:
        return max(new, key=promise)
    others = (canonical(space.draw(rng)) for _ in range(MOST_REPEATS))
    return next((arch for arch in others if arch not in architectures), None)


@dataclass(slots=True)
class StageCalls:
    """The requests of a stage, on the rows of a simulation."""

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


def tokens_read(
    agents: Mapping[str, AgentCosts], layer: Iterable[str], task: str = AGGREGATE_AND_SYNTHESIZE
) -> float:
    """Return the tokens of an instruction and of the answers of a layer."""
    texts = sum(agents[name].text_tokens + _MARK_TOKENS for name in layer)
    return _TOKENS_PER_WORD * len(f"{task} {REFERENCES_HEADING}".split()) + texts


@dataclass(slots=True)
class SimulatedStudy:
    """The state of a simulated study: all that its requests depend on, and the answers so far.

    Attributes:
        by_mixture: Answers of the single agents in each mixture of a program; else one.
        inputs: Inputs of these mixtures.
        rng: Source of all draws.
        ranking: Agents, best first; members of a vote are asked in this order.
        stops_early: Whether a vote asks only the members that decide its answer.
        beyond_val: Tokens by which inputs of other splits are longer than those of val.
        asked: Answers by request.
    """

    by_mixture: Sequence[SimulatedAnswers]
    inputs: SimulatedInputs
    rng: random.Random
    ranking: Sequence[str]
    stops_early: bool = True
    beyond_val: Mapping[str, float] = field(default_factory=dict[str, float])
    asked: dict[Hashable, SimulatedAnswer] = field(default_factory=dict[Hashable, SimulatedAnswer])


@dataclass(slots=True)
class SimulatedQuestions:
    """The questions of one answer of a mixture on one row.

    Attributes:
        study: All that was asked before.
        row: Split and number of the row.
        agents: Costs of the agents in this mixture.
        place: Of the mixture in its program.
        given: Inputs of the mixture in a program, beside the row.
        part: Factor of the costs.
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
            is_vote = one.combine == "vote" and at == n_layers - 1
            seats = [(name, layer[:seat].count(name)) for seat, name in enumerate(layer)]
            ask = self.members if is_vote and self.study.stops_early else self.layer
            read = ask(seats, read, tokens)
            tokens = tokens_read(self.agents, layer)
        if n_layers and one.combine in _TASKS:
            tokens = tokens_read(self.agents, one.layers[-1], _TASKS[one.combine])
        chooses, said = one.combine in ("select", "knockout", "vote") and n_layers > 0, read
        for at, names in enumerate(one.last_rounds):
            is_own = one.combine == "synthesize" and one.prompt is None
            role = "propose" if is_own or not n_layers else (one.combine, one.prompt, at)
            seats = [(name, names[:seat].count(name)) for seat, name in enumerate(names)]
            reply = _RANKER_TOKENS if chooses else None
            said = self.layer(seats, read, tokens, role=role, reply=reply)
        if not chooses:
            return said[-1]
        if one.combine != "vote":
            return self.study.rng.choice(read)
        # Ties go to the first that was asked, the best.
        most = Counter(said.ballot for said in read).most_common(1)[0][0]
        return next(said for said in read if said.ballot == most)

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

    def members(
        self, seats: Sequence[tuple[str, int]], read: Sequence[SimulatedAnswer], tokens: float
    ) -> list[SimulatedAnswer]:
        """Ask the members of a vote until its answer is certain."""
        ranking = self.study.ranking
        order = sorted(range(len(seats)), key=lambda place: ranking.index(seats[place][0]))
        waves, said = Waves((1,) * len(seats), tuple(order)), dict[int, Hashable]()
        asked: list[SimulatedAnswer] = []
        while due := waves.due(said):
            found = self.layer([seats[place] for place in due], read, tokens)
            said |= {place: one.ballot for place, one in zip(due, found, strict=True)}
            asked += found
        return asked

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
            more = tokens + study.beyond_val.get(self.row[0], 0.0)
            step.append((name, agent.reading(more, reply=reply) * self.part))
            known = study.asked[key] = self._replies(name, sample, read)
        return known

    def _replies(self, name: str, sample: int, read: Sequence[SimulatedAnswer]) -> SimulatedAnswer:
        """Return what an agent answers: what it did, if it was asked the same alone."""
        study, row = self.study, self.row[1]
        answers = study.by_mixture[self.place]
        is_known = not self.given or self.given == study.inputs.own(self.place, name, row)
        if not read and not sample:
            return answers.alone(name, row) if is_known else answers.elsewhere(name, row, study.rng)
        return answers.anew(name, row, read, study.rng)

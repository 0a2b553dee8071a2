"""The cost of a whole study, foretold by playing it through several times.

Each play follows the stages of a study: single agents, the baselines and drawn mixtures with
their races, the random baseline, the test. What two mixtures ask alike is asked once in it, votes
stop as they do, and readers pay for what they read. The range is that of several plays.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget
from moa_dspy.optimize.early_facts import AgentCosts, Cost, StudyEstimate
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.race import PlayedRace
from moa_dspy.optimize.space.programs import (
    MOST_REPEATS,
    ProgramArchitecture,
    asked_as_often,
    random_draws,
)
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import neighbours, nodes_of, single_agents
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, ANALYSE, RANK, REFERENCES_HEADING
from moa_dspy.waves import Waves

MOST_DRAWN: Final = 300
"""Architectures drawn at most; of more, each is taken to ask as much as the last of these."""
_ROWS: Final = 12  # on which a play asks; costs are scaled up to all
_MOST_PLAYS, _FEWEST_PLAYS = 20, 5
_PLAYED: Final = 2_000
"""Architectures of all plays together: as many plays as that allows."""
_ENDS: Final = (0.1, 0.5, 0.9)
"""Quantiles of the plays: low, likely, high."""
_TASKS: Final = {"select": RANK, "knockout": RANK, "fuse": ANALYSE}
"""Instructions of the last step that are not the paper's."""
_TOKENS_PER_WORD: Final = 1.2
"""Of English instructions, to common tokenizers (cl100k: 1.17 to 1.19 for those of here)."""
_MARK_TOKENS: Final = 5.0  # around a reference: its number and quotes
_N_CANDIDATES: Final = 12
"""Neighbours, and draws, of which a proposal is one."""
_RANKER_TOKENS: Final = 2.0  # of a reply that is a number

_Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StudyPlan:
    """The work of a study, as far as it is known before or after its single agents.

    Attributes:
        space: What may be tried.
        agents: Costs of each, in the pool's order.
        n_trials: Most architectures measured on val, single agents included.
        n_val: Val rows.
        n_test: Test rows.
        num_threads: Questions answered at the same time.
        given: What is tried before anything is proposed, in order.
        tested: Baselines that are compared on test whatever is picked.
        n_free: Trials for votes of the single agents' answers, which ask nothing.
        canonical: Gives architectures the form in which they are measured.
        effort: Of tuning prompts; None where a search has no prompts.
        judged: Cost of one comparison of two answers; None without a judge.
        stops_early: Whether a vote asks no more than its answer needs.
        has_costs: Whether costs are objectives, so that a loser is stopped by what costs less.
        scores: Of each agent on the rows of val; empty before they are known.
        replies: What each said there, equal where a reader reads the same.
        ballots: What a vote counts there.
        has_short_answers: Whether answers of agents that are right are equal; asked only
            before they are known.
        seed: Of the study.
    """

    space: SearchSpace
    agents: Mapping[str, AgentCosts]
    n_trials: int
    n_val: int
    n_test: int
    num_threads: int = 1
    given: Sequence[Architecture] = ()
    tested: Sequence[Architecture] = ()
    n_free: int = 0
    canonical: Callable[[Architecture], Architecture] = lambda one: one
    effort: TuningEffort | None = None
    judged: Cost | None = None
    stops_early: bool = True
    has_costs: bool = False
    scores: Mapping[str, _Scores] = field(default_factory=dict[str, _Scores])
    replies: Mapping[str, Sequence[Hashable]] = field(default_factory=dict[str, Any])
    ballots: Mapping[str, Sequence[Hashable]] = field(default_factory=dict[str, Any])
    has_short_answers: bool = False
    seed: int = 0

    @property
    def n_measured(self) -> int:
        """Architectures that will be measured."""
        size = self.space.size
        return self.n_trials if size is None else min(self.n_trials, size)

    @cached_property
    def random_ones(self) -> tuple[Architecture, ...]:
        """The architectures of the random baseline; the first of many."""
        draws = random_draws(self.space, self.canonical, self.seed)
        return tuple(islice(draws, min(self.n_measured, MOST_DRAWN)))

    def stages(self) -> dict[str, tuple[Cost, Cost, Cost]]:
        """Return low, likely and high of each stage, in the order in which they run, and of all.

        Seconds are wall time.
        """
        n_plays = _PLAYED // max(1, 2 * min(self.n_measured, MOST_DRAWN))
        n_plays = min(_MOST_PLAYS, max(_FEWEST_PLAYS, n_plays))
        plays = [_Play(self, number).stages() for number in range(n_plays)]
        wholes = [sum(play.values(), Cost()) for play in plays]
        found = {name: _quantiles([play[name] for play in plays]) for name in plays[0]}
        return {**found, "all": _quantiles(wholes)}


def _quantiles(costs: Sequence[Cost]) -> tuple[Cost, Cost, Cost]:
    names = [one.name for one in fields(Cost)]
    ordered = {name: sorted(getattr(cost, name) for cost in costs) for name in names}
    places = [round(end * (len(costs) - 1)) for end in _ENDS]
    low, likely, high = (Cost(**{n: ordered[n][place] for n in names}) for place in places)
    return low, likely, high


def estimated(plan: StudyPlan, budget: Budget | None = None) -> StudyEstimate:
    """Estimate what the whole study takes, the single agents on val included.

    Args:
        plan: Of the study.
        budget: What may end it before: the estimate says which limit, and after how much.
    """
    stages = plan.stages()
    low, whole, high = stages["all"]
    judging = stages["judge"][1].calls if "judge" in stages else 0.0
    return _within(
        StudyEstimate(
            round(whole.calls),
            whole.usd,
            whole.seconds,
            judge_calls=round(judging),
            tokens=round(whole.tokens),
            low=low,
            high=high,
        ),
        budget or Budget(),
    )


def _within(found: StudyEstimate, budget: Budget) -> StudyEstimate:
    """Say which limit of ``budget`` is reached first, if any."""
    limits = {f.name: getattr(budget, f.name) for f in fields(Cost)}
    shares = {
        name: limit / needed
        for name, limit in limits.items()
        if limit is not None and (needed := getattr(found, name)) > 0
    }
    first = min(shares, key=lambda name: shares[name], default=None)
    if first is None or shares[first] >= 1:
        return found
    return replace(found, capped_by=first, ceiling=float(limits[first]), share=shares[first])


@dataclass(slots=True)
class _Stage:
    """The requests of a stage, on the played rows."""

    cost: Cost = field(default_factory=Cost)
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, steps: Iterable[Sequence[tuple[str, Cost]]]) -> None:
        """Add the steps of one answer; who is asked in a step is asked at once."""
        for step in steps:
            total = sum((cost for _, cost in step), Cost())
            slowest = max((cost.seconds for _, cost in step), default=0.0)
            self.cost += replace(total, seconds=slowest)
            for name, cost in step:
                self.busy[name] += cost.seconds

    def scaled(self, plan: StudyPlan, scale: float) -> Cost:
        """Return the cost of so many times as much; seconds are wall time."""
        limits = {name: plan.agents[name].max_concurrent for name in self.busy}
        waits = [self.busy[name] / n for name, n in limits.items() if n is not None]
        seconds = max([self.cost.seconds / plan.num_threads, *waits])
        return replace(self.cost, seconds=seconds) * scale


class _Play:
    """One play of a study: what is not known yet is drawn by its number."""

    def __init__(self, plan: StudyPlan, number: int) -> None:
        self.plan, self.number = plan, number
        self.rng = random.Random(f"forecast-{plan.seed}-{number}")
        n = min(_ROWS, plan.n_val)
        self.rows = [plan.n_val * k // n for k in range(n)]
        self.asked: dict[Hashable, tuple[Hashable, Hashable]] = {}
        self.scores, self.replies, self.ballots = plan.scores, plan.replies, plan.ballots
        if not self.scores:
            self._make_up()
        self.agreement = self._agreement()
        self.rows_judged = 0.0

    def _make_up(self) -> None:
        """Draw how good the agents are; of short answers the right ones are equal."""
        rng = np.random.default_rng([self.plan.seed % 2**32, self.number])
        ease, names = rng.normal(size=self.plan.n_val), self.plan.agents
        skill = {name: rng.normal() for name in names}
        self.scores = {n: (skill[n] + ease + rng.normal(size=ease.size) > 0) * 1.0 for n in names}
        if self.plan.has_short_answers:
            self.replies = {
                name: ["right" if score else int(rng.integers(4)) for score in found]
                for name, found in self.scores.items()
            }
        else:
            self.replies = {n: [(n, row) for row in range(ease.size)] for n in names}
        self.ballots = self.replies

    def _agreement(self) -> float:
        """Return how often two agents say the same."""
        said = [[self.replies[name][row] for name in self.plan.agents] for row in self.rows]
        pairs = [(a, b) for row in said for i, a in enumerate(row) for b in row[:i]]
        return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0

    def stages(self) -> dict[str, Cost]:
        """Return the cost of each stage."""
        plan, n_rows = self.plan, len(self.rows)
        singles = list(single_agents(plan.space))
        on_val, race = plan.n_val / n_rows, self._race()
        found = {"single agents": self._measured(singles, None).scaled(plan, on_val)}
        searched, scale = self._searched()
        found["search"] = self._measured(searched, race).scaled(plan, on_val * scale)
        if plan.effort is not None:
            found["prompts"] = self._tuning(plan.effort)
        scale = plan.n_measured / max(1, len(plan.random_ones))
        scale = scale if len(plan.random_ones) == MOST_DRAWN else 1.0
        baseline = self._measured(plan.random_ones, race)
        found["random baseline"] = baseline.scaled(plan, on_val * scale)
        found["test"] = self._tested(race).scaled(plan, plan.n_test / n_rows)
        if plan.judged is not None:
            n_systems = len(plan.agents) + 5  # pick, baselines, and pick against the best single
            n_judged = self.rows_judged * on_val + plan.n_test * n_systems
            judged = plan.judged * n_judged
            found["judge"] = replace(judged, seconds=judged.seconds / plan.num_threads)
        return found

    def _race(self) -> PlayedRace:
        plan = self.plan
        seeds = (plan.seed, self.number)
        return PlayedRace(
            self.scores, n_trials=plan.n_trials, must_cost_less=plan.has_costs, seeds=seeds
        )

    def _searched(self) -> tuple[list[Architecture], float]:
        """Return the mixtures of the trials, and how many times as many there will be."""
        plan = self.plan
        n = max(0, plan.n_measured - len(plan.agents) - plan.n_free)
        known = dict.fromkeys(single_agents(plan.space))
        n_known = len(known)
        known |= dict.fromkeys(plan.given)
        made = {node for one in known for node in nodes_of(one)}
        while len(known) - n_known < min(n, MOST_DRAWN):
            if (found := self._proposed(known, made)) is None:
                break
            known[found] = None
            made |= nodes_of(found)
        mixtures = list(known)[n_known:][:n]
        return mixtures, n / MOST_DRAWN if len(mixtures) == MOST_DRAWN else 1.0

    def _proposed(
        self, known: Mapping[Architecture, None], made: Set[Hashable]
    ) -> Architecture | None:
        """Return a mixture as the search proposes it, its promise per new call drawn.

        Of neighbours of what was measured, and draws from the space.
        """
        plan, mixtures = self.plan, [one for one in known if one.layers]
        centre = [self.rng.choice(mixtures)] if mixtures else []
        near = [other for one in centre for other in neighbours(one, plan.space)]
        some = [*self.rng.sample(near, min(len(near), _N_CANDIDATES)), *self._draws()]
        new = [one for one in map(plan.canonical, some) if one not in known]

        def promise(one: Architecture) -> float:
            return self.rng.expovariate(1) / (1 + len(nodes_of(one) - made))

        if new:
            return max(new, key=promise)
        others = (plan.canonical(plan.space.draw(self.rng)) for _ in range(MOST_REPEATS))
        return next((one for one in others if one not in known), None)

    def _draws(self) -> list[Architecture]:
        return [self.plan.space.draw(self.rng) for _ in range(_N_CANDIDATES)]

    def _measured(self, ones: Iterable[Architecture], race: PlayedRace | None) -> _Stage:
        """Measure architectures on val until a race stops them."""
        stage = _Stage()
        for one in ones:
            n_rows = self.plan.n_val if race is None else race.rows_of(one)
            for row in self.rows:
                if row < n_rows:
                    stage.add(self._answered(one, ("val", row)))
                    self.rows_judged += 1
        return stage

    def _tested(self, race: PlayedRace) -> _Stage:
        """Ask on test: every agent, the baselines, the pick and the best random mixture."""
        plan, stage = self.plan, _Stage()
        # The pick leaves the best single agent only for what is clearly better: one time in two.
        picks = [race.best(plan.random_ones)] + [race.best()] * (self.number % 2)
        picked = [pick for pick in picks if pick is not None and pick.layers]
        # A picked prompt is compared with the mixture's own.
        picked += [replace(pick, prompt=None) for pick in picked if pick.prompt is not None]
        most = max([one.calls for one in picked[1:]], default=1)
        tested = [asked_as_often(one, most) for one in plan.tested]
        for one in (*single_agents(plan.space), *tested, *picked):
            for row in self.rows:
                stage.add(self._answered(one, ("test", row)))
        return stage

    def _tuning(self, effort: TuningEffort) -> Cost:
        """Return the cost of tuning: references and answers on train rows, and written prompts.

        A written prompt is taken to cost what an answer of its writer costs, or of a mean agent.
        """
        plan, stage = self.plan, _Stage()
        repeats = (plan.space.draw(self.rng) for _ in range(MOST_REPEATS * effort.mixtures))
        fit = (one for one in (*plan.given, *repeats) if _has_prompt(one))
        tuned = list(islice(dict.fromkeys(replace(one, prompt=None) for one in fit), 20))
        for one in self.rng.sample(tuned, min(len(tuned), effort.mixtures)):
            answer = plan.agents[str(one.aggregator)].reading(self._read(one.layers[-1]))
            for row in self.rows:
                stage.add(self._answered(one, ("train", row)))
                stage.add([[(str(one.aggregator), answer)]] * (effort.answers_per_row - 1))
        mean = sum((agent.alone for agent in plan.agents.values()), Cost())
        alone = mean * (1 / len(plan.agents))
        if effort.writer in plan.agents:
            alone = plan.agents[str(effort.writer)].alone
        asked = stage.scaled(plan, effort.rows / len(self.rows))
        return asked + alone * (effort.written * effort.mixtures)

    def _read(self, layer: Iterable[str], task: str = AGGREGATE_AND_SYNTHESIZE) -> float:
        """Return the tokens of a task and of the answers of a layer."""
        texts = sum(self.plan.agents[name].text_tokens + _MARK_TOKENS for name in layer)
        return _TOKENS_PER_WORD * len(f"{task} {REFERENCES_HEADING}".split()) + texts

    def _answered(
        self, one: Architecture, row: Hashable, before: Hashable = (), part: float = 1.0
    ) -> list[list[tuple[str, Cost]]]:
        """Return the steps of an answer, each with what has to be asked in it."""
        if isinstance(one, ProgramArchitecture):
            # A mixture reads what those before it answered, and costs an equal part.
            parts, share = one.parts, 1 / len(one.parts)
            asked = [
                self._answered(inside, row, parts[:place], share)
                for place, (_, inside) in enumerate(parts)
            ]
            return [step for steps in asked for step in steps]
        asking = _Asking(self, row, before, part)
        read: list[tuple[Hashable, Hashable]] = []
        tokens, n_layers = 0.0, len(one.layers)
        for at, layer in enumerate(one.layers):
            is_vote = one.combine == "vote" and at == n_layers - 1
            seats = [(name, layer[:seat].count(name)) for seat, name in enumerate(layer)]
            ask = asking.members if is_vote and self.plan.stops_early else asking.layer
            read = ask(seats, tuple(said for said, _ in read), tokens)
            tokens = self._read(layer)
        if n_layers and one.combine in _TASKS:
            tokens = self._read(one.layers[-1], _TASKS[one.combine])
        for at, names in enumerate(one.last_rounds):
            is_own = one.combine == "synthesize" and one.prompt is None
            role = "propose" if is_own or not n_layers else (one.combine, one.prompt, at)
            seats = [(name, names[:seat].count(name)) for seat, name in enumerate(names)]
            reply = _RANKER_TOKENS if one.combine in ("select", "knockout") and n_layers else None
            asking.layer(seats, tuple(s for s, _ in read), tokens, role=role, reply=reply)
        return asking.steps


def _has_prompt(one: Architecture) -> bool:
    return bool(one.layers) and one.combine == "synthesize"


@dataclass(slots=True)
class _Asking:
    """The questions of one answer of a mixture on one row."""

    play: _Play
    row: Any
    before: Hashable
    part: float
    steps: list[list[tuple[str, Cost]]] = field(default_factory=list[list[tuple[str, Cost]]])

    def layer(
        self,
        seats: Sequence[tuple[str, int]],
        read: tuple[Hashable, ...],
        tokens: float,
        *,
        role: Hashable = "propose",
        reply: float | None = None,
    ) -> list[tuple[Hashable, Hashable]]:
        """Ask seats at once; return what each says, as it is read and as a vote counts it."""
        step: list[tuple[str, Cost]] = []
        said = [self._ask(seat, read, tokens, role, reply, step) for seat in seats]
        self.steps.append(step)
        return said

    def members(
        self, seats: Sequence[tuple[str, int]], read: tuple[Hashable, ...], tokens: float
    ) -> list[tuple[Hashable, Hashable]]:
        """Ask the members of a vote as long as its answer is open."""
        ranking = list(self.play.plan.space.ranking or self.play.plan.agents)
        order = sorted(range(len(seats)), key=lambda place: ranking.index(seats[place][0]))
        waves, said = Waves((1,) * len(seats), tuple(order)), dict[int, Hashable]()
        while due := waves.due(said):
            found = self.layer([seats[place] for place in due], read, tokens)
            said |= {place: ballot for place, (_, ballot) in zip(due, found, strict=True)}
        return []

    def _ask(
        self,
        seat: tuple[str, int],
        read: tuple[Hashable, ...],
        tokens: float,
        role: Hashable,
        reply: float | None,
        step: list[tuple[str, Cost]],
    ) -> tuple[Hashable, Hashable]:
        (name, sample), play = seat, self.play
        agent = play.plan.agents[name]
        key = (self.row, name, 0 if agent.is_greedy else sample, role, read, self.before)
        if (known := play.asked.get(key)) is None:
            step.append((name, agent.reading(tokens, reply=reply) * self.part))
            row, is_first = self.row[1], not read and not sample and not self.before
            # Another sample, or one that has read, repeats the answer as often as two agents agree.
            if is_first or play.rng.random() < play.agreement:
                known = play.replies[name][row], play.ballots[name][row]
            else:
                known = (len(play.asked), len(play.asked))
            play.asked[key] = known
        return known

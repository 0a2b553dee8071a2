"""The forecast of a study's cost, by Monte Carlo simulation of the study.

Each simulation follows the stages of a study: single agents, the baselines and proposed mixtures
with their races, the random baseline, the test. A request that two mixtures share is made once,
votes stop early, and agents pay for the answers that they read. The range is that of the
simulations, widened by their errors in studies that were run: it contains about nine studies of
ten.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget
from moa_dspy.optimize.early_facts import AgentCosts, Cost, StudyEstimate, middle_of
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.simulated_answers import (
    READING_HABITS,
    MixtureAnswers,
    SimulatedAnswers,
    SimulatedInputs,
    synthetic_answers,
)
from moa_dspy.optimize.simulation import (
    Candidates,
    SimulatedQuestions,
    SimulatedRace,
    SimulatedStudy,
    StageCalls,
    simulated_trials,
    tokens_read,
)
from moa_dspy.optimize.space.programs import (
    ProgramArchitecture,
    ProgramSpace,
    random_draws,
    with_n_calls,
)
from moa_dspy.optimize.space.rules import OWN_PROMPT, combine_features
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import (
    Acquisition,
    Forecast,
    Prices,
    single_agents,
)
from moa_dspy.optimize.surrogate.gp import Kernels, Traits

MOST_DRAWN: Final = 300
"""Maximum number of architectures drawn; costs of larger studies are scaled up from these."""
_ROWS: Final = 12  # rows on which a simulation asks; costs are scaled up to all rows
_N_DRAWN: Final = 20
"""Random candidates of a simulated proposal, beside neighbours; a real search has more."""
_MOST_PLAYS, _FEWEST_PLAYS = 15, 5
_PLAYED: Final = 1_500
"""Architectures of all simulations together, which determines the number of simulations."""
_ENDS: Final = (0.1, 0.9)
"""Quantiles of the simulations: low and high."""
_ERRORS: Final = {"calls": 1.1, "tokens": 1.2, "usd": 1.2, "seconds": 1.5}
"""Factors by which future costs may lie outside of the simulations. Of 35 simulated studies 95 %
were within 1.07 in calls and 1.13 in usd; real agents that read others write more or less than they
do alone, and endpoints slow down."""
_Scores = NDArray[np.float64]


@dataclass(frozen=True)
class StudyPlan:
    """The work of a study, as far as it is known before or after its single agents.

    Attributes:
        space: The architectures that may be tried.
        agents: Costs of each agent, in the pool's order.
        n_trials: Maximum number of architectures measured on val, single agents included.
        n_val: Number of val rows.
        n_test: Number of test rows.
        num_threads: Questions answered at the same time.
        own_seconds: Seconds of this process's own work per call, without the wait for the answer.
        given: Architectures that are tried before any is proposed, in order.
        tested: Baselines that are compared on test in any case.
        n_free: Trials for votes of the single agents' answers, which make no calls.
        canonical: Gives architectures the form in which they are measured.
        effort: Work of tuning prompts; None if the search has no prompts.
        judged: Cost of one comparison of two answers; None without a judge.
        stops_early: Whether a vote asks only the members that decide its answer.
        costs: Costs that are objectives; if any, only a cheaper trial stops a trial early.
        scores: Scores of each agent on the rows of val; empty before they are known.
        replies: Answer of each agent there, equal if another agent would read the same.
        ballots: Ballot of each agent there.
        mixtures: The same for each mixture of a program, in its order; empty where not known.
        has_short_answers: Whether right answers of different agents are likely to be equal.
        is_acquired: Whether the trials are proposed by the library's own sampler.
        beyond_val: Tokens by which inputs of other splits are longer than those of val.
        seed: Seed of the study.
        ranked: Gives the plan for a ranking, best first; None if the agents are measured.
    """

    space: SearchSpace
    agents: Mapping[str, AgentCosts]
    n_trials: int
    n_val: int
    n_test: int
    num_threads: int = 1
    own_seconds: float = 0.0
    given: Sequence[Architecture] = ()
    tested: Sequence[Architecture] = ()
    n_free: int = 0
    canonical: Callable[[Architecture], Architecture] = lambda architecture: architecture
    effort: TuningEffort | None = None
    judged: Cost | None = None
    stops_early: bool = True
    costs: Sequence[str] = ()
    scores: Mapping[str, _Scores] = field(default_factory=dict[str, _Scores])
    replies: Mapping[str, Sequence[Hashable]] = field(default_factory=dict[str, Any])
    ballots: Mapping[str, Sequence[Hashable]] = field(default_factory=dict[str, Any])
    mixtures: Sequence[MixtureAnswers] = ()
    has_short_answers: bool = False
    is_acquired: bool = True
    beyond_val: Mapping[str, float] = field(default_factory=dict[str, float])
    seed: int = 0
    ranked: Callable[[Sequence[str]], StudyPlan] | None = None

    def finds_prompt(self, number: int) -> bool:
        """True if tuning finds a new prompt here, as it does in one simulation of four."""
        return self.effort is not None and self.effort.mixtures > 0 and number % 4 == 3

    @cached_property
    def random_archs(self) -> dict[bool, list[Architecture]]:
        """The first architectures of the random baseline: without and with a new prompt.

        A prompt that tuning finds has a new name.
        """

        def named(arch: Architecture) -> Architecture:
            form = self.canonical(arch)
            return form if arch.prompt in (None, OWN_PROMPT) else replace(form, prompt=arch.prompt)

        forms = [self.canonical] if self.effort is None else [self.canonical, named]
        n = min(self.n_measured, MOST_DRAWN)
        draws = [random_draws(self.space, form, self.seed) for form in forms]
        return {bool(place): list(islice(drawn, n)) for place, drawn in enumerate(draws)}

    @property
    def n_measured(self) -> int:
        """Architectures that will be measured."""
        size = self.space.size
        return self.n_trials if size is None else min(self.n_trials, size)

    @property
    def n_mixtures(self) -> int:
        """Mixtures that are tried and may make calls.

        A study measures its baselines before the votes that make none.
        """
        n = max(0, self.n_measured - len(self.agents))
        n_baselines = len(dict.fromkeys(self.given[: len(self.given) - len(self.space.listed)]))
        return max(n - self.n_free, min(n, n_baselines))

    @cached_property
    def _known_answers(self) -> SimulatedAnswers:
        return SimulatedAnswers(self.scores, self.replies, self.ballots)

    def answers(self, number: int) -> SimulatedAnswers:
        """Return a simulation's answers: those on val, or made up with its number as a seed."""
        found = self._known_answers if self.scores else self._made_up(number)
        return found.with_habit(READING_HABITS[number % len(READING_HABITS)])

    def _made_up(self, *seeds: int) -> SimulatedAnswers:
        # It is not known whether answers are equal: some simulations assume the opposite.
        names, is_short = list(self.agents), self.has_short_answers != (seeds[0] % 3 == 2)
        return synthetic_answers(names, self.n_val, (self.seed, *seeds), has_short_answers=is_short)

    def answers_by_mixture(self, number: int) -> list[SimulatedAnswers]:
        """Return a simulation's answers in each mixture of a program; of another, ``answers``."""
        last = self.answers(number)
        if not isinstance(self.space, ProgramSpace):
            return [last]
        if self.scores:
            known = ((one.replies, one.ballots) for one in self.mixtures)
            found = [SimulatedAnswers(self.scores, *one) for one in known]
            found = found or [last] * len(self.space.paths)
        else:
            found = [self._made_up(number, place) for place in range(len(self.space.paths))]
        return [one.with_habit(last.habit) for one in found]

    @cached_property
    def candidates(self) -> Candidates:
        """Candidates of the simulated searches."""
        return Candidates(self.space, self.canonical, self.seed)

    @cached_property
    def _searches(self) -> dict[int, _SimulatedSearch]:
        return {}

    def search(self, number: int) -> _SimulatedSearch:
        """Return the search of a simulation; of measured agents a few searches are enough."""
        number = number if self.ranked is not None else number % len(READING_HABITS)
        if number not in self._searches:
            self._searches[number] = _SimulatedSearch(self._of_simulation(number), number)
        return self._searches[number]

    def _of_simulation(self, number: int) -> StudyPlan:
        """Return a simulation's plan: agents that are not measured are ranked by its scores."""
        if self.ranked is None:
            return self
        scores = self._made_up(number).scores
        plan = self.ranked(sorted(scores, key=lambda name: -float(scores[name].mean())))
        plan.__dict__.update(random_archs=self.random_archs)
        return plan

    def with_costs(self, agents: Mapping[str, AgentCosts]) -> StudyPlan:
        """Return the plan at other costs, with the same architectures tried."""
        plan = replace(self, agents=agents)
        plan.__dict__.update(_searches=self._searches, random_archs=self.random_archs)
        return plan

    def stages(self) -> dict[str, tuple[Cost, Cost, Cost]]:
        """Return low, likely and high of each stage, in the order in which they run, and of all.

        Seconds are wall time.
        """
        n_simulations = _PLAYED // max(1, 2 * min(self.n_measured, MOST_DRAWN))
        n_simulations = min(_MOST_PLAYS, max(_FEWEST_PLAYS, n_simulations))
        simulations = [_SimulatedStudy(self, play).stages() for play in range(n_simulations)]
        for simulation in simulations:
            simulation["all"] = sum(simulation.values(), Cost())
        singles = simulations[0]["single agents"]
        done = singles if self.scores else Cost(calls=singles.calls)
        is_known = {"single agents": done, "all": done}
        of_stage = {name: [costs[name] for costs in simulations] for name in simulations[0]}
        return {
            name: _ranged(likely, of_stage[name], is_known.get(name, Cost()))
            for name, likely in middle_of(simulations).items()
        }


def _ranged(likely: Cost, costs: Sequence[Cost], done: Cost) -> tuple[Cost, Cost, Cost]:
    """Return low, likely and high of the simulations; costs already known have no range."""
    low, high = {}, {}
    for name, error in _ERRORS.items():
        exact, mean = getattr(done, name), getattr(likely, name)
        ordered = sorted(getattr(cost, name) - exact for cost in costs)
        first, last = (ordered[round(end * (len(costs) - 1))] for end in _ENDS)
        low[name] = exact + min(first / error, mean - exact)
        high[name] = exact + max(last * error, mean - exact)
    return Cost(**low), likely, Cost(**high)


def estimated(plan: StudyPlan, budget: Budget | None = None) -> StudyEstimate:
    """Estimate what the whole study takes, the single agents on val included.

    Args:
        plan: Plan of the study.
        budget: Limits that may end the study early; the estimate has the limit that is reached.
    """
    stages = plan.stages()
    low, whole, high = stages["all"]
    judging = stages["judge"][1].calls if "judge" in stages else 0.0
    calls, tokens, judged = map(round, (whole.calls, whole.tokens, judging))
    estimate = StudyEstimate(calls, whole.usd, whole.seconds, judge_calls=judged, tokens=tokens)
    likely = {n: c for n, (_, c, _) in stages.items() if n != "all" and c.calls}
    return replace(estimate, low=low, high=high, stages=likely).within(budget or Budget())


def _simulated_race(plan: StudyPlan, answers: SimulatedAnswers, number: int) -> SimulatedRace:
    seeds, is_cheaper = (plan.seed, number), bool(plan.costs)
    return SimulatedRace(answers, n_trials=plan.n_trials, must_cost_less=is_cheaper, seeds=seeds)


def _varied_singles(plan: StudyPlan, race: SimulatedRace) -> list[Architecture]:
    """Return the programs in which each agent takes the place of the best one in one mixture."""
    found: list[Architecture] = []
    if isinstance(plan.space, ProgramSpace):
        known = list(plan.space.singles())
        for path, inside in plan.space.mixtures:
            best = max(known, key=lambda one: float(np.nanmean(race.scores_of(one))))
            varied = [best.with_part(path, Architecture.single(name)) for name in inside.agents]
            known += varied
            found += varied
    return found


class _SimulatedSearch:
    """The first architectures that a simulated search tries."""

    def __init__(self, plan: StudyPlan, number: int) -> None:
        self.plan, self.number = plan, number
        answers, n = plan.answers(number), plan.n_mixtures
        self.race = race = _simulated_race(plan, answers, number)
        self.mixtures = simulated_trials(
            plan.candidates,
            [*_varied_singles(plan, race), *plan.given],
            min(n, MOST_DRAWN),
            race=race,
            acquisition=self._acquisition(answers, number),
            rng=random.Random(f"search-{plan.seed}-{number}"),
        )
        self.scale = n / MOST_DRAWN if len(self.mixtures) == MOST_DRAWN else 1.0

    def _acquisition(self, answers: SimulatedAnswers, number: int) -> Acquisition | None:
        """Return the search's acquisition; None with another sampler, or for a program."""
        plan, seed = self.plan, self.plan.seed + number
        if not plan.is_acquired or isinstance(plan.space, ProgramSpace):
            return None
        means = {name: float(row.mean()) for name, row in answers.scores.items()}
        forecast = Forecast(
            usd={name: agent.alone.usd for name, agent in plan.agents.items()},
            seconds={name: agent.alone.seconds for name, agent in plan.agents.items()},
        )
        traits = Traits(means, answers.diversity, plan.space.prompts, combine_features(plan.space))
        price_at, kernels = Prices(forecast, plan.costs, seed).at, Kernels.of(traits)
        return Acquisition(plan.space, kernels, plan.canonical, seed, price_at, n_drawn=_N_DRAWN)


class _SimulatedStudy:
    """One simulated study; unknown quantities are drawn with its number as a seed."""

    def __init__(self, plan: StudyPlan, number: int) -> None:
        self.search = plan.search(number)
        self.plan = plan = self.search.plan.with_costs(plan.agents)
        self.rng = random.Random(f"forecast-{plan.seed}-{number}")
        n = min(_ROWS, plan.n_val)
        # Each simulation has different rows, evenly spaced, as races end at some row.
        first = self.rng.random()
        self.rows = [int(plan.n_val * (k + first) / n) for k in range(n)]
        self.answers, by_mixture = plan.answers(number), plan.answers_by_mixture(number)
        self.study = SimulatedStudy(
            by_mixture,
            SimulatedInputs(by_mixture, plan.mixtures),
            self.rng,
            stops_early=plan.stops_early,
            beyond_val=plan.beyond_val,
        )
        # A simulation with the search's own number has its answers and so its race.
        is_own = number == self.search.number
        self.race = self.search.race if is_own else _simulated_race(plan, self.answers, number)
        self.random_archs = plan.random_archs[plan.finds_prompt(number)]
        self.rows_judged = 0.0

    def stages(self) -> dict[str, Cost]:
        """Return the cost of each stage."""
        plan, search, n_rows = self.plan, self.search, len(self.rows)
        singles = list(single_agents(plan.space))
        on_val, race = plan.n_val / n_rows, self.race
        stages = {"single agents": self._cost(self._measured(singles, None), on_val)}
        measured = self._measured(search.mixtures, race)
        stages["search"] = self._cost(measured, on_val * search.scale)
        if plan.effort is not None:
            stages["prompts"] = self._tuning(plan.effort, race)
        n_random = len(self.random_archs)
        scale = plan.n_measured / n_random if n_random == MOST_DRAWN else 1.0
        baseline = self._measured(self.random_archs, race)
        stages["random baseline"] = self._cost(baseline, on_val * scale)
        tested = self._tested_systems(race)
        on_test = self._answered_all((*singles, *tested), "test")
        # Baselines that were not tried, such as top-k beyond the widest layer, run on val too.
        again = self._answered_all(tested, "val")
        stages["test"] = self._cost(on_test, plan.n_test / n_rows) + self._cost(again, on_val)
        if plan.judged is not None:
            n_systems = len(plan.agents) + 5  # pick, baselines, and pick against the best single
            n_judged = self.rows_judged * on_val + plan.n_test * n_systems
            judged = plan.judged * n_judged
            stages["judge"] = replace(judged, seconds=judged.seconds / plan.num_threads)
        return stages

    def _cost(self, requests: StageCalls, scale: float) -> Cost:
        """Return the cost of these requests times ``scale``."""
        plan = self.plan
        cost = requests.scaled(scale, num_threads=plan.num_threads, agents=plan.agents)
        return replace(cost, seconds=cost.seconds + cost.calls * plan.own_seconds)

    def _measured(self, archs: Iterable[Architecture], race: SimulatedRace | None) -> StageCalls:
        """Measure architectures on val until a race stops them."""
        stage = StageCalls()
        for arch in archs:
            n_rows = self.plan.n_val if race is None else race.rows_of(arch)
            for row in self.rows:
                if row < n_rows:
                    stage.add(self._answered(arch, ("val", row)))
                    self.rows_judged += 1
        return stage

    def _tested_systems(self, race: SimulatedRace) -> list[Architecture]:
        """Return the mixtures on test: the baselines, the pick, the random baseline's best."""
        # A new prompt is dropped unless it is proven better, which is rare.
        pick, best = race.pick(self.search.mixtures), race.best(self.random_archs)
        if isinstance(self.plan.space, ProgramSpace):
            alone = [one for one in self.search.mixtures if not one.layers]
            picked = [one for one in (pick, best, race.best(alone)) if one is not None]
            return [*self.plan.tested, *picked]
        pick = replace(pick, prompt=None)
        picked = [arch for arch in (pick, best) if arch is not None and arch.layers]
        return [*(with_n_calls(arch, pick.calls) for arch in self.plan.tested), *picked]

    def _answered_all(self, archs: Iterable[Architecture], split: str) -> StageCalls:
        """Run every architecture on every row of a split."""
        stage = StageCalls()
        for arch in archs:
            for row in self.rows:
                stage.add(self._answered(arch, (split, row)))
        return stage

    def _tuning(self, effort: TuningEffort, race: SimulatedRace) -> Cost:
        """Return the cost of tuning: layers and answers on train rows, and written prompts.

        A written prompt is assumed to cost as much as an answer of its writer, or a mean agent.
        """
        plan, stage = self.plan, StageCalls()
        mixtures = (arch for arch in self.search.mixtures if arch.layers)
        fit = [arch for arch in mixtures if arch.combine == "synthesize"]
        best = race.ordered(dict.fromkeys(replace(arch, prompt=None) for arch in fit))
        for mixture in best[: effort.mixtures]:
            tokens = tokens_read(plan.agents, mixture.layers[-1])
            tokens += plan.beyond_val.get("train", 0.0)
            answer = plan.agents[str(mixture.aggregator)].reading(tokens)
            for row in self.rows:
                stage.add(self._answered(mixture, ("train", row)))
                stage.add([[(str(mixture.aggregator), answer)]] * (effort.answers_per_row - 1))
        mean = sum((agent.alone for agent in plan.agents.values()), Cost())
        alone = mean * (1 / len(plan.agents))
        if effort.writer in plan.agents:
            alone = plan.agents[str(effort.writer)].alone
        cost = self._cost(stage, effort.rows / len(self.rows))
        return cost + alone * (effort.written * effort.mixtures)

    def _answered(self, arch: Architecture, row: Any) -> list[list[tuple[str, Cost]]]:
        """Return the steps of an answer, each with the requests that are made in it."""
        if not isinstance(arch, ProgramArchitecture):
            asking = SimulatedQuestions(self.study, row, self.plan.agents)
            asking.answer(arch)
            return asking.steps
        steps: list[list[tuple[str, Cost]]] = []
        said: list[Hashable] = []
        for place, (_, inside) in enumerate(arch.parts):
            # Where a mixture's costs are not known, all have equal shares of the program's.
            known, given = self.plan.mixtures, self.study.inputs.of(place, said)
            agents = known[place].agents if known else self.plan.agents
            part = 1.0 if known else 1 / len(arch.parts)
            asking = SimulatedQuestions(self.study, row, agents, place, given, part)
            said.append(asking.answer(inside).text)
            steps += asking.steps
        return steps

"""The forecast of a study's cost, by Monte Carlo simulation; a play is one simulated study.

Each play follows the stages of a study: single agents, the baselines and proposed mixtures with
their races, the random baseline, the test. A request that two mixtures share is made once, votes
stop early, and agents pay for the answers that they read. The range is that of the plays, widened
by the errors of such plays in studies that were run: it contains about nine studies of ten.
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
from moa_dspy.optimize.played import (
    PlayedQuestions,
    PlayedRace,
    PlayedRequests,
    PlayedStudy,
    played_acquisition,
    played_trials,
    tokens_read,
)
from moa_dspy.optimize.played_answers import (
    READING_HABITS,
    MixtureAnswers,
    PlayedAnswers,
    PlayedInputs,
    made_up_answers,
)
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.space.programs import (
    ProgramArchitecture,
    ProgramSpace,
    asked_as_often,
    random_draws,
)
from moa_dspy.optimize.space.rules import OWN_PROMPT
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import Acquisition, single_agents

MOST_DRAWN: Final = 300
"""Maximum number of architectures drawn; costs of larger studies are scaled up from these."""
_ROWS: Final = 12  # rows on which a play asks; costs are scaled up to all rows
_MOST_PLAYS, _FEWEST_PLAYS = 15, 5
_PLAYED: Final = 1_500
"""Architectures of all plays together, which determines the number of plays."""
_ENDS: Final = (0.1, 0.9)
"""Quantiles of the plays: low and high."""
_ERRORS: Final = {"calls": 1.1, "tokens": 1.2, "usd": 1.2, "seconds": 1.5}
"""Factors by which future costs may lie outside of the plays. Of 35 simulated studies 95 % were
within 1.07 in calls and 1.13 in usd; real agents that read others write more or less than they do
alone, and endpoints slow down."""
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
        has_short_answers: Whether right answers of different agents are equal; used only
            before the answers are known.
        is_acquired: Whether the trials are proposed by the library's own sampler.
        beyond_val: Tokens by which inputs of other splits are longer than those of val.
        seed: Seed of the study.
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
    canonical: Callable[[Architecture], Architecture] = lambda one: one
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

    def finds_prompt(self, number: int) -> bool:
        """True if tuning finds a new prompt in this play: in one of four, as it mostly does not."""
        return self.effort is not None and self.effort.mixtures > 0 and number % 4 == 3

    @cached_property
    def random_ones(self) -> dict[bool, list[Architecture]]:
        """The first architectures of the random baseline: without and with a new prompt.

        A prompt that tuning finds has a new name.
        """

        def named(one: Architecture) -> Architecture:
            found = self.canonical(one)
            return found if one.prompt in (None, OWN_PROMPT) else replace(found, prompt=one.prompt)

        n, forms = min(self.n_measured, MOST_DRAWN), (self.canonical, named)
        draws = [random_draws(self.space, form, self.seed) for form in forms]
        return {bool(place): list(islice(drawn, n)) for place, drawn in enumerate(draws)}

    @property
    def n_measured(self) -> int:
        """Architectures that will be measured."""
        size = self.space.size
        return self.n_trials if size is None else min(self.n_trials, size)

    @cached_property
    def _known_answers(self) -> PlayedAnswers:
        return PlayedAnswers(self.scores, self.replies, self.ballots)

    def answers(self, number: int) -> PlayedAnswers:
        """Return the answers of a play: those on val, or simulated with its number as a seed."""
        found = self._known_answers if self.scores else self._made_up(number)
        return found.with_habit(READING_HABITS[number % len(READING_HABITS)])

    def _made_up(self, *seeds: int) -> PlayedAnswers:
        names, is_short = list(self.agents), self.has_short_answers
        return made_up_answers(names, self.n_val, (self.seed, *seeds), has_short_answers=is_short)

    def answers_by_mixture(self, number: int) -> list[PlayedAnswers]:
        """Return the answers of a play in each mixture of a program; of another, ``answers``."""
        last = self.answers(number)
        if not isinstance(self.space, ProgramSpace):
            return [last]
        if self.scores:
            known = ((one.replies, one.ballots) for one in self.mixtures)
            found = [PlayedAnswers(self.scores, *one) for one in known]
            found = found or [last] * len(self.space.paths)
        else:
            found = [self._made_up(number, place) for place in range(len(self.space.paths))]
        return [one.with_habit(last.habit) for one in found]

    @cached_property
    def searches(self) -> tuple[_PlayedSearch, ...]:
        """A few simulated searches; each play uses one of them."""
        return tuple(_PlayedSearch(self, number) for number in range(len(READING_HABITS)))

    def with_costs(self, agents: Mapping[str, AgentCosts]) -> StudyPlan:
        """Return the plan at other costs, with the same architectures tried."""
        found = replace(self, agents=agents)
        found.__dict__.update(searches=self.searches, random_ones=self.random_ones)
        return found

    def stages(self) -> dict[str, tuple[Cost, Cost, Cost]]:
        """Return low, likely and high of each stage, in the order in which they run, and of all.

        Seconds are wall time.
        """
        n_plays = _PLAYED // max(1, 2 * min(self.n_measured, MOST_DRAWN))
        n_plays = min(_MOST_PLAYS, max(_FEWEST_PLAYS, n_plays))
        plays = [_Play(self, number).stages() for number in range(n_plays)]
        for play in plays:
            play["all"] = sum(play.values(), Cost())
        singles = plays[0]["single agents"]
        done = singles if self.scores else Cost(calls=singles.calls)
        is_known = {"single agents": done, "all": done}
        return {
            name: _ranged(likely, [one[name] for one in plays], is_known.get(name, Cost()))
            for name, likely in middle_of(plays).items()
        }


def _ranged(likely: Cost, costs: Sequence[Cost], done: Cost) -> tuple[Cost, Cost, Cost]:
    """Return low, likely and high of the plays; costs already known have no range."""
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
    found = StudyEstimate(calls, whole.usd, whole.seconds, judge_calls=judged, tokens=tokens)
    likely = {n: c for n, (_, c, _) in stages.items() if n != "all" and c.calls}
    return replace(found, low=low, high=high, stages=likely).within(budget or Budget())


def _played_race(plan: StudyPlan, answers: PlayedAnswers, number: int) -> PlayedRace:
    seeds, is_cheaper = (plan.seed, number), bool(plan.costs)
    return PlayedRace(answers, n_trials=plan.n_trials, must_cost_less=is_cheaper, seeds=seeds)


def _varied_singles(plan: StudyPlan, race: PlayedRace) -> list[Architecture]:
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


class _PlayedSearch:
    """The first architectures that a simulated search tries."""

    def __init__(self, plan: StudyPlan, number: int) -> None:
        self.plan = plan
        answers = plan.answers(number)
        n = max(0, plan.n_measured - len(plan.agents) - plan.n_free)
        race = _played_race(plan, answers, number)
        self.mixtures = played_trials(
            plan.space,
            [*_varied_singles(plan, race), *plan.given],
            min(n, MOST_DRAWN),
            race=race,
            canonical=plan.canonical,
            acquisition=self._acquisition(answers, number),
            rng=random.Random(f"search-{plan.seed}-{number}"),
        )
        self.scale = n / MOST_DRAWN if len(self.mixtures) == MOST_DRAWN else 1.0

    def _acquisition(self, answers: PlayedAnswers, number: int) -> Acquisition | None:
        """Return the search's acquisition; None with another sampler, or for a program."""
        plan = self.plan
        if not plan.is_acquired or isinstance(plan.space, ProgramSpace):
            return None
        seed = plan.seed + number
        return played_acquisition(
            plan.space, answers, plan.agents, plan.costs, plan.canonical, seed
        )


class _Play:
    """One simulated study; unknown quantities are drawn with its number as a seed."""

    def __init__(self, plan: StudyPlan, number: int) -> None:
        self.plan, self.number = plan, number
        self.rng = random.Random(f"forecast-{plan.seed}-{number}")
        n = min(_ROWS, plan.n_val)
        # Each play has different rows, evenly spaced, as races end at some row.
        first = self.rng.random()
        self.rows = [int(plan.n_val * (k + first) / n) for k in range(n)]
        self.answers, by_mixture = plan.answers(number), plan.answers_by_mixture(number)
        self.study = PlayedStudy(
            by_mixture,
            PlayedInputs(by_mixture, plan.mixtures),
            self.rng,
            ranking=list(plan.space.ranking or plan.agents),
            stops_early=plan.stops_early,
            beyond_val=plan.beyond_val,
        )
        self.search = plan.searches[number % len(plan.searches)]
        self.random_ones = plan.random_ones[plan.finds_prompt(number)]
        self.rows_judged = 0.0

    def stages(self) -> dict[str, Cost]:
        """Return the cost of each stage."""
        plan, search, n_rows = self.plan, self.search, len(self.rows)
        singles = list(single_agents(plan.space))
        on_val, race = plan.n_val / n_rows, _played_race(plan, self.answers, self.number)
        found = {"single agents": self._cost(self._measured(singles, None), on_val)}
        measured = self._measured(search.mixtures, race)
        found["search"] = self._cost(measured, on_val * search.scale)
        if plan.effort is not None:
            found["prompts"] = self._tuning(plan.effort, race)
        n_random = len(self.random_ones)
        scale = plan.n_measured / n_random if n_random == MOST_DRAWN else 1.0
        baseline = self._measured(self.random_ones, race)
        found["random baseline"] = self._cost(baseline, on_val * scale)
        tested = self._tested_systems(race)
        on_test = self._answered_all((*singles, *tested), "test")
        # Baselines that were not tried, such as top-k beyond the widest layer, run on val too.
        again = self._answered_all(tested, "val")
        found["test"] = self._cost(on_test, plan.n_test / n_rows) + self._cost(again, on_val)
        if plan.judged is not None:
            n_systems = len(plan.agents) + 5  # pick, baselines, and pick against the best single
            n_judged = self.rows_judged * on_val + plan.n_test * n_systems
            judged = plan.judged * n_judged
            found["judge"] = replace(judged, seconds=judged.seconds / plan.num_threads)
        return found

    def _cost(self, asked: PlayedRequests, scale: float) -> Cost:
        """Return the cost of these requests times ``scale``."""
        plan = self.plan
        found = asked.scaled(scale, num_threads=plan.num_threads, agents=plan.agents)
        return replace(found, seconds=found.seconds + found.calls * plan.own_seconds)

    def _measured(self, ones: Iterable[Architecture], race: PlayedRace | None) -> PlayedRequests:
        """Measure architectures on val until a race stops them."""
        stage = PlayedRequests()
        for one in ones:
            n_rows = self.plan.n_val if race is None else race.rows_of(one)
            for row in self.rows:
                if row < n_rows:
                    stage.add(self._answered(one, ("val", row)))
                    self.rows_judged += 1
        return stage

    def _tested_systems(self, race: PlayedRace) -> list[Architecture]:
        """Return the mixtures on test: the baselines, the pick, the random baseline's best."""
        # A new prompt is dropped unless it is proven better, which is rare.
        pick, found = race.pick(self.search.mixtures), race.best(self.random_ones)
        if isinstance(self.plan.space, ProgramSpace):
            alone = [one for one in self.search.mixtures if not one.layers]
            picked = [one for one in (pick, found, race.best(alone)) if one is not None]
            return [*self.plan.tested, *picked]
        pick = replace(pick, prompt=None)
        picked = [one for one in (pick, found) if one is not None and one.layers]
        return [*(asked_as_often(one, pick.calls) for one in self.plan.tested), *picked]

    def _answered_all(self, ones: Iterable[Architecture], split: str) -> PlayedRequests:
        """Run every architecture on every row of a split."""
        stage = PlayedRequests()
        for one in ones:
            for row in self.rows:
                stage.add(self._answered(one, (split, row)))
        return stage

    def _tuning(self, effort: TuningEffort, race: PlayedRace) -> Cost:
        """Return the cost of tuning: layers and answers on train rows, and written prompts.

        A written prompt is assumed to cost as much as an answer of its writer, or a mean agent.
        """
        plan, stage = self.plan, PlayedRequests()
        fit = [one for one in self.search.mixtures if _has_prompt(one)]
        best = race.ordered(dict.fromkeys(replace(one, prompt=None) for one in fit))
        for one in best[: effort.mixtures]:
            tokens = tokens_read(plan.agents, one.layers[-1]) + plan.beyond_val.get("train", 0.0)
            answer = plan.agents[str(one.aggregator)].reading(tokens)
            for row in self.rows:
                stage.add(self._answered(one, ("train", row)))
                stage.add([[(str(one.aggregator), answer)]] * (effort.answers_per_row - 1))
        mean = sum((agent.alone for agent in plan.agents.values()), Cost())
        alone = mean * (1 / len(plan.agents))
        if effort.writer in plan.agents:
            alone = plan.agents[str(effort.writer)].alone
        asked = self._cost(stage, effort.rows / len(self.rows))
        return asked + alone * (effort.written * effort.mixtures)

    def _answered(self, one: Architecture, row: Any) -> list[list[tuple[str, Cost]]]:
        """Return the steps of an answer, each with the requests that are made in it."""
        if not isinstance(one, ProgramArchitecture):
            asking = PlayedQuestions(self.study, row, self.plan.agents)
            asking.answer(one)
            return asking.steps
        steps: list[list[tuple[str, Cost]]] = []
        said: list[Hashable] = []
        for place, (_, inside) in enumerate(one.parts):
            # Where a mixture's costs are not known, all have equal shares of the program's.
            known, given = self.plan.mixtures, self.study.inputs.of(place, said)
            agents, part = (
                (known[place].agents, 1.0) if known else (self.plan.agents, 1 / len(one.parts))
            )
            asking = PlayedQuestions(self.study, row, agents, place, given, part)
            said.append(asking.answer(inside).text)
            steps += asking.steps
        return steps


def _has_prompt(one: Architecture) -> bool:
    return bool(one.layers) and one.combine == "synthesize"

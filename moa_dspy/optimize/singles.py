"""The single agents of a search: measured first, as their answers are layer 1 of every mixture."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import inf
from statistics import fmean
from typing import Any, Final

import dspy
import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget
from moa_dspy.data import Splits
from moa_dspy.data.splits import balanced_order
from moa_dspy.diversity import DiversityMetric
from moa_dspy.errors import BudgetReachedError, StudyError
from moa_dspy.optimize.early_facts import (
    COSTS,
    AgentCosts,
    Cost,
    EarlyFacts,
    StudyEstimate,
    check_decidable,
    early_facts,
)
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.forecast import StudyPlan, estimated
from moa_dspy.optimize.judge_facts import JudgeFacts
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import Outcome, means, own_seconds, scores
from moa_dspy.optimize.objectives import check_one_within, mean_distances, names_of
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.progress import Leader, Progress, StageWork
from moa_dspy.optimize.prompts.prompt import PromptRegistry
from moa_dspy.optimize.selection import Limits, ScoreMatrix, canonical_evidence
from moa_dspy.optimize.simulated_answers import MixtureAnswers, mean_costs
from moa_dspy.optimize.space.programs import (
    ProgramArchitecture,
    baseline_architectures,
    fixed_baselines,
    in_every_mixture,
)
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import Forecast
from moa_dspy.optimize.votes.ballots import Ballots, waves_of
from moa_dspy.optimize.votes.smoothing import SmoothedVotes, smooth
from moa_dspy.pool import Pool
from moa_dspy.references import count_tokens, tokens_beyond_val

N_SINGLE_BLOCKS: Final = 8
"""Parts of val; under a budget all single agents are measured on one before the next."""
N_VOTES: Final = 3
"""Votes that are tried because they are best on redrawn answers; they make no call."""
N_ROUND_ROBIN: Final = 8
"""Rows of val on which single agents are compared with each other to choose the reference."""


def choose_reference(
    judging: Judging, options: SearchOptions, evaluator: Evaluator, rows: Sequence[dspy.Example]
) -> None:
    """Choose the reference, unless the study names one: the winner of a round robin.

    All pairs of single agents are compared on a few rows of val, drawn by seed. The agent with
    the highest mean preference wins; the pool's order breaks ties.

    Raises:
        StudyError: If the budget ends here.
    """
    if judging.reference is not None:
        return
    agents = options.space.agents
    n = min(N_ROUND_ROBIN, len(rows))
    drawn = random.Random(f"round-robin-{options.seed}").sample(list(rows), n)
    points: dict[str, list[float]] = {name: [] for name in agents}
    try:
        for agent, other in combinations(agents, 2):
            cases = evaluator.compare(Architecture.single(agent), Architecture.single(other), drawn)
            values = [g.preference for g in cases if g.preference is not None]
            points[agent] += values
            points[other] += [1 - value for value in values]
    except BudgetReachedError as error:
        raise StudyError(
            f"{error} It is too small to choose the judge's reference; allow more."
        ) from error
    means = {name: sum(got) / len(got) if got else 0.5 for name, got in points.items()}
    winner = max(agents, key=lambda name: round(means[name], 12))
    judging.reference = Architecture.single(winner)
    # Scores up to here are not comparisons with the reference.
    evaluator.forget()
    judging.chosen = (
        f"winner of a round robin of {len(agents)} agents on {len(drawn)} rows of val, with "
        f"{100 * means[winner]:.0f} % of the points"
        if len(agents) > 1
        else "the only agent"
    )


def measure_single_agents(
    options: SearchOptions,
    evaluator: Evaluator,
    rows: Sequence[dspy.Example],
    progress: Progress,
    *,
    n_blocks: int = 1,
) -> SingleAgents:
    """Measure each agent alone on all rows of val; if the budget ends, on rows that all answered.

    Args:
        options: Options of the search.
        evaluator: Runs the agents.
        rows: Rows of val.
        progress: Shows each agent.
        n_blocks: Parts of the rows; every agent answers one before the next is begun.

    Raises:
        StudyError: If the budget ends before all answered a row, or no score differs.
    """
    names, size = options.space.agents, -(-len(rows) // n_blocks)
    started, n_made = time.monotonic(), progress.ledger.spending.made
    singles, usable, stopped_by = [*map(Architecture.single, names)], list(rows), None
    evaluator.announce(singles, rows)
    work = StageWork.of_unknown(evaluator.knows, [(singles, rows)])
    try:
        for start in range(0, len(rows), size):
            for name in names:
                progress.show("single agents", current=name, work=work)
                block = evaluator.measure(Architecture.single(name), rows[: start + size])
                progress.lead(_leader(name, block))
    except BudgetReachedError as error:
        stopped_by = str(error)
        usable = [row for row in rows if all(evaluator.knows(agent, [row]) for agent in singles)]
        if not usable:
            raise StudyError(
                f"{error} It is too small to measure the single agents; allow more, or fewer rows."
            ) from error
    measured = {name: evaluator.measure(Architecture.single(name), usable) for name in names}
    took = time.monotonic() - started, progress.ledger.spending.made - n_made
    if (judging := evaluator.judging) is not None and judging.picks:
        judging.check_decides(measured)
    elif stopped_by is None:
        found = {name: scores(outcomes) for name, outcomes in measured.items()}
        replies = {name: list(map(_reply, outcomes)) for name, outcomes in measured.items()}
        check_decidable(found, gold=_expected(usable[0]), replies=replies)
    places = balanced_order({n: scores(o) for n, o in measured.items()}, seed=options.seed)
    return SingleAgents(
        {name: [outcomes[place] for place in places] for name, outcomes in measured.items()},
        options.space,
        options.limits,
        seed=options.seed,
        registry=evaluator.registry,
        stopped_by=stopped_by,
        own_seconds=own_seconds(measured, options.pool, options.num_threads, *took),
        **_known_of(evaluator, names, tuple(usable[place] for place in places)),
    ).checked()


def _leader(name: str, outcomes: Sequence[Outcome]) -> Leader:
    """Return an agent's line of the leaderboard, from the rows that it answered."""
    costs, score = means(outcomes), fmean(scores(outcomes))
    return Leader(name, score, costs["calls"], costs["usd"], len(outcomes))


def _known_of(evaluator: Evaluator, names: Sequence[str], rows: Sequence[Any]) -> dict[str, Any]:
    rules = Student.of(evaluator.student).mixture.rules
    found = {"stops_early": rules.stop_early, "deadline_seconds": rules.deadline_seconds}
    known = getattr(evaluator, "answers_alone", lambda *_: ())
    return {**found, "rows": rows, "mixtures": known(names, rows)}


def _expected(row: dspy.Example) -> str:
    """Return the expected answer of the row, or else all fields that are not inputs."""
    labels = {n: row[n] for n in row.labels() if n not in ("id", "split")}
    return ", ".join(map(str, [labels["answer"]] if "answer" in labels else labels.values()))


def _reply(outcome: Outcome) -> str:
    return outcome.failure or (outcome.layer or ("nothing",))[0]


def _text_tokens(outcome: Outcome) -> int:
    """Return the tokens of an answer, without field markers and hidden reasoning."""
    counted = count_tokens(outcome.answer)
    return min(outcome.reply_tokens or counted, counted)


@dataclass(frozen=True)
class SingleAgents:
    """The outcomes of each agent alone on the same rows, in the pool's order.

    Attributes:
        outcomes: By agent.
        space: Has the votes that may be tried.
        limits: Limits of the votes that may be picked.
        seed: Seed of the redrawing of answers.
        registry: The prompts that an architecture may name.
        rows: The rows of val, in the order in which architectures are measured on them.
        stopped_by: The budget that ended before all rows of val were measured, or None.
        stops_early: Whether a vote stops asking once its answer is certain.
        deadline_seconds: How long a layer waits for its agents; None means no limit.
        own_seconds: Time that this process took per call, beside the wait for its answer.
        mixtures: What the agents answered in each mixture of a program, as far as that is known.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    space: SearchSpace
    limits: Limits
    seed: int = 0
    registry: PromptRegistry | None = None
    rows: tuple[dspy.Example, ...] = ()
    stopped_by: str | None = None
    stops_early: bool = True
    deadline_seconds: float | None = None
    own_seconds: float = 0.0
    mixtures: Sequence[MixtureAnswers] = ()
    _admitted: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def checked(self) -> SingleAgents:
        """Return the object, if an agent stays within the limits; see ``check_one_within``."""
        # In a program, an agent of its own in each mixture may cost less than any agent in all.
        if self.limits != Limits() and not self.mixtures:
            check_one_within(self.limits, {name: self._costs((name,)) for name in self.outcomes})
        return self

    @cached_property
    def scores(self) -> dict[str, ScoreMatrix]:
        """Score per row of each agent."""
        by_agent = {name: scores(outcomes) for name, outcomes in self.outcomes.items()}
        return {name: np.array(values, np.float64) for name, values in by_agent.items()}

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean score of each agent."""
        return {name: float(values.mean()) for name, values in self.scores.items()}

    @cached_property
    def ranking(self) -> tuple[str, ...]:
        """Agents, best mean score first; the pool's order breaks ties."""
        return tuple(sorted(self.scores, key=lambda name: -round(self.scores[name].mean(), 12)))

    @cached_property
    def ballots(self) -> Ballots | None:
        """The answers as votes; None if no vote is allowed, or an answer cannot be compared."""
        answered = [o for outcomes in self.outcomes.values() for o in outcomes if not o.failure]
        may_vote = "vote" in self.space.combines and self.space.searches_layers
        if not may_vote or any(outcome.ballot is None for outcome in answered):
            return None
        ballots = {name: [o.ballot for o in outcomes] for name, outcomes in self.outcomes.items()}
        return Ballots.of(ballots, {n: scores(o) for n, o in self.outcomes.items()})

    @cached_property
    def facts(self) -> EarlyFacts:
        """Facts that scores and answers tell about mixtures of these agents."""
        return early_facts(self.scores, ballots=self.ballots, max_width=self.space.max_width)

    def searched(self, space: SearchSpace) -> SearchSpace:
        """Return the space with the ranking of its agents, and without votes on free text."""
        space = replace(space, ranking=self.ranking)
        if not self.facts.are_answers_unlike:
            return space
        if others := tuple(combine for combine in space.combines if combine != "vote"):
            return replace(space, combines=others)
        # Nothing but votes: single agents and listed ones are left, and the baselines outside it.
        return replace(space, max_depth=0)

    @cached_property
    def smoothed(self) -> SmoothedVotes | None:
        """Every vote of the best agents, on redrawn answers."""
        if self.ballots is None:
            return None
        widths = range(self.space.min_width, self.space.max_width + 1)
        return smooth(self.ballots, widths=widths, seed=self.seed, admits=self.admits)

    @property
    def forecast(self) -> Forecast:
        """Expected cost of a question to an architecture, from what its agents cost alone."""
        singles = self.outcomes.items()
        return Forecast(
            usd={name: fmean(o.usd for o in group) for name, group in singles},
            seconds={name: fmean(o.seconds for o in group) for name, group in singles},
        )

    def estimate(
        self, options: SearchOptions, splits: Splits, *, budget: Budget, judged: Cost | None = None
    ) -> StudyEstimate:
        """Return the cost of the whole search; the arguments are those of ``early_facts``."""
        started = time.monotonic()
        estimate = estimated(self._plan(options, splits, judged), budget)
        # The search's proposals take about as long: a fifth as many, from ten times the draws.
        return estimate.with_own_work(2 * (time.monotonic() - started) * bool(self.own_seconds))

    def _plan(self, options: SearchOptions, splits: Splits, judged: Cost | None) -> StudyPlan:
        replies = {name: [o.answer for o in group] for name, group in self.outcomes.items()}
        ballots = {name: [o.ballot for o in group] for name, group in self.outcomes.items()}
        is_counted = all(o.ballot or o.failure for group in self.outcomes.values() for o in group)
        return plan_of(
            options,
            self.searched(options.space),
            splits,
            {name: self._agent_costs(name, options.pool) for name in self.outcomes},
            n_val=len(self.rows),  # a budget may have ended before all of val
            ranking=self.ranking,
            may_vote=self.ballots is not None and not self.facts.is_vote_idle,
            canonical=self.canonical,
            judged=judged,
            own_seconds=self.own_seconds,
            stops_early=self.stops_early,
            scores=self.scores,
            replies=replies,
            ballots=ballots if is_counted else replies,
            mixtures=self.mixtures,
        )

    def _agent_costs(self, name: str, pool: Pool) -> AgentCosts:
        outcomes = self.outcomes[name]
        rows = ((o.calls, o.tokens, o.usd, o.seconds) for o in outcomes)
        return mean_costs(name, pool, rows, ((o.reply_tokens, _text_tokens(o)) for o in outcomes))

    def early_facts(
        self,
        options: SearchOptions,
        splits: Splits,
        *,
        budget: Budget,
        judged: Cost | None = None,
        judge: JudgeFacts | None = None,
    ) -> EarlyFacts:
        """Return the facts that are shown before more is spent, with an estimate of the search.

        Args:
            options: Options of the search.
            splits: The rows.
            budget: May end the search earlier.
            judged: Cost of one comparison by the judge, where there is one.
            judge: Facts on the judge, where there is one.
        """
        estimate = self.estimate(options, splits, budget=budget, judged=judged)
        if options.pool.unpriced:
            estimate = replace(estimate, usd=None)
        return replace(self.facts, estimate=estimate, judge=judge)

    def pair(self, metric: DiversityMetric) -> Callable[[str, str], float]:
        """Return the function for the mean diversity of two agents; 0 for two seats of one."""
        texts = {n: [(o.layer or ("",))[0] for o in group] for n, group in self.outcomes.items()}
        pairs = mean_distances(metric, texts)
        return lambda a, b: 0.0 if a == b else pairs[min(a, b), max(a, b)]

    def admits(self, members: tuple[str, ...]) -> bool:
        """True if the vote of these members is in the space and within the limits."""
        if members not in self._admitted:
            self._admitted[members] = self._admits(members)
        return self._admitted[members]

    def _admits(self, members: tuple[str, ...]) -> bool:
        if len(members) > 1 and not self._may_vote(members):
            return False
        return self.limits == Limits() or self.limits.allow(**self._costs(members))

    def _costs(self, members: tuple[str, ...]) -> dict[str, float]:
        """Return the mean costs of a question to a vote of these members.

        A member that is not asked costs nothing. The times of the waves add up, but never beyond
        the deadline.
        """
        seats = tuple(sorted(members))
        vote = canonical_evidence(Architecture((seats,), None, "vote"), self.ranking)
        read = [seats[seat] for seat in vote.reading]
        order = sorted(read, key=lambda name: name != vote.aggregator)
        wave = np.zeros((len(order), len(self.outcomes[order[0]])), np.intp)
        if self.stops_early and self.ballots is not None:
            wave = waves_of(self.ballots.codes[[self.ballots.agents.index(n) for n in order]])
        calls, usd, seconds = (
            np.array([[getattr(o, cost) for o in self.outcomes[name]] for name in order])
            for cost in ("calls", "usd", "seconds")
        )
        took = sum(np.where(wave == n, seconds, 0.0).max(0) for n in range(int(wave.max()) + 1))
        late = inf if self.deadline_seconds is None else self.deadline_seconds
        return {
            "calls": float(np.where(wave >= 0, calls, 0).sum(0).mean()),
            "usd": float(np.where(wave >= 0, usd, 0.0).sum(0).mean()),
            "seconds": float(np.minimum(took, late).mean()),
        }

    def _may_vote(self, members: tuple[str, ...]) -> bool:
        return self.space.holds(Architecture((members,), None, "vote"))

    def canonical(self, architecture: Architecture) -> Architecture:
        """Return the one form of an architecture in which equal ones compare equal.

        The best break ties, a prompt has one name, and listed ones keep the order of their seats.
        """
        if isinstance(architecture, ProgramArchitecture):
            return self.space.seated(
                architecture.each(lambda part: canonical_evidence(part, self.ranking))
            )
        # A stop rule fixes which members are asked first, so their order must stay.
        is_own = (architecture.agree, architecture.lead) != (None, None)
        form = architecture if is_own else canonical_evidence(architecture, self.ranking)
        named = form if self.registry is None else self.registry.canonical(form)
        return self.space.seated(named)


def plan_of(
    options: SearchOptions,
    space: SearchSpace,
    splits: Splits,
    agents: Mapping[str, AgentCosts],
    *,
    ranking: Sequence[str],
    may_vote: bool,
    canonical: Callable[[Architecture], Architecture] = lambda architecture: architecture,
    **details: Any,
) -> StudyPlan:
    """Return the plan of a search over ``space``.

    Args:
        options: Options of the search.
        space: Space of architectures.
        splits: The rows.
        agents: Costs of each.
        ranking: Agents, best first; in the pool's order where nothing is measured yet.
        may_vote: Whether votes of the single agents' answers are tried without calls.
        canonical: See ``StudyPlan``.
        **details: Further fields of it.
    """
    prompts, named = options.prompts, names_of(options.objectives)
    baselines = [*baseline_architectures(ranking, options.pool, space), *space.listed]
    return StudyPlan(
        space=space,
        agents=agents,
        n_trials=options.n_trials,
        n_test=len(splits.test),
        num_threads=options.num_threads,
        given=list(map(canonical, in_every_mixture(baselines, space))),
        tested=in_every_mixture(filter(None, fixed_baselines(ranking, options.pool, space)), space),
        n_free=N_VOTES if may_vote else 0,
        canonical=canonical,
        effort=None if prompts is None else prompts.effort(len(splits.train)),
        costs=tuple(cost for cost in COSTS if cost in named),
        is_acquired=options.sampler is None,
        beyond_val=tokens_beyond_val({n: getattr(splits, n) for n in ("train", "val", "test")}),
        seed=options.seed,
        **details,
    )

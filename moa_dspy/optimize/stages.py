"""What every study asks first, and what it must keep back for its end."""

# DOCS: optimize/proposing: Who proposes the next architecture: the response model, told what the single agents showed. | optimize/stages: The stages of one search, from single agents to the recommended program.

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import dspy
import numpy as np
import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import Splits
from moa_dspy.errors import BudgetReachedError, PoolError, StudyError
from moa_dspy.optimize.comparison import TestComparison, random_baseline, random_draws
from moa_dspy.optimize.conclusion import Conclusion
from moa_dspy.optimize.context import SearchContext, StageCounts
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.evidence import EvidenceBuilder, SingleAgents
from moa_dspy.optimize.forecast import Prices, baseline_architectures, forecast
from moa_dspy.optimize.nodes import Outcome, scores
from moa_dspy.optimize.pareto import names_of
from moa_dspy.optimize.prompts.joint import JointSearch
from moa_dspy.optimize.racing import TrialJudge, balanced_order
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.optimize.selection import Choice, choose
from moa_dspy.optimize.surrogate.acquisition import Acquisition
from moa_dspy.optimize.surrogate.features import Kernels, Traits
from moa_dspy.optimize.trials import Trials, make_study

N_PROBED: Final = 3
"""Questions that an agent may fail at the start: one may be too long for it, or be filtered."""


def probe(context: SearchContext, evaluator: Evaluator, rows: Sequence[dspy.Example]) -> None:
    """Ask every agent one question: a dead agent, or a broken metric, ends the study here.

    Args:
        context: Names the agents.
        evaluator: Asks them.
        rows: Of val; one that fails on the first is asked the next, up to three.

    Raises:
        PoolError: If an agent answers none, before the next one is asked.
    """
    for name in context.space.agents:
        context.show("probe", current=name)
        failures = []
        for row in rows[:N_PROBED]:
            (outcome,) = evaluator.measure(Architecture.single(name), [row])
            if outcome.failure is None:
                break
            failures.append(outcome.failure)
        else:
            raise PoolError(f"Agent {name!r} does not answer: {failures[0]}")


def measure_singles(
    context: SearchContext, evaluator: Evaluator, rows: Sequence[dspy.Example]
) -> dict[str, tuple[Outcome, ...]]:
    """Return the outcomes of each agent alone: layer 1 of every architecture.

    Raises:
        StudyError: If the budget ends before all are measured.
    """
    found = {}
    evaluator.announce(map(Architecture.single, context.space.agents), rows)
    for name in context.space.agents:
        context.show("single agents", current=name)
        try:
            found[name] = evaluator.measure(Architecture.single(name), rows)
        except BudgetReachedError as error:
            raise StudyError(
                f"{error} Single agents must be measured first; allow more, or fewer rows."
            ) from error
    return found


def test_share(
    budget: Budget,
    singles: Mapping[str, Sequence[Outcome]],
    *,
    n_test: int,
    num_threads: int,
    possible_calls: Iterable[float],
) -> float:
    """Return the part of the budget that the test needs, in [0, 1].

    On every test row the best single agent and the pick are asked, then, as far as it
    goes, all agents and the fixed rivals. It is computed from what single agents cost
    in production terms: stored answers on val say nothing about the test.

    Args:
        budget: The limits.
        singles: Outcomes of each agent alone.
        n_test: Test rows.
        num_threads: Examples measured at the same time; it scales wall time.
        possible_calls: Calls per row of each architecture that may become the pick.
    """
    outcomes = [outcome for found in singles.values() for outcome in found]
    n_asked = sum(outcome.calls for outcome in outcomes)
    needed = n_test * max(1.5 * len(singles), 1 + max(possible_calls, default=0))
    per_call = {
        "calls": 1.0,
        "tokens": sum(outcome.tokens for outcome in outcomes) / max(n_asked, 1),
        "usd": sum(outcome.usd for outcome in outcomes) / max(n_asked, 1),
        "seconds": sum(outcome.seconds for outcome in outcomes) / max(n_asked, 1) / num_threads,
    }
    shares = [
        needed * cost / limit
        for name, cost in per_call.items()
        if (limit := getattr(budget, name)) is not None
    ]
    return min(1.0, max(shares, default=0.0))


def proposer_of(context: SearchContext, known: SingleAgents) -> Acquisition:
    """Return the proposer of a search; the paper's criteria are the kernels of its model."""
    traits = Traits(known.means, known.pair(context.diversity), context.space.prompts)
    prices = Prices(known.forecast, names_of(context.objectives), context.seed)
    kernels = Kernels.of(traits)
    return Acquisition(context.space, kernels, known.canonical, context.seed, prices.at)


N_VOTES = 3
"""Votes tried because redrawn answers put them first; they cost no call."""


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a compile leaves behind besides the program."""

    result: StudyResult
    study: optuna.Study
    reached: StageCounts


class Stages:
    """One compile: single agents, search, random baseline, test; they share what they measured."""

    def __init__(self, context: SearchContext, splits: Splits, evaluator: Evaluator) -> None:
        self.splits, self.evaluator = splits, evaluator
        self.ledger = context.pool.calls.ledger
        self.started, self.before = time.monotonic(), self.ledger.spending
        probe(context, evaluator, splits.val)
        singles = measure_singles(context, evaluator, splits.val)
        places = balanced_order({n: scores(o) for n, o in singles.items()}, seed=context.seed)
        self.rows = [splits.val[place] for place in places]
        ordered = {name: [found[place] for place in places] for name, found in singles.items()}
        self.known = known = self._learn(context, ordered)
        self.context = context = replace(
            context, space=replace(context.space, ranking=known.ranking)
        )
        context.show("early facts", current="", early=known.early)
        self.referee = self._make_referee(context)
        self.trials = self._make_trials(context)
        self.gathering = EvidenceBuilder(context, known, evaluator, self.rows, self.trials.records)
        self.proposer = proposer_of(context, known)
        self.draws = random_draws(context.space, known.canonical, context.seed)
        self.joint = JointSearch.of(context, evaluator, splits.train)

    def _make_referee(self, context: SearchContext) -> TrialJudge:
        return TrialJudge(
            self.evaluator,
            self.rows,
            best_single=self.known.ranking[0],
            diversity=context.diversity,
            limits=context.limits,
            objectives=context.objectives,
            n_arms=2 * context.n_trials,  # the random baseline has as many
        )

    def _make_trials(self, context: SearchContext) -> Trials:
        # A sampler is asked for every trial, even where it is told what to say: the quickest,
        # where the response model proposes.
        sampler = context.sampler or optuna.samplers.RandomSampler(seed=context.seed)
        return Trials(
            study=make_study(context.objectives, seed=context.seed, sampler=sampler),
            space=context.space,
            ranking=self.known.ranking,
            canonical=self.known.canonical,
            measure=self._try,
            values=lambda record: self.referee.values(record, context.objectives),
            seed=context.seed,
            announce=self._announce,
            propose=None if context.sampler is not None else self._propose,
        )

    def _learn(
        self, context: SearchContext, singles: Mapping[str, Sequence[Outcome]]
    ) -> SingleAgents:
        estimate = forecast(
            singles,
            context.space,
            n_trials=context.n_trials,
            n_test=len(self.splits.test),
            num_threads=self.evaluator.num_threads,
            budget=self.ledger.budget,
            effort=context.prompts.effort(len(self.splits.train)) if context.prompts else None,
            seed=context.seed,
        )
        return SingleAgents(
            singles,
            context.space,
            context.limits,
            seed=context.seed,
            estimate=estimate,
            book=self.evaluator.book,
        )

    def run(self) -> tuple[Any, SearchOutcome]:
        """Run every stage; return the recommended program and all that was found."""
        phases = self._search()
        choice = self._choose()
        known, counts = self.known, self.context.counts
        n_trials = phases[-1]
        n_drawn = counts.random if counts else n_trials
        rival, n_random = random_baseline(
            self.context, self.referee, n=n_drawn, canonical=known.canonical
        )
        finals = TestComparison(self.context, self.evaluator, self.splits, known.ranking)
        outcome = finals.compare(choice.picked, rival)
        stopped_by = counts.stopped_by if counts else self.trials.stopped_by
        conclusion = Conclusion(self.context, self.gathering, self.started, self.before, self.joint)
        result = conclusion.result(choice, outcome, stopped_by=stopped_by)
        reached = StageCounts(n_trials, n_random, stopped_by, phases)
        return conclusion.program(result), SearchOutcome(result, self.trials.study, reached)

    def _search(self) -> tuple[int, ...]:
        """Compose, and tune prompts between; return the trials at each end of composing."""
        context, trials, ranking = self.context, self.trials, self.known.ranking
        limit = context.counts.trials if context.counts else context.n_trials
        singles = [Architecture.single(name) for name in ranking]
        trials.open_with(singles, origin="single")
        rivals = baseline_architectures(ranking, context.pool, context.space)
        trials.open_with(rivals, origin="baseline", limit=limit)
        trials.open_with(self._votes(), origin="votes", limit=limit)
        trials.open_with(context.space.listed, origin="listed", limit=limit)
        phases: list[int] = []
        known = context.counts.phases if context.counts else ()
        for number in range(self.joint.n_rounds + 1):
            if number:
                self._tune(number, limit=limit)
            planned = min(limit, round(limit * self.joint.part))
            trials.run(known[number] if number < len(known) else planned)
            phases.append(len(trials.records))
        self.joint.n_tried = sum(one.prompt is not None for one in trials.records)
        return tuple(phases)

    def _tune(self, number: int, *, limit: int) -> None:
        trials, joint = self.trials, self.joint
        self.context.show("prompts", current=f"round {number}", trial=len(trials.records))
        self.ledger.share *= joint.tuning_part(number) / joint.part
        found = joint.tune(trials.records, number)
        # What stopped was the part of the budget of this round, not all of it.
        trials.stopped_by = None
        trials.open_with(found, origin="prompt", limit=limit)

    def _choose(self) -> Choice:
        """Pick; a prompt that is not proven better than the aggregator's own is not picked."""
        choice = choose(self.gathering.evidence())
        own = self.joint.refused(choice.picked, self.rows, min_gain=self.context.gain)
        if own is None:
            return choice
        if own not in self.trials.records and self.evaluator.knows(own, self.rows):
            number = len(self.trials.records)
            self.trials.records[own] = self.referee.judge(own, "own_prompt", number=number)
        self.gathering.may_prompt = False
        return choose(self.gathering.evidence())

    def _propose(self) -> Architecture | None:
        measured = self.gathering.measured()
        return self.proposer.propose(
            [one.architecture for one in measured], np.array([one.scores for one in measured])
        )

    def _votes(self) -> list[Architecture]:
        if self.known.ballots is None:
            return []
        options = choose(self.gathering.evidence(), may_be_unmeasured=True).options
        votes = (one.architecture for one in options if one.architecture.layers)
        return list(islice(votes, N_VOTES))

    def _announce(self, architectures: Sequence[Architecture]) -> None:
        # Money is spent in the order of measuring: what a budget may not reach is not begun.
        if self.ledger.budget == Budget():
            self.referee.announce(architectures)

    def _search_share(self, architecture: Architecture) -> float:
        """Return the part of the budget that the search may use if it measures ``architecture``."""
        kept = test_share(
            self.ledger.budget,
            self.known.singles,
            n_test=len(self.splits.test),
            num_threads=self.evaluator.num_threads,
            possible_calls=[architecture.calls, *(r.calls for r in self.trials.records.values())],
        )
        return max(0.0, 1 - self.context.random_share - kept) * self.joint.part

    def _try(self, architecture: Architecture, origin: str) -> TrialRecord:
        best = self.referee.leader
        self.context.show(
            "search", current=str(architecture), trial=len(self.trials.records), best=best
        )
        self.ledger.share = self._search_share(architecture)
        if self.ledger.budget == Budget():
            # The baseline has as many trials as the search: one more now is one more then.
            self.referee.announce(islice(self.draws, 1), is_urgent=False)
        return self.referee.judge(architecture, origin, number=len(self.trials.records))

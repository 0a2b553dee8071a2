"""The stages of one search, from single agents to the recommended program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Spending
from moa_dspy.data import Splits
from moa_dspy.errors import BudgetReachedError, PoolError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.baselines import openers
from moa_dspy.optimize.context import SearchContext, StageCounts
from moa_dspy.optimize.criteria import Criteria
from moa_dspy.optimize.finals import Comparison, Finals
from moa_dspy.optimize.measure import Measurer, Outcome, scores
from moa_dspy.optimize.referee import Referee
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.optimize.selection import optimism, pick
from moa_dspy.optimize.trials import Trials, make_study
from moa_dspy.optimize.versions import versions

N_CRITERIA_SEEDS = 6
"""Layers that the paper's criteria put first, tried before the sampler is asked."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a compile leaves behind besides the program."""

    result: StudyResult
    study: optuna.Study
    reached: StageCounts


class Stages:
    """One compile: single agents, search, random baseline, test; they share what they measured."""

    def __init__(self, context: SearchContext, splits: Splits, measurer: Measurer) -> None:
        self.context, self.splits, self.measurer = context, splits, measurer
        self.ledger = context.pool.calls.ledger
        self.started, self.before = time.monotonic(), self.ledger.spending
        self._probe()
        singles = self._measure_singles()
        self.criteria = Criteria(
            {name: scores(outcomes) for name, outcomes in singles.items()},
            {name: [(o.layer or ("",))[0] for o in outcomes] for name, outcomes in singles.items()},
            metric=context.diversity,
        )
        self.ranking = self.criteria.best_agents()
        self.referee = Referee(
            measurer, splits.val, best_single=self.ranking[0], diversity=context.diversity
        )
        self.trials = Trials(
            study=make_study(context.objectives, seed=context.seed, sampler=context.sampler),
            space=context.space,
            ranking=self.ranking,
            settle=self._settle,
            measure=self._try,
            values=lambda record: self.referee.values(record, context.objectives),
            seed=context.seed,
        )

    def _probe(self) -> None:
        """Ask every agent one question first: a dead agent or metric ends the study here."""
        first = self.splits.val[:1]
        for name in self.context.space.agents:
            self.context.show("probe", current=name)
            (outcome,) = self.measurer.measure(Architecture.single(name), first)
            if outcome.failure is not None:
                raise PoolError(f"Agent {name!r} does not answer: {outcome.failure}")

    def run(self) -> tuple[MixtureOfAgents, Found]:
        """Run every stage; return the recommended program and all that was found."""
        self._search()
        records = list(self.trials.records.values())
        weight = self.context.diversity_weight
        chosen = pick(records, limits=self.context.limits, diversity_weight=weight)
        best = Architecture.parse(chosen.architecture)
        finals = Finals(self.context, self.measurer, self.splits, self.ranking, self._settle)
        counts = self.context.counts
        rival, n_random = finals.random_rival(
            counts.random if counts else len(records), self.referee
        )
        result = self._result(best, records, finals.compare(best, rival))
        program = self._program(result, records)
        reached = StageCounts(len(records), n_random, result.stopped_by)
        return program, Found(result, self.trials.study, reached)

    def _program(self, result: StudyResult, records: Sequence[TrialRecord]) -> MixtureOfAgents:
        """Return the recommended program with what DSPy's optimizers leave on theirs."""
        program = self.measurer.student.with_architecture(result.recommended)
        is_pick = result.recommended == result.pick
        program.score = result.val["pick" if is_pick else "best_single"].score
        program.trial_logs = records
        program.candidate_programs = self._candidates(records)
        program._compiled = True
        return program

    def _measure_singles(self) -> dict[str, tuple[Outcome, ...]]:
        found = {}
        for name in self.context.space.agents:
            self.context.show("single agents", current=name)
            try:
                found[name] = self.measurer.measure(Architecture.single(name), self.splits.val)
            except BudgetReachedError as error:
                raise StudyError(
                    f"{error} Single agents must be measured first; allow more, or fewer rows."
                ) from error
        return found

    def _settle(self, architecture: Architecture) -> Architecture:
        """Let the best voter decide ties, so that one vote is one architecture."""
        if architecture.combine != "vote":
            return architecture
        voter = min(architecture.layers[-1], key=self.ranking.index)
        return replace(architecture, aggregator=voter)

    def _search(self) -> None:
        context, trials = self.context, self.trials
        self.ledger.share = 1 - context.random_share - self._test_share()
        limit = context.counts.trials if context.counts else context.n_trials
        singles = [Architecture.single(name) for name in self.ranking]
        trials.open_with(singles, origin="single")
        trials.open_with(
            openers(self.ranking, context.pool, context.space)[: limit - len(trials.records)],
            origin="baseline",
        )
        trials.open_with(self._seeds()[: max(0, limit - len(trials.records))], origin="criteria")
        trials.run(limit)

    def _test_share(self) -> float:
        """Return the part of the budget that the test will need: the cost of val, and half more."""
        if self.context.pool.calls.replay_only:
            return 0.0
        ratio = len(self.splits.test) / len(self.splits.val)
        shares = [
            spent / limit
            for name in ("calls", "tokens", "usd", "seconds")
            if (limit := getattr(self.ledger.budget, name)) is not None
            and (spent := _spent(self.ledger.spending, name)) > 0
        ]
        return min(0.5, 1.5 * ratio * max(shares, default=0.0))

    def _seeds(self) -> list[Architecture]:
        space = self.context.space
        if not space.searches_layers:
            return list(space.listed)
        ranked = self.criteria.rank(space.layers())[:N_CRITERIA_SEEDS]
        combine = space.combines[0]
        who = None if combine != "synthesize" else (space.aggregators or tuple(self.ranking))[0]
        return [self._settle(Architecture((c.layer,), who, combine)) for c in ranked]

    def _try(self, architecture: Architecture, origin: str) -> TrialRecord:
        best = self.referee.leader
        self.context.show(
            "search", current=str(architecture), trial=len(self.trials.records), best=best
        )
        return self.referee.judge(architecture, origin, number=len(self.trials.records))

    def _candidates(self, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        whole = [record for record in records if not record.is_stopped_early]
        ordered = sorted(whole, key=lambda record: (-record.score, record.calls))
        return [
            {
                "score": record.score,
                "program": self.measurer.student.with_architecture(
                    Architecture.parse(record.architecture)
                ),
            }
            for record in ordered[:10]
        ]

    def _result(
        self, best: Architecture, records: Sequence[TrialRecord], outcome: Comparison
    ) -> StudyResult:
        spending, before, counts = self.ledger.spending, self.before, self.context.counts
        single = Architecture.single(self.ranking[0])
        whole = [Architecture.parse(r.architecture) for r in records if not r.is_stopped_early]
        val = [(one, scores(self.measurer.measure(one, self.splits.val))) for one in whole]
        return StudyResult(
            pick=best,
            recommended=best if outcome.verdict.kind == "mixture" else single,
            verdict=outcome.verdict,
            val=outcome.val,
            test=outcome.test,
            differences=outcome.differences,
            optimism=optimism(val, seed=self.context.seed),
            trials=tuple(records),
            space_size=self.context.space.size,
            calls_made=spending.made - before.made,
            calls_reused=spending.reused - before.reused,
            usd=spending.usd - before.usd,
            seconds=time.monotonic() - self.started,
            seed=self.context.seed,
            stopped_by=counts.stopped_by if counts else self.trials.stopped_by,
            failures=dict(self.measurer.failures),
            versions=versions(),
        )


def _spent(spending: Spending, name: str) -> float:
    return float(spending.made if name == "calls" else getattr(spending, name))

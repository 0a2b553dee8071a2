"""The stages of one search, from single agents to the recommended program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import Splits
from moa_dspy.optimize.baselines import openers
from moa_dspy.optimize.context import SearchContext, StageCounts
from moa_dspy.optimize.criteria import Criteria
from moa_dspy.optimize.finals import Comparison, Finals, random_draws
from moa_dspy.optimize.measure import Measurer, scores
from moa_dspy.optimize.opening import measure_singles, probe, test_share
from moa_dspy.optimize.referee import Referee
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.optimize.selection import optimism, pick
from moa_dspy.optimize.student import Student
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
        probe(context, measurer, splits.val[0])
        self.singles = singles = measure_singles(context, measurer, splits.val)
        self.criteria = Criteria(
            {name: scores(outcomes) for name, outcomes in singles.items()},
            {name: [(o.layer or ("",))[0] for o in outcomes] for name, outcomes in singles.items()},
            metric=context.diversity,
        )
        self.ranking = self.criteria.best_agents()
        self.referee = Referee(
            measurer,
            splits.val,
            best_single=self.ranking[0],
            diversity=context.diversity,
            limits=context.limits,
        )
        self.trials = Trials(
            study=make_study(context.objectives, seed=context.seed, sampler=context.sampler),
            space=context.space,
            ranking=self.ranking,
            settle=self._settle,
            measure=self._try,
            values=lambda record: self.referee.values(record, context.objectives),
            seed=context.seed,
            announce=self._announce,
        )
        self.draws = random_draws(context.space, self._settle, context.seed)

    def run(self) -> tuple[Any, Found]:
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

    def _program(self, result: StudyResult, records: Sequence[TrialRecord]) -> Any:
        """Return the recommended program with what DSPy's optimizers leave on theirs.

        It does not count as compiled, which would freeze it: its prompts are still open.
        """
        student = Student.of(self.measurer.student)
        program: Any = student.with_architecture(result.recommended)
        program.score = self.trials.records[result.recommended].score
        program.trial_logs = records
        program.candidate_programs = self._candidates(student, records)
        return program

    def _settle(self, architecture: Architecture) -> Architecture:
        """Let the best voter decide ties, so that one vote is one architecture."""
        if architecture.combine != "vote":
            return architecture
        voter = min(architecture.layers[-1], key=self.ranking.index)
        return replace(architecture, aggregator=voter)

    def _search(self) -> None:
        context, trials = self.context, self.trials
        limit = context.counts.trials if context.counts else context.n_trials
        singles = [Architecture.single(name) for name in self.ranking]
        trials.open_with(singles, origin="single")
        rivals = openers(self.ranking, context.pool, context.space)
        trials.open_with(rivals, origin="baseline", limit=limit)
        trials.open_with(context.space.listed, origin="listed", limit=limit)
        trials.open_with(self._seeds(), origin="criteria", limit=limit)
        trials.run(limit)

    def _announce(self, architectures: Sequence[Architecture]) -> None:
        # Money is spent in the order of measuring: what a budget may not reach is not begun.
        if self.ledger.budget == Budget():
            self.referee.announce(architectures)

    def _search_share(self, architecture: Architecture) -> float:
        """Return the part of the budget that the search may use if it measures ``architecture``."""
        kept = test_share(
            self.ledger.budget,
            self.singles,
            n_test=len(self.splits.test),
            n_threads=self.measurer.n_threads,
            possible_calls=[architecture.calls, *(r.calls for r in self.trials.records.values())],
        )
        return max(0.0, 1 - self.context.random_share - kept)

    def _seeds(self) -> list[Architecture]:
        space = self.context.space
        if not space.searches_layers:
            return []
        ranked = self.criteria.rank(space.layers())[:N_CRITERIA_SEEDS]
        combine = space.combines[0]
        who = min(space.who_combines(combine), key=self.ranking.index, default=None)
        return [self._settle(Architecture((c.layer,), who, combine)) for c in ranked]

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

    def _candidates(self, student: Student, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        whole = [record for record in records if not record.is_stopped_early]
        ordered = sorted(whole, key=lambda record: (-record.score, record.calls))
        return [
            {
                "score": record.score,
                "program": student.with_architecture(Architecture.parse(record.architecture)),
            }
            for record in ordered[:10]
        ]

    def _result(
        self, best: Architecture, records: Sequence[TrialRecord], outcome: Comparison
    ) -> StudyResult:
        spending, before, counts = self.ledger.spending, self.before, self.context.counts
        whole = [Architecture.parse(r.architecture) for r in records if not r.is_stopped_early]
        val = [(one, scores(self.measurer.measure(one, self.splits.val))) for one in whole]
        return StudyResult(
            pick=best,
            recommended=self._recommended(best, outcome),
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

    def _recommended(self, best: Architecture, outcome: Comparison) -> Architecture:
        """Return the pick if proven or a single agent, else the best single within the limits."""
        if outcome.verdict.kind == "mixture" or not best.layers:
            return best
        singles = [Architecture.single(name) for name in self.ranking]
        admitted = (s for s in singles if self.context.limits.admit(self.trials.records[s]))
        return next(admitted, best)

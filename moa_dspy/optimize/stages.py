"""The stages of one search, from single agents to the recommended program."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import Splits
from moa_dspy.optimize.baselines import openers
from moa_dspy.optimize.blocks import balanced_order
from moa_dspy.optimize.context import SearchContext, StageCounts
from moa_dspy.optimize.finals import Comparison, Finals, random_draws
from moa_dspy.optimize.known import Known
from moa_dspy.optimize.measure import Measurer, scores
from moa_dspy.optimize.opening import measure_singles, probe, test_share
from moa_dspy.optimize.referee import Referee
from moa_dspy.optimize.response import Kernels, Proposer, Traits
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.optimize.selection import Choice, Evidence, Measured, choose, expected_score
from moa_dspy.optimize.shrinking import ResponseShrink
from moa_dspy.optimize.student import Student
from moa_dspy.optimize.trials import Trials, make_study
from moa_dspy.optimize.versions import versions

N_VOTES = 3
"""Votes tried because redrawn answers put them first; they cost no call."""


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
        singles = measure_singles(context, measurer, splits.val)
        places = balanced_order({n: scores(o) for n, o in singles.items()}, seed=context.seed)
        self.rows = [splits.val[place] for place in places]
        ordered = {name: [found[place] for place in places] for name, found in singles.items()}
        self.known = Known(ordered, context.space, context.limits, context.seed)
        self.referee = Referee(
            measurer,
            self.rows,
            best_single=self.known.ranking[0],
            diversity=context.diversity,
            limits=context.limits,
            objectives=context.objectives,
            n_arms=2 * context.n_trials,  # the random baseline has as many
        )
        self.trials = Trials(
            study=make_study(context.objectives, seed=context.seed, sampler=context.sampler),
            space=context.space,
            ranking=self.known.ranking,
            settle=self.known.settle,
            measure=self._try,
            values=lambda record: self.referee.values(record, context.objectives),
            seed=context.seed,
            announce=self._announce,
            propose=None if context.sampler is not None else self._propose,
        )
        self.proposer = Proposer(
            context.space,
            Kernels.of(Traits(self.known.means, self.known.pair(context.diversity))),
            self.known.settle,
            context.seed,
        )
        self.draws = random_draws(context.space, self.known.settle, context.seed)

    def run(self) -> tuple[Any, Found]:
        """Run every stage; return the recommended program and all that was found."""
        self._search()
        records = list(self.trials.records.values())
        evidence = self._evidence()
        choice = choose(evidence)
        known = self.known
        finals = Finals(self.context, self.measurer, self.splits, known.ranking, known.settle)
        counts = self.context.counts
        rival, n_random = finals.random_rival(
            counts.random if counts else len(records), self.referee
        )
        result = self._result(choice, evidence, finals.compare(choice.picked, rival))
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

    def _search(self) -> None:
        context, trials, ranking = self.context, self.trials, self.known.ranking
        limit = context.counts.trials if context.counts else context.n_trials
        singles = [Architecture.single(name) for name in ranking]
        trials.open_with(singles, origin="single")
        rivals = openers(ranking, context.pool, context.space)
        trials.open_with(rivals, origin="baseline", limit=limit)
        trials.open_with(self._votes(), origin="votes", limit=limit)
        trials.open_with(context.space.listed, origin="listed", limit=limit)
        trials.run(limit)

    def _propose(self) -> Architecture | None:
        measured = list(self._measured())
        return self.proposer.propose(
            [one.architecture for one in measured], np.array([one.scores for one in measured])
        )

    def _votes(self) -> list[Architecture]:
        if self.known.ballots is None:
            return []
        options = choose(self._evidence(), may_be_unmeasured=True).options
        votes = (one.architecture for one in options if one.architecture.layers)
        return list(islice(votes, N_VOTES))

    def _evidence(self) -> Evidence:
        """Return all that was measured on val as numbers."""
        known, space = self.known, self.context.space
        return Evidence(
            singles=known.scores,
            measured=tuple(self._measured()),
            ballots=known.ballots,
            widths=(space.min_width, space.max_width),
            admits=known.admits,
            shrink=ResponseShrink(self.known.pair(self.context.diversity)),
            seed=self.context.seed,
            smoothed=known.smoothed,
        )

    def _measured(self) -> Iterator[Measured]:
        context, rows = self.context, self.rows
        for architecture, record in self.trials.records.items():
            found = np.full(len(rows), np.nan)
            found[: record.rows] = scores(self.measurer.measure(architecture, rows[: record.rows]))
            yield Measured(
                architecture,
                found,
                calls=record.calls,
                usd=record.usd,
                bonus=context.diversity_weight * record.diversity,
                is_admitted=context.limits.admit(record),
            )

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
            n_threads=self.measurer.n_threads,
            possible_calls=[architecture.calls, *(r.calls for r in self.trials.records.values())],
        )
        return max(0.0, 1 - self.context.random_share - kept)

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

    def _result(self, choice: Choice, evidence: Evidence, outcome: Comparison) -> StudyResult:
        spending, before, counts = self.ledger.spending, self.before, self.context.counts
        expected = expected_score(evidence, seed=self.context.seed)
        on_val = self.trials.records[choice.picked].score
        return StudyResult(
            pick=choice.picked,
            recommended=self._recommended(choice.picked, outcome),
            verdict=outcome.verdict,
            val=outcome.val,
            test=outcome.test,
            differences=outcome.differences,
            expected=expected,
            optimism=0.0 if expected is None else on_val - expected.estimate,
            trials=tuple(self.trials.records.values()),
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
        singles = [Architecture.single(name) for name in self.known.ranking]
        admitted = (s for s in singles if self.context.limits.admit(self.trials.records[s]))
        return next(admitted, best)

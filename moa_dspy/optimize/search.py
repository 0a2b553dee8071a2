"""``ModelSearch``: a DSPy optimizer whose parameters are the models themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import optuna
from dspy.teleprompt import Teleprompter

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Ledger, Spending
from moa_dspy.data import Splits
from moa_dspy.diversity import METRICS as DIVERSITY
from moa_dspy.errors import BudgetReachedError, PoolError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.baselines import openers
from moa_dspy.optimize.criteria import Criteria
from moa_dspy.optimize.finals import Finals
from moa_dspy.optimize.measure import Measurer, Metric, Outcome, scores
from moa_dspy.optimize.objectives import OBJECTIVES, Objective
from moa_dspy.optimize.progress import Snapshot, Watcher, silent
from moa_dspy.optimize.referee import Referee
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.optimize.rows import make_splits
from moa_dspy.optimize.selection import Limits, optimism, pick
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.trials import Trials, make_study
from moa_dspy.optimize.versions import versions
from moa_dspy.pool import Pool

N_CRITERIA_SEEDS = 6
"""Layers that the paper's criteria put first, tried before the sampler is asked."""


@dataclass(frozen=True, slots=True)
class StageCounts:
    """How far a finished study got, so that running it again does the same and no more."""

    trials: int
    random: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a compile leaves behind besides the program."""

    result: StudyResult
    study: optuna.Study
    reached: StageCounts


class ModelSearch(Teleprompter):
    """Decides which agents of a pool sit in which layer, and proves it on rows it never saw.

    Single agents are measured first: they are layer 1 of everything. The paper's two
    criteria rank the layers tried next, then Optuna asks for more. The pick has the
    highest win rate on val against the best single agent; it is compared once, on
    the test rows, with the best single agent, Self-MoA, top-k, a random search of
    equal size and the oracle. ``result`` holds all of it after ``compile``.

    Args:
        metric: Any DSPy metric with values in [0, 1].
        pool: The agents, and where their calls are stored.
        space: What may be tried; default: two layers of up to three agents.
        objectives: Names from ``OBJECTIVES``; the sampler optimises all of them.
        diversity: Name of the diversity metric, from ``moa_dspy.diversity``.
        diversity_weight: Win rate given away for a point of diversity; 0 is none.
        n_trials: Most architectures measured on val, single agents included.
        limits: What one question may cost at most; the pick never goes beyond.
        budget: What the study may spend at most.
        random_share: Part of the budget for the random baseline, when calls cost something.
        gain: Smallest gain worth having, as a share of the score.
        n_threads: Examples measured at the same time.
        seed: Of everything random.
        sampler: An Optuna sampler instead of TPE.
        watcher: Is shown the progress.
        counts: How far a finished study got that is to be run again exactly.

    Raises:
        StudyError: If an option does not fit, naming it, the value and the choices.
    """

    def __init__(
        self,
        metric: Metric,
        pool: Pool,
        *,
        space: SearchSpace | None = None,
        objectives: Sequence[str] = ("win_rate", "diversity"),
        diversity: str = "disagreement",
        diversity_weight: float = 0.0,
        n_trials: int = 40,
        limits: Limits | None = None,
        budget: Budget | None = None,
        random_share: float = 0.2,
        gain: float = 0.03,
        n_threads: int = 8,
        seed: int = 0,
        sampler: Any = None,
        watcher: Watcher = silent,
        counts: StageCounts | None = None,
    ) -> None:
        super().__init__()
        self.metric, self.pool = metric, pool
        self.space = space or SearchSpace(tuple(pool))
        self.objectives = [_objective(name) for name in objectives]
        self.diversity = _known(diversity, DIVERSITY, "diversity")()
        self.diversity_weight, self.n_trials, self.limits = diversity_weight, n_trials, limits
        self.random_share, self.gain, self.n_threads = random_share, gain, n_threads
        self.seed, self.sampler, self.watcher, self.counts = seed, sampler, watcher, counts
        self._found: Found | None = None
        if budget is not None:
            pool.calls.ledger = Ledger(budget)
        if not objectives:
            raise StudyError(f"`objectives` must name at least one of {', '.join(OBJECTIVES)}.")
        if n_trials < 1 or not 0 <= random_share < 1 or n_threads < 1:
            raise StudyError(
                "`n_trials` and `n_threads` must be at least 1 and `random_share` in [0, 1), but "
                f"got {n_trials}, {n_threads} and {random_share}."
            )
        for name in self.space.agents:
            pool[name]

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        testset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> MixtureOfAgents:
        """Return the recommended program: the pick if the verdict is for it, else a single agent.

        Args:
            student: A ``MixtureOfAgents``, or a module with one signature; it gives
                signature, adapter and the module of every seat.
            trainset: Rows for prompts; without a ``valset`` they are split in three.
            teacher: Not used.
            valset: Rows that the search looks at; without a ``testset`` half of them are kept back.
            testset: Rows that are used once, after the pick.
            kwargs: Nothing else is accepted.

        Raises:
            DataError: If a split is empty or two overlap.
            PoolError: If an agent does not answer the first question it is asked.
            MetricError: If the metric raises or returns no number in [0, 1].
            StudyError: If the budget ends before the single agents are measured.
        """
        if kwargs:
            raise StudyError(f"Unknown option {min(kwargs)!r} of compile; known is testset.")
        splits = make_splits(trainset, valset, testset, seed=self.seed)
        measurer = Measurer(_mixture(student, self.pool), self.metric, self.n_threads)
        self._probe(measurer, splits)
        return _Run(self, splits, measurer).program()

    @property
    def found(self) -> Found:
        """What the last ``compile`` found.

        Raises:
            StudyError: If there was none.
        """
        if self._found is None:
            raise StudyError("There is no result yet: call `compile` first.")
        return self._found

    @property
    def result(self) -> StudyResult:
        """The result of the last ``compile``."""
        return self.found.result

    def _probe(self, measurer: Measurer, splits: Splits) -> None:
        """Ask every agent one question first: a dead agent or metric ends the study here."""
        first = splits.val[:1]
        for name in self.space.agents:
            self.show("probe", current=name)
            (outcome,) = measurer.measure(Architecture.single(name), first)
            if outcome.failure is not None:
                raise PoolError(f"Agent {name!r} does not answer: {outcome.failure}")

    def show(
        self,
        stage: str,
        *,
        current: str,
        trial: int = 0,
        best: TrialRecord | None = None,
    ) -> None:
        """Tell the watcher where the study is."""
        ledger = self.pool.calls.ledger
        self.watcher(
            Snapshot(
                stage=stage,
                trial=trial,
                n_trials=self.n_trials,
                current=current,
                best=best.architecture if best else None,
                best_score=best.score if best else None,
                spending=ledger.spending,
                budget=ledger.budget,
            )
        )


class _Run:
    """One compile: the stages share what they measured."""

    def __init__(self, search: ModelSearch, splits: Splits, measurer: Measurer) -> None:
        self.search, self.splits, self.measurer = search, splits, measurer
        self.started, self.before = time.monotonic(), search.pool.calls.ledger.spending
        singles = self._measure_singles()
        self.criteria = Criteria(
            {name: scores(outcomes) for name, outcomes in singles.items()},
            {name: [(o.layer or ("",))[0] for o in outcomes] for name, outcomes in singles.items()},
            metric=search.diversity,
        )
        self.ranking = self.criteria.best_agents()
        self.referee = Referee(
            measurer, splits.val, best_single=self.ranking[0], diversity=search.diversity
        )
        self.trials = Trials(
            study=make_study(search.objectives, seed=search.seed, sampler=search.sampler),
            space=search.space,
            ranking=self.ranking,
            settle=self._settle,
            measure=self._try,
            values=lambda record: self.referee.values(record, search.objectives),
            seed=search.seed,
        )

    def program(self) -> MixtureOfAgents:
        """Run every stage and return the recommended program."""
        self._search()
        records = list(self.trials.records.values())
        chosen = pick(
            records,
            limits=self.search.limits,
            diversity_weight=self.search.diversity_weight,
        )
        best = Architecture.parse(chosen.architecture)
        finals = Finals(self.search, self.measurer, self.splits, self.ranking, self._settle)
        n_random = self.search.counts.random if self.search.counts else len(records)
        rival = finals.random_rival(n_random, self.referee)
        outcome = finals.compare(best, rival)
        result = self._result(best, records, outcome)
        program = self.measurer.student.with_architecture(result.recommended)
        program.score = result.val["pick"].score
        program.trial_logs = records
        program.candidate_programs = self._candidates(records)
        reached = StageCounts(len(records), finals.n_random)
        self.search._found = Found(result, self.trials.study, reached)
        return program

    def _measure_singles(self) -> dict[str, tuple[Outcome, ...]]:
        found = {}
        for name in self.search.space.agents:
            self.search.show("single agents", current=name)
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
        search, trials = self.search, self.trials
        search.pool.calls.ledger.share = 1 - search.random_share - self._test_share()
        limit = search.counts.trials if search.counts else search.n_trials
        singles = [Architecture.single(name) for name in self.ranking]
        trials.open_with(singles, origin="single")
        trials.open_with(
            openers(self.ranking, search.pool, search.space)[: limit - len(trials.records)],
            origin="baseline",
        )
        trials.open_with(self._seeds()[: max(0, limit - len(trials.records))], origin="criteria")
        trials.run(limit)

    def _test_share(self) -> float:
        """Return the part of the budget that the test will need: the cost of val, and half more."""
        if self.search.pool.calls.replay_only:
            return 0.0
        ratio = len(self.splits.test) / len(self.splits.val)
        ledger = self.search.pool.calls.ledger
        shares = [
            spent / limit
            for name in ("calls", "tokens", "usd", "seconds")
            if (limit := getattr(ledger.budget, name)) is not None
            and (spent := _spent(ledger.spending, name)) > 0
        ]
        return min(0.5, 1.5 * ratio * max(shares, default=0.0))

    def _seeds(self) -> list[Architecture]:
        space = self.search.space
        if not space.searches_layers:
            return list(space.listed)
        ranked = self.criteria.rank(space.layers())[:N_CRITERIA_SEEDS]
        combine = space.combines[0]
        who = None if combine != "synthesize" else (space.aggregators or tuple(self.ranking))[0]
        return [self._settle(Architecture((c.layer,), who, combine)) for c in ranked]

    def _try(self, architecture: Architecture, origin: str) -> TrialRecord:
        best = self.referee.leader
        self.search.show(
            "search", current=str(architecture), trial=len(self.trials.records), best=best
        )
        return self.referee.judge(architecture, origin, number=len(self.trials.records))

    def _candidates(self, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
        ordered = sorted(records, key=lambda record: (-record.score, record.calls))
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
        self, best: Architecture, records: Sequence[TrialRecord], outcome: Any
    ) -> StudyResult:
        spending, before = self.search.pool.calls.ledger.spending, self.before
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
            optimism=optimism(val, seed=self.search.seed),
            trials=tuple(records),
            space_size=self.search.space.size,
            calls_made=spending.made - before.made,
            calls_reused=spending.reused - before.reused,
            usd=spending.usd - before.usd,
            seconds=time.monotonic() - self.started,
            seed=self.search.seed,
            stopped_by=self.trials.stopped_by,
            failures=dict(self.measurer.failures),
            versions=versions(),
        )


def _objective(name: str) -> Objective:
    objective: Objective = _known(name, OBJECTIVES, "objectives")()
    return objective


def _known(name: str, registry: Any, option: str) -> Any:
    if name not in registry:
        known = ", ".join(sorted(registry))
        raise StudyError(f"`{option}`: unknown {name!r}; known ones are {known}.")
    return registry[name]


def _spent(spending: Spending, name: str) -> float:
    return float(spending.made if name == "calls" else getattr(spending, name))


def _mixture(student: dspy.Module, pool: Pool) -> MixtureOfAgents:
    if isinstance(student, MixtureOfAgents):
        return student
    signature = getattr(student, "signature", None)
    if signature is None:
        raise StudyError(
            "`student` must be a MixtureOfAgents or have one signature, but is a "
            f"{type(student).__name__}."
        )
    return MixtureOfAgents(signature, Architecture.single(next(iter(pool))), pool=pool)

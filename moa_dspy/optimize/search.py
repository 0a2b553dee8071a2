"""``ModelSearch``: a DSPy optimizer whose parameters are the models themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import optuna
from dspy.teleprompt import Teleprompter

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget, Ledger, Spending, spending_under
from moa_dspy.calls.lm.lm import each_warning_once
from moa_dspy.calls.scope import waiting_for_budget
from moa_dspy.data.splits import Splits, make_splits
from moa_dspy.diversity.base import DiversityMetric
from moa_dspy.errors import BudgetReachedError, StudyError
from moa_dspy.optimize.answers import StudyAnswers, study_answers
from moa_dspy.optimize.comparison import Baseline, compare_on_test
from moa_dspy.optimize.conclusion import (
    CrossFittedPick,
    Fronts,
    cross_fitted,
    final_facts,
    front_of,
    make_program,
    make_result,
    recommended_of,
)
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.evaluate import Evaluator, MetricFunction, Student, WorkerPool, mixtures_of
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.live_view import LiveProgress
from moa_dspy.optimize.metric import JudgeOptions, PreferenceMetric
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.objectives import cheapest_as_good
from moa_dspy.optimize.options import (
    SearchOptions,
    TrialCallback,
    named_diversity,
    named_objectives,
)
from moa_dspy.optimize.progress import Progress, ShowSnapshot, StageWork, silent
from moa_dspy.optimize.prompts.joint import JointSearch, with_prompts
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.result import ComparedSystems, StudyResult, TrialRecord
from moa_dspy.optimize.selection import Choice, Limits
from moa_dspy.optimize.several import (
    ProgramEvaluator,
    ProgramStudent,
    check_rows,
    plural_facts,
    plural_verdicts,
    warn_of_dropped_prompts,
    with_program_space,
)
from moa_dspy.optimize.shares import check_by_probe
from moa_dspy.optimize.singles import (
    N_SINGLE_BLOCKS,
    SingleAgents,
    choose_reference,
    measure_single_agents,
)
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.storage import opened_storage
from moa_dspy.optimize.trial_loop import ProgramLoop, TrialLoop
from moa_dspy.optimize.trials import usual_trials
from moa_dspy.pool import Pool


class ModelSearch(Teleprompter):
    """Searches which agents of a pool sit in which layer, and tests the pick on held-out rows.

    Single agents are measured first, as they are layer 1 of every mixture. A surrogate model
    learns from the trials how performance and diversity affect the score; the architecture
    with the highest expected improvement per call is measured next. The pick is the vote of
    the best agents, or the best agent alone, unless another architecture is better by cross-
    fitting or beyond chance (``selection.choose``). The pick is compared once, on the test rows,
    with the best single agent, Self-MoA, top-k, a random search of equal size and the oracle.
    After ``compile``, ``result`` holds all of this, and ``study`` is Optuna's study.

    ``compile`` changes neither pool, settings nor student; the budget of the search does not
    apply to the returned program.

    Args:
        metric: Any DSPy metric with values in [0, 1]; None if a judge picks.
        pool: The agents and the store of their calls; or a list of LMs.
        space: The architectures that may be tried; default: two layers of up to three agents.
        objectives: Names from ``OBJECTIVES``: values that the study records, by which trials are
            stopped early, and that span the Pareto front. The pick is by score.
        diversity: The diversity metric, or its name in ``moa_dspy.diversity``; default:
            ``disagreement``, and ``tfidf`` if there is a judge and no metric.
        diversity_weight: Win rate given up for a point of diversity; 0 means none.
        n_trials: Most architectures measured on val, agents alone included; default: 40, or 15 more
            than there are agents.
        limits: Upper limits of one question's cost; the pick never exceeds them.
        budget: Upper limits of what the search spends; a number is usd.
        random_share: Part of the budget for the random baseline, if calls cost something.
        min_gain: Smallest gain worth having, as a share of the score.
        num_threads: Examples measured at the same time.
        seed: Seed of all random choices.
        sampler: An Optuna sampler that proposes instead of ``PerformanceDiversitySampler``.
        callbacks: Called with (study, trial) after each trial; ``study.stop()`` ends the trials.
        prompts: Options for searching the aggregator's prompt too, which is tuned on the trainset.
        judge: A judge of ``moa_dspy.judges``, or ``JudgeOptions`` with one; the score is then
            the win rate against one reference.
        predictor: Path of the student's predictor, such as ``answer``, that a mixture replaces.
        storage: Optuna's storage of the trials, or its URL; default: memory.
        display_progress: Whether ``compile`` shows its progress on standard error.

    Raises:
        StudyError: If an option is invalid; the message names it, the value and the choices.
    """

    def __init__(
        self,
        metric: MetricFunction | None = None,
        pool: Pool | Sequence[dspy.BaseLM] | None = None,
        *,
        space: SearchSpace | None = None,
        objectives: Sequence[str] = ("win_rate", "diversity"),
        diversity: str | DiversityMetric | None = None,
        diversity_weight: float = 0.0,
        n_trials: int | None = None,
        limits: Limits | None = None,
        budget: Budget | float | None = None,
        random_share: float = 0.2,
        min_gain: float = 0.03,
        num_threads: int = 8,
        seed: int = 0,
        sampler: Any = None,
        callbacks: Sequence[TrialCallback] = (),
        prompts: PromptOptions | None = None,
        judge: Any = None,
        predictor: str | None = None,
        storage: Any = None,
        display_progress: bool = True,
    ) -> None:
        super().__init__()
        if pool is None:
            raise StudyError("A search needs a `pool` of agents, but got none.")
        pool = pool if isinstance(pool, Pool) else Pool.from_lms(pool)
        # Without a metric, texts are never equal: votes and disagreement mean nothing for them.
        is_open = metric is None and judge is not None
        open_space = SearchSpace(tuple(pool), combines=("synthesize",)) if is_open else None
        space = space or open_space or SearchSpace(tuple(pool))
        self.options = SearchOptions(
            metric=metric,
            pool=pool,
            space=space,
            objectives=named_objectives(objectives),
            diversity=named_diversity(diversity or ("tfidf" if is_open else "disagreement")),
            diversity_weight=diversity_weight,
            n_trials=usual_trials(space) if n_trials is None else n_trials,
            limits=limits or Limits(),
            budget=Budget(usd=budget) if isinstance(budget, int | float) else budget,
            random_share=random_share,
            min_gain=min_gain,
            num_threads=num_threads,
            seed=seed,
            sampler=sampler,
            callbacks=callbacks,
            prompts=prompts,
            judge=JudgeOptions.of(judge, has_metric=metric is not None),
            predictor=predictor,
            storage=storage,
        )
        self.display_progress = display_progress
        self._outcome: SearchOutcome | None = None

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        testset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the recommended program: the pick if the verdict is for it, else a single agent.

        Args:
            student: A ``MixtureOfAgents``, or a program that holds mixtures or has the
                ``predictor``, which is run and scored as a whole, and returned as such; mixtures
                that are frozen in DSPy's sense are not changed. Or a ``dspy.Predict`` or
                ``dspy.ChainOfThought``, which a mixture replaces.
            trainset: Rows for prompts; without a ``valset`` they are split into three.
            teacher: Not used.
            valset: Rows on which the search selects; without a ``testset`` half are held out.
            testset: Rows that are used once, after the pick.
            kwargs: No other arguments are accepted.

        Ctrl-C ends the trials once the first mixture was tried; the best architecture so far is
        still compared on the test rows, unless Ctrl-C is pressed again.

        Raises:
            DataError: If a split is empty or two overlap.
            PoolError: If an agent answers none of the first three questions.
            MoaError: If ``storage`` cannot be used, or the student has no ``predictor``.
            MetricError: If the metric raises or returns no number in [0, 1].
            StudyError: If the budget is too small for a verdict, or ``student`` holds no
                mixture, or a mixture of another pool, or fails by itself.
        """
        if kwargs:
            known = "trainset, valset, testset and teacher"
            raise StudyError(f"Unknown option {min(kwargs)!r} of compile; it takes {known}.")
        splits = make_splits(trainset, valset, testset, seed=self.options.seed)
        display = LiveProgress(mode=None if self.display_progress else "none")
        with opened_storage(self.options.storage) as storage, display, each_warning_once():
            self._outcome = run_search(
                self.options,
                student,
                splits,
                storage=storage,
                ends_on_interrupt=True,
                show=display.show,
            )
        return self._outcome.program

    @property
    def result(self) -> StudyResult:
        """The result of the last ``compile``.

        Raises:
            StudyError: If ``compile`` was not called.
        """
        return self._last_outcome().result

    @property
    def study(self) -> optuna.Study:
        """The Optuna study of the last ``compile``; raises as ``result`` does."""
        return self._last_outcome().study

    def _last_outcome(self) -> SearchOutcome:
        if self._outcome is None:
            raise StudyError("There is no result yet: call `compile` first.")
        return self._outcome


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """The outputs of a search.

    Attributes:
        program: The recommended program.
        phases: Architectures known after each round of search; prompts are tuned in between.
        answers: Those of each system to the test rows.
    """

    program: Any
    result: StudyResult
    study: optuna.Study
    phases: tuple[int, ...]
    answers: StudyAnswers


@waiting_for_budget()
def run_search(
    options: SearchOptions,
    student: dspy.Module,
    splits: Splits,
    *,
    ledger: Ledger | None = None,
    workers: WorkerPool | None = None,
    node_cache: NodeCache | None = None,
    storage: optuna.storages.BaseStorage | None = None,
    ends_on_interrupt: bool = False,
    show: ShowSnapshot = silent,
    log: Path | None = None,
) -> SearchOutcome:
    """Run the stages of one search in order, on rows with ids; see ``ModelSearch.compile``.

    A ``ledger`` counts and limits the spending instead of that of ``SearchOptions.make_ledger``.
    ``workers`` are processes that make calls in advance, and ``node_cache`` has responses that are
    known already; without a ``storage`` the trials are in memory. With ``ends_on_interrupt``,
    Ctrl-C ends the trials; otherwise KeyboardInterrupt is raised. ``log`` is the file for the
    output of prompt optimizers while a display is shown.
    """
    ledger = options.make_ledger() if ledger is None else ledger
    started, before = time.monotonic(), ledger.spending
    program, options = _searchable(student, options)
    check_rows(program, splits)
    options, judging = _with_judge(options, splits)
    options, registry = with_prompts(options, program, splits.train)
    evaluator = _evaluator(options, program, workers, node_cache, registry, judging)
    joint = JointSearch(evaluator, options.prompts, registry, splits.train, options.seed)
    table, admits = evaluator.node_cache.table, options.limits.admit
    progress = Progress(show, ledger, options.n_trials, table, admits, log)
    with spending_under(ledger):
        judged = check_by_probe(options, evaluator, splits, progress, judging)
        singles = _single_agents(options, evaluator, splits.val, progress, judging)
    facts = None if judging is None else judging.facts()
    budget = Budget() if options.pool.calls.replay_only else ledger.budget  # a replay is free
    early = singles.early_facts(options, splits, budget=budget, judged=judged, judge=facts)
    early = plural_facts(early) if (is_program := isinstance(program, ProgramStudent)) else early
    progress.show("early facts", early=early)
    options = replace(options, space=singles.searched(options.space))
    n_test = len(splits.test)
    loop = (ProgramLoop if is_program else TrialLoop).of(
        options, ledger, progress, evaluator, singles, joint, judged, storage, n_test=n_test
    )
    phases, choice = loop.run(ends_on_interrupt=ends_on_interrupt), loop.choose()
    random = loop.measure_random_baseline(phases[-1])
    best = loop.best_single()
    progress.show("expected score")
    fronts = front_of(loop.builder, choice), _for_less(loop, choice)
    held = cross_fitted(loop.builder.evidence(), seed=options.seed, is_free=loop.has_tried_votes)
    with spending_under(ledger):
        compared = _compared(options, splits, progress, loop, choice, best, random, fronts, held)
    compared = plural_verdicts(compared) if is_program else compared
    recommended = recommended_of(choice, compared, best)
    spent = ledger.spending.since(before, seconds=time.monotonic() - started)
    result = _result(loop, choice, compared, recommended, judging, fronts, held, early, spent)
    program = make_program(evaluator, recommended, choice.picked, loop.trials.records)
    answers = study_answers(evaluator, splits.test, result, singles, options.diversity)
    return SearchOutcome(program, result, loop.trials.study, phases, answers)


def _searchable(student: Any, options: SearchOptions) -> tuple[Any, SearchOptions]:
    """Return ``student`` with a mixture in the place of its predictor, or of all of it.

    With several mixtures the options have the space of all. Frozen ones, and all but the one in a
    predictor's place, stay as they are.
    """
    pool = options.pool
    if any(mixture.pool is not pool for mixture in mixtures_of(student, with_frozen=True).values()):
        # Its calls would go to another store, and be counted in no budget.
        raise StudyError("`student` must be made with the search's own pool.")
    if options.predictor is not None:
        return Student.in_place_of(student, options.predictor, pool=pool), options
    mixtures = mixtures_of(student)
    warn_of_dropped_prompts(mixtures.values())
    if not mixtures and isinstance(student, dspy.Predict | dspy.ChainOfThought):
        return Student.in_place_of(student, "self", pool=pool), options
    if len(mixtures) > 1:
        program = ProgramStudent.of_several(student)
        return program, with_program_space(options, program)
    Student.of(student)
    return student, options


def _result(
    loop: TrialLoop,
    choice: Choice,
    compared: ComparedSystems,
    recommended: Architecture,
    judging: Judging | None,
    fronts: Fronts,
    held: CrossFittedPick | None,
    early: EarlyFacts,
    spent: Spending,
) -> StudyResult:
    judge = (
        None if judging is None else final_facts(judging, loop.evaluator, compared, loop.builder)
    )
    return make_result(
        loop.builder,
        choice,
        compared,
        recommended,
        held=held,
        fronts=fronts,
        early=early,
        spent=spent,
        stopped_by=loop.stopped_by or loop.singles.stopped_by,
        notes=loop.notes,
        prompts=loop.joint.to_json(loop.trials.records),
        judge=judge,
    )


def _for_less(loop: TrialLoop, choice: Choice) -> TrialRecord | None:
    """Return the cheapest trial no worse than the pick; None without a cost objective or limit."""
    options, evidence = loop.options, loop.builder.evidence()
    if not (costs := options.compared_costs):
        return None
    records, min_gain = loop.trials.records, options.min_gain
    return cheapest_as_good(evidence, choice, records, cost=costs[0], min_gain=min_gain)


def _compared(
    options: SearchOptions,
    splits: Splits,
    progress: Progress,
    loop: TrialLoop,
    choice: Choice,
    best: Architecture,
    random: Baseline,
    fronts: Fronts,
    held: CrossFittedPick | None,
) -> ComparedSystems:
    """Measure the pick, the baselines and members of the Pareto front on test, once."""
    ranking = loop.singles.ranking
    on_val = None if held is None else (held.pick.tolist(), held.single.tolist())
    rows = loop.baselines(choice.picked, best, random)
    named = {row.architecture for row in rows if row.architecture is not None}
    work = [(named | set(map(Architecture.single, ranking)), splits.test), (named, splits.val)]
    progress.show("test", work=StageWork.of_unknown(loop.evaluator.knows, work))
    asks = (loop.evaluator, splits, progress, rows, ranking, loop.may_announce)
    tested = list(dict.fromkeys([*filter(None, fronts[1:]), *fronts[0]]))
    return compare_on_test(options, *asks, tested, on_val)


def _with_judge(options: SearchOptions, splits: Splits) -> tuple[SearchOptions, Judging | None]:
    """Return the options and the judge; if the judge picks, it is also the options' metric."""
    judging = options.make_judging(splits)
    if judging is None or not judging.picks:
        return options, judging
    return replace(options, metric=PreferenceMetric(judging.preference)), judging


def _evaluator(
    options: SearchOptions,
    program: Any,
    workers: WorkerPool | None,
    node_cache: NodeCache | None,
    registry: Any,
    judging: Judging | None,
) -> Evaluator:
    metric, cache = options.metric, NodeCache() if node_cache is None else node_cache
    assert metric is not None  # see `_with_judge`
    kind = ProgramEvaluator if isinstance(program, ProgramStudent) else Evaluator
    evaluator = kind(program, metric, options.num_threads, workers, cache, registry, judging)
    if isinstance(metric, PreferenceMetric):
        metric.agents = evaluator
    return evaluator


def _single_agents(
    options: SearchOptions,
    evaluator: Evaluator,
    rows: Sequence[dspy.Example],
    progress: Progress,
    judging: Judging | None,
) -> SingleAgents:
    if judging is not None:
        progress.show("single agents", current="choice of the reference")
        choose_reference(judging, options, evaluator, rows)
    n_blocks = 1 if progress.ledger.budget == Budget() else N_SINGLE_BLOCKS
    singles = measure_single_agents(options, evaluator, rows, progress, n_blocks=n_blocks)
    if judging is not None:
        with suppress(BudgetReachedError):
            judging.ask_second(seed=options.seed, num_threads=options.num_threads)
    return singles

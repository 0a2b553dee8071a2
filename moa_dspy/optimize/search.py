"""``ModelSearch``: a DSPy optimizer whose parameters are the models themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Ledger
from moa_dspy.diversity import DIVERSITY_METRICS as DIVERSITY
from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.context import SearchContext, StageCounts, Watcher, silent
from moa_dspy.optimize.evaluate import Evaluator, MetricFunction, Student, WorkerPool, mixtures_of
from moa_dspy.optimize.named import unknown
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.objectives import OBJECTIVES
from moa_dspy.optimize.prompts.joint import with_prompts
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.splits import make_splits
from moa_dspy.optimize.stages import SearchOutcome, Stages
from moa_dspy.pool import Pool


class ModelSearch(Teleprompter):
    """Decides which agents of a pool sit in which layer, and proves it on rows it never saw.

    Single agents are measured first: they are layer 1 of everything. A response model,
    which learns from the trials what performance and diversity are worth, says which
    architecture promises most for its calls; that one is measured next. The pick leaves
    the vote of the best agents, or the best alone, only for what is better by more than luck
    explains (``selection.choose``). It is compared once, on the test rows, with the best
    single agent, Self-MoA, top-k, a random search of equal size and the oracle. ``result``
    holds all of it after ``compile``.

    Args:
        metric: Any DSPy metric with values in [0, 1].
        pool: The agents, and where their calls are stored.
        space: What may be tried; default: two layers of up to three agents.
        objectives: Names from ``OBJECTIVES``: what the study records, what stops a loser, and
            what the Pareto front is of. The pick is by score.
        diversity: Name of the diversity metric, from ``moa_dspy.diversity``.
        diversity_weight: Win rate given away for a point of diversity; 0 is none.
        n_trials: Most architectures measured on val, single agents included.
        limits: What one question may cost at most; the pick never goes beyond.
        budget: What the study may spend at most.
        random_share: Part of the budget for the random baseline, when calls cost something.
        gain: Smallest gain worth having, as a share of the score.
        num_threads: Examples measured at the same time.
        seed: Of everything random.
        sampler: An Optuna sampler that proposes instead of the response model.
        watcher: Is shown the progress.
        counts: How far a finished study got that is to be run again exactly.
        prompts: Searches the aggregator's prompt too; the trainset tunes it.

    Raises:
        StudyError: If an option does not fit, naming it, the value and the choices.
    """

    def __init__(
        self,
        metric: MetricFunction,
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
        num_threads: int = 8,
        seed: int = 0,
        sampler: Any = None,
        watcher: Watcher = silent,
        counts: StageCounts | None = None,
        prompts: PromptOptions | None = None,
    ) -> None:
        super().__init__()
        if n_trials < 1 or not 0 <= random_share < 1 or num_threads < 1:
            raise StudyError(
                "`n_trials` and `num_threads` must be at least 1 and `random_share` in [0, 1), but "
                f"got {n_trials}, {num_threads} and {random_share}."
            )
        if not 0 < gain < 1 or diversity_weight < 0:
            raise StudyError(
                "`gain` must be in (0, 1) and `diversity_weight` at least 0, but got "
                f"{gain} and {diversity_weight}."
            )
        if not objectives:
            raise StudyError(f"`objectives` must name at least one of {', '.join(OBJECTIVES)}.")
        if budget is not None:
            pool.calls.ledger = Ledger(budget)
        self.metric, self.num_threads = metric, num_threads
        self.context = SearchContext(
            pool=pool,
            space=space or SearchSpace(tuple(pool)),
            objectives=[_known(name, OBJECTIVES, "objectives")() for name in objectives],
            diversity=_known(diversity, DIVERSITY, "diversity")(),
            diversity_weight=diversity_weight,
            n_trials=n_trials,
            limits=limits or Limits(),
            random_share=random_share,
            gain=gain,
            seed=seed,
            sampler=sampler,
            watcher=watcher,
            counts=counts,
            prompts=prompts,
        )
        for name in self.context.space.agents:
            pool[name]
        self.crew: WorkerPool | None = None
        self.memory: NodeCache | None = None
        self._found: SearchOutcome | None = None

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
            student: A ``MixtureOfAgents``, or a program that holds one: then the whole
                program is run and scored, and the result is such a program. Or a module
                with one signature, for which a mixture is made. It gives signature,
                adapter and the module of every seat; a larger program keeps the rest.
            trainset: Rows for prompts; without a ``valset`` they are split in three.
            teacher: Not used.
            valset: Rows that the search looks at; without a ``testset`` half of them are kept back.
            testset: Rows that are used once, after the pick.
            kwargs: Nothing else is accepted.

        Raises:
            DataError: If a split is empty or two overlap.
            PoolError: If an agent answers none of the first three questions.
            MetricError: If the metric raises or returns no number in [0, 1].
            StudyError: If the budget ends before the single agents are measured, or
                ``student`` holds no mixture, or two, or another pool's, or fails by itself.
        """
        if kwargs:
            raise StudyError(f"Unknown option {min(kwargs)!r} of compile; known is testset.")
        splits = make_splits(trainset, valset, testset, seed=self.context.seed)
        program = _student(student, self.context.pool)
        context, book = with_prompts(self.context, program, self.metric, splits.train)
        evaluator = Evaluator(
            program, self.metric, self.num_threads, self.crew, self.memory or NodeCache(), book
        )
        found, self._found = Stages(context, splits, evaluator).run()
        return found

    @property
    def found(self) -> SearchOutcome:
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


def _known(name: str, registry: Any, option: str) -> Any:
    if name not in registry:
        raise unknown(option, name, registry)
    return registry[name]


def _student(student: dspy.Module, pool: Pool) -> Any:
    """Return ``student``, or a mixture of its signature where it holds none."""
    signature = getattr(student, "signature", None)
    if not mixtures_of(student) and signature is not None:
        return MixtureOfAgents(signature, Architecture.single(next(iter(pool))), pool=pool)
    if Student.of(student).mixture.pool is not pool:
        # Its calls would go to another store, and be counted in no budget.
        raise StudyError("`student` must be made with the search's own pool.")
    return student

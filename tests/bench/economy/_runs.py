"""Searches through a world, and what each had paid when its recommendation was good enough."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError
from moa_dspy.optimize.conclusion import SurrogateShrinkage
from moa_dspy.optimize.objectives import ScoreObjective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.sampler import ROW_SCORES, PerformanceDiversitySampler
from moa_dspy.optimize.selection import CandidateScores, Evidence, choose
from moa_dspy.optimize.storage import make_study
from moa_dspy.optimize.surrogate.acquisition import nodes_of
from moa_dspy.optimize.surrogate.gp import Traits
from moa_dspy.optimize.trials import Trials
from tests.bench.economy._world import World

CLOSED = 0.9
"""Share of the distance from the best single to the optimum that a recommendation must close."""
SPARSE = 1.1
"""A rival's records are looked at by our choice each time they are so many times more."""

MOST_DRAWN = 1_000
"""Trials of a random search that only its calls shall end."""

Recommend = Callable[["Watch"], Architecture]


@dataclass
class Goal:
    """When a recommendation was good enough: calls until then, with equal nodes once and twice."""

    shared: int | None = None
    unshared: int | None = None


@dataclass
class Watch:
    """Measures for a search, counts its calls and asks after each trial what it recommends.

    Attributes:
        world: Where.
        recommends: Rules, by name; each is asked after each trial until it is good enough.
        most_shared: Calls after which the search ends, equal nodes counted once.
        most_unshared: The same, each counted for every architecture; it ends when both are reached.
    """

    world: World
    recommends: dict[str, Recommend]
    most_shared: float = inf
    most_unshared: float = inf
    measured: list[CandidateScores] = field(default_factory=list)
    goals: dict[str, Goal] = field(default_factory=dict)
    unshared: int = 0
    _nodes: set[Hashable] = field(default_factory=set)
    _next_look: float = 0.0

    @property
    def shared(self) -> int:
        """Calls made, each node once per row."""
        return len(self._nodes) * self.world.n_rows

    def measure(self, arch: Architecture, origin: str) -> TrialRecord:
        """Measure on all rows; end the search when it needs nothing more, or may pay no more."""
        is_rich = self.shared < self.most_shared or self.unshared < self.most_unshared
        if len(self.goals) == len(self.recommends) or not is_rich:
            raise BudgetReachedError("The run is over.")
        scores = self.world.answers(arch)
        self.measured.append(CandidateScores(arch, scores, calls=arch.calls or 1, usd=0.0))
        self._nodes |= nodes_of(arch)
        self.unshared += (arch.calls or 1) * self.world.n_rows
        if len(self.measured) >= len(self.world.singles):
            self._look()
        mean = float(scores.mean())
        costs = (float(arch.calls or 1), 0.0, 0.0, self.world.n_rows)
        return TrialRecord(len(self.measured) - 1, str(arch), origin, mean, mean, 0.0, *costs)

    def _look(self) -> None:
        for name, recommend in self.recommends.items():
            if name not in self.goals and self.world.closed(recommend(self)) >= CLOSED:
                self.goals[name] = Goal(self.shared, self.unshared)


def best_seen(watch: Watch) -> Architecture:
    """Return the best on the rows, as a plain search does; of equals the first."""
    return max(watch.measured, key=lambda candidate: float(candidate.scores.mean())).architecture


def chosen(watch: Watch) -> Architecture:
    """Return what our selection picks."""
    world = watch.world
    evidence = Evidence(
        singles=world.alone,
        measured=tuple(watch.measured),
        ballots=None,
        widths=(world.space.min_width, world.space.max_width),
        admits=lambda _: True,
        shrink=SurrogateShrinkage(world.pair),
        seed=world.seed,
    )
    return choose(evidence).picked


@dataclass
class Sparsely:
    """Asks a rule only when there are a tenth more records: it repeats itself in between."""

    rule: Recommend
    last: Architecture | None = None
    due: float = 0.0

    def __call__(self, watch: Watch) -> Architecture:
        """Return what the rule said last."""
        if self.last is None or len(watch.measured) >= self.due:
            self.last, self.due = self.rule(watch), SPARSE * len(watch.measured)
        return self.last


@dataclass(frozen=True)
class Run:
    """How a search went: trials, calls in all, and when each rule's recommendation was good."""

    trials: int
    shared: int
    unshared: int
    goals: dict[str, Goal]


def ours(world: World, *, n_trials: int) -> Run:
    """Search with our sampler in Optuna's own loop, and our choice."""
    watch = Watch(world, {"choose": chosen})
    means = {name: float(answers.mean()) for name, answers in world.alone.items()}
    sampler = PerformanceDiversitySampler(
        world.space,
        seed=world.seed,
        traits=Traits(means, world.pair),
        canonical=world.canonical,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        arch = world.canonical(world.space.suggest(trial))
        try:
            record = watch.measure(arch, "model")
        except BudgetReachedError:
            study.stop()
            raise optuna.TrialPruned from None
        trial.set_user_attr(ROW_SCORES, watch.measured[-1].scores.tolist())
        return record.score

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study.optimize(objective, n_trials=n_trials)
    return Run(len(watch.measured), watch.shared, watch.unshared, watch.goals)


def tpe(world: World, *, n_trials: int, most_shared: float, most_unshared: float) -> Run:
    """Search with Optuna's TPE as the library sets it up; no architecture is measured twice."""
    rules: dict[str, Recommend] = {"best_seen": best_seen, "choose": Sparsely(chosen)}
    watch = Watch(world, rules, most_shared, most_unshared)
    return _run(watch, None, n_trials)


def best_draw(world: World, *, n_trials: int, most_shared: float, most_unshared: float) -> Run:
    """Search at random; no architecture is measured twice."""
    rules: dict[str, Recommend] = {"best_seen": best_seen, "choose": Sparsely(chosen)}
    watch = Watch(world, rules, most_shared, most_unshared)
    return _run(watch, None, n_trials, is_random=True)


def other_draw(world: World, seed: int, *, most_shared: float) -> float:
    """Return the calls of a random search with a seed of its own until its best is good enough."""
    watch = Watch(world, {"best_seen": best_seen}, most_shared, 0)
    goal = _run(watch, None, MOST_DRAWN, is_random=True, seed=seed).goals.get("best_seen")
    return inf if goal is None or goal.shared is None else goal.shared


def _run(
    watch: Watch,
    sampler: optuna.samplers.BaseSampler | None,
    n_trials: int,
    *,
    is_random: bool = False,
    seed: int | None = None,
) -> Run:
    world = watch.world
    trials = Trials(
        study=make_study([ScoreObjective()], seed=world.seed, sampler=sampler),
        space=world.space,
        ranking=world.ranking,
        canonical=world.canonical,
        seed=world.seed if seed is None else seed,
    )
    waiting = trials.fresh(world.singles, origin="single")
    while waiting or len(trials.records) < n_trials:
        asked = trials.draw if is_random else trials.ask
        if (proposal := waiting.pop(0) if waiting else asked()) is None:
            break
        try:
            record = watch.measure(proposal.architecture, proposal.origin)
        except BudgetReachedError:
            break
        trials.tell(proposal, trials.start(proposal), record, [record.score])
    return Run(len(watch.measured), watch.shared, watch.unshared, watch.goals)

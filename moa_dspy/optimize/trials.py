"""The trials of a search as an Optuna study: proposed, raced on val rows, told and stored.

A race measures an architecture block by block and stops a loser; with several objectives a loser
is worse in all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import dspy
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.metric import Outcome, scores
from moa_dspy.optimize.objectives import (
    DiversityObjective,
    MeasuredArchitecture,
    Objective,
    ScoreObjective,
    WinRateObjective,
)
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.sampler import (
    ARCHITECTURE,
    ROW_SCORES,
    GivenChoices,
    PerformanceDiversitySampler,
)
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.programs import kinds_of_mixtures
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.storage import LiveStorage, SearchStudy
from moa_dspy.optimize.surrogate.acquisition import MOST_DRAWS
from moa_dspy.winrate.tests import Race, look_points

_MOST_REPEATS = 4
"""Known architectures in a row after which a new one is drawn instead of asked for.

An ask takes 10 ms after 100 trials and 40 after 1,000: few, so that a trial takes no longer
to choose than a model takes to answer.
"""
USUAL_TRIALS: Final = 40
USUAL_MIXTURES: Final = 15
"""Mixtures for which there is room by default, as each agent alone is a trial too."""


def usual_trials(space: SearchSpace) -> int:
    """Return the default of ``n_trials``: more for more than 25 agents."""
    # The options check later which kind of object the space is.
    return max(USUAL_TRIALS, len(getattr(space, "agents", ())) + USUAL_MIXTURES)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An architecture to measure next.

    Attributes:
        architecture: In its canonical form, not measured before.
        origin: ``single``, ``baseline``, ``votes``, ``listed``, ``sampler``, ``model``,
            ``random`` or ``prompt``.
        trial: Optuna's; None until it starts, where the sampler was not asked.
        params: Optuna's, where the sampler was not asked; None outside of the space.
    """

    architecture: Architecture
    origin: str
    trial: optuna.Trial | None = None
    params: dict[str, Any] | None = None


@dataclass(slots=True)
class Trials:
    """Proposes architectures, each once, and keeps the record of each in the order of measuring.

    Args:
        study: Made by ``make_study``.
        space: The architectures that may be proposed.
        ranking: Single agents, best first; it repairs layers that are too narrow or wide.
        canonical: Gives an architecture its final form: decider of ties, name of the prompt.
        seed: Seed of the draws that follow when the sampler only repeats itself.
        limits: On the costs of a question: the constraints of every trial.
        records: By architecture.
    """

    study: SearchStudy
    space: SearchSpace
    ranking: Sequence[str]
    canonical: Callable[[Architecture], Architecture]
    seed: int
    limits: Limits = field(default_factory=Limits)
    records: dict[Architecture, TrialRecord] = field(default_factory=dict)
    _rng: random.Random = field(init=False)
    _n_repeats: int = 0
    _n_held: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(f"trials-{self.seed}")

    def fresh(self, architectures: Iterable[Architecture], *, origin: str) -> list[Proposal]:
        """Return the given architectures that are not measured yet, inside the space or not."""
        proposals: dict[Architecture, Proposal] = {}
        for architecture in architectures:
            form = self.canonical(architecture)
            if form not in self.records and form not in proposals:
                proposals[form] = Proposal(form, origin, params=self.space.params(architecture))
        return list(proposals.values())

    def draw(self) -> Proposal | None:
        """Return a random architecture that is not measured yet; None if none is left."""
        for _ in range(MOST_DRAWS):
            drawn = self.canonical(self.space.draw(self._rng))
            if fresh := self.fresh([drawn], origin="random"):
                return fresh[0]
        return None

    def ask(self) -> Proposal | None:
        """Return what the study's sampler proposes, or a draw where it only repeats itself.

        None if all of the space is measured. Trials that a callback enqueued come first.
        """
        if self.space.size is not None and self._n_held >= self.space.size:
            return None
        is_ours = isinstance(self.study.sampler, PerformanceDiversitySampler)
        while self._n_repeats < _MOST_REPEATS:
            is_enqueued = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            trial = self.study.ask()
            architecture = self.canonical(self.space.suggest(trial, self.ranking))
            if architecture not in self.records:
                self._n_repeats = 0
                origin = "listed" if is_enqueued else "model" if is_ours else "sampler"
                return Proposal(architecture, origin, trial)
            # What is known was told already: told again it would weigh more, and slow the next.
            number = self.records[architecture].number
            self.fail(trial, f"{architecture} was measured before, as number {number}.")
            if not is_enqueued:
                # Ours repeats itself only where nothing is left.
                self._n_repeats = _MOST_REPEATS if is_ours else self._n_repeats + 1
        self._n_repeats = 0
        return self.draw()

    def start(self, proposal: Proposal) -> optuna.Trial:
        """Return the running trial of a proposal, which the storage shows as running."""
        trial = proposal.trial or self._with_params(proposal.params)
        trial.set_user_attr(ARCHITECTURE, str(proposal.architecture))
        trial.set_user_attr("origin", proposal.origin)
        _publish(trial)
        return trial

    def _with_params(self, params: Mapping[str, Any] | None) -> optuna.Trial:
        """Return a running trial of these choices; it stands in no queue behind a user's own."""
        # All that a baseline outside of the space shares with others: some samplers learn only
        # from a choice that every trial made.
        choices = GivenChoices(params or kinds_of_mixtures(self.space))
        suggest: Callable[..., Any] = self.space.suggest if params else self.space.suggest_kind
        suggest(choices)
        made = {name: choices.params[name] for name in choices.distributions}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=made,
            distributions=choices.distributions,
            system_attrs={"fixed_params": made},  # as Optuna notes it: samplers leave it alone
        )
        self.study.add_trial(trial)
        added = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))[-1]
        return optuna.Trial(self.study, added._trial_id)

    def report(self, trial: optuna.Trial, n_rows: int, values: Sequence[float]) -> None:
        """Tell Optuna the objective values on the first rows.

        With several objectives Optuna has no intermediate values, and its samplers fail at
        them: they are an attribute of the trial.
        """
        if len(values) == 1:
            trial.report(values[0], step=n_rows)
            return
        reported = trial.user_attrs.get("values_by_rows", {})
        trial.set_user_attr("values_by_rows", {**reported, str(n_rows): list(values)})
        _publish(trial)

    def tell(
        self,
        proposal: Proposal,
        trial: optuna.Trial,
        record: TrialRecord,
        values: Sequence[float],
        *,
        row_scores: Sequence[float] = (),
    ) -> FrozenTrial:
        """Keep the record of a measured proposal and tell the study its objective values.

        A trial that a race stopped is pruned, and its values are those of its last report.
        """
        self.records[proposal.architecture] = record
        self._n_held += self.space.holds(proposal.architecture)
        for name in ("rows", "score", "calls", "usd", "seconds"):
            if (value := getattr(record, name)) is not None:
                trial.set_user_attr(name, value)
        if row_scores:
            trial.set_user_attr(ROW_SCORES, list(row_scores))
        for name in ("calls", "usd", "seconds"):
            if (limit := getattr(self.limits, name)) is not None:
                trial.set_constraint(name, getattr(record, name) - limit)
        if record.is_stopped_early:
            return self.study.tell(trial, state=TrialState.PRUNED)
        return self.study.tell(trial, list(values))

    def fail(self, trial: optuna.Trial, reason: str) -> FrozenTrial:
        """Tell the study that a trial was not measured, and why."""
        trial.set_user_attr("reason", reason)
        return self.study.tell(trial, state=TrialState.FAIL)


def _publish(trial: optuna.Trial) -> None:
    if isinstance(trial.storage, LiveStorage):
        trial.storage.publish(trial.number)


_Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The results of one arm, an architecture in the race, on each row.

    Attributes:
        gains: By name of each objective that is maximised, diversity left out.
        costs: By name of each objective that is minimised.
    """

    gains: Mapping[str, _Vector]
    costs: Mapping[str, _Vector]

    @classmethod
    def of(cls, measured: MeasuredArchitecture, objectives: Sequence[Objective]) -> Standing:
        """Return the values of each objective per row; the score where nothing else is maximised.

        Diversity neither saves an arm nor stops it, as it only guides the search.
        """
        counted = [
            objective for objective in objectives if not isinstance(objective, DiversityObjective)
        ]
        high = [objective for objective in counted if objective.direction == "maximize"] or [
            ScoreObjective()
        ]
        low = [objective for objective in counted if objective.direction == "minimize"]
        return cls(_rows(high, measured), _rows(low, measured))


def is_dominated(arm: Standing, other: Standing, race: Race) -> bool:
    """True if ``other`` is better beyond doubt in every gain, and no worse in any cost.

    Both are compared on the rows of ``arm``, which are the first of those of ``other``. Costs are
    compared as they were measured. An arm that is better, or cheaper, in anything goes on.
    """
    for name, costs in arm.costs.items():
        if other.costs[name][: len(costs)].sum() > costs.sum():
            return False
    return all(
        race.is_lost(gains, other.gains[name][: len(gains)]) for name, gains in arm.gains.items()
    )


def _rows(objectives: Sequence[Objective], measured: MeasuredArchitecture) -> dict[str, _Vector]:
    return {type(o).__name__: np.array(o.rows(measured), np.float64) for o in objectives}


ReportBlock: TypeAlias = Callable[[list[float], list[float]], None]
"""Takes the metric on each of the first rows, and the values of the objectives on them all."""


class TrialJudge:
    """Measures architectures and makes their records; the leader has the best score on all rows.

    Args:
        evaluator: Runs architectures.
        rows: The validation rows, in the order in which they are measured.
        best_single: The agent to which the win rate compares.
        diversity: Measures the texts that a last step reads.
        limits: An architecture beyond them cannot be picked, so it neither leads nor stops another.
        objectives: Objectives of the study, by which arms are stopped; if empty, the score decides.
        n_arms: Most architectures in the race: an arm as good as the others is stopped in at most
            5 % of races.
        is_win_rate: Whether scores are a judge's preferences, and so win rates already.
        unknown_costs: Names the costs of agents that are unknown, as ``Pool.unknown_costs`` does.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        rows: Sequence[dspy.Example],
        *,
        best_single: str,
        diversity: DiversityMetric,
        limits: Limits | None = None,
        objectives: Sequence[Objective] = (),
        n_arms: int = 40,
        is_win_rate: bool = False,
        unknown_costs: Callable[[Iterable[str]], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        self._evaluator, self._rows = evaluator, tuple(rows)
        self._limits = limits or Limits()
        single = Architecture.single(best_single)
        self._reference = None if is_win_rate else scores(evaluator.measure(single, self._rows))
        self._diversity = DiversityObjective(diversity)
        self._objectives, self._unknown_costs = tuple(objectives), unknown_costs
        self._race = Race(n_arms, max(len(look_points(len(self._rows))), 1))
        self._whole: dict[str, Standing] = {}
        self.leader: TrialRecord | None = None

    @property
    def n_rows(self) -> int:
        """Rows on which an architecture is measured at most."""
        return len(self._rows)

    def judge(
        self,
        architecture: Architecture,
        origin: str,
        *,
        number: int,
        report: ReportBlock | None = None,
    ) -> TrialRecord:
        """Measure ``architecture`` until all rows are known or it is beaten beyond doubt.

        It is beaten by any architecture that was measured on all rows, stays within the limits,
        is better beyond doubt on the rows up to now, and costs no more on them in each objective
        that is minimised. Where no cost is minimised this is nearly always the leader.

        Args:
            architecture: To measure.
            origin: Origin of its record.
            number: Number of its record.
            report: Called after each block of rows.
        """
        outcomes: tuple[Outcome, ...] = ()
        for n_rows in self._ends(architecture):
            outcomes = self._evaluator.measure(architecture, self._rows[:n_rows])
            if report is not None:
                report(scores(outcomes), self._values(outcomes))
            if n_rows < len(self._rows) and self._is_lost(outcomes):
                break
        record = self._record(architecture, origin, number, outcomes)
        if not record.is_stopped_early and self._limits.admit(record):
            self._admit(record, outcomes)
        return record

    def announce(self, architectures: Iterable[Architecture], *, is_urgent: bool = True) -> None:
        """Announce the arms to be judged: workers begin with the rows that each needs first."""
        for architecture in architectures:
            first, *_ = self._ends(architecture)
            rows = self._rows[:first]
            self._evaluator.announce([architecture], rows, is_urgent=is_urgent)

    def _values(self, outcomes: Sequence[Outcome]) -> list[float]:
        measured = self._measured(outcomes)
        return [
            self._diversity(measured)
            if isinstance(objective, DiversityObjective)
            else objective(measured)
            for objective in self._objectives
        ]

    def _ends(self, architecture: Architecture) -> list[int]:
        n = len(self._rows)
        if self._evaluator.knows(architecture, self._rows):
            # Stopping would save nothing, and single agents must remain options of the pick.
            return [n]
        return [*look_points(n), n]

    def _is_lost(self, outcomes: Sequence[Outcome]) -> bool:
        if not self._whole:
            return False
        arm = Standing.of(self._measured(outcomes), self._objectives)
        return any(is_dominated(arm, other, self._race) for other in self._whole.values())

    def _admit(self, record: TrialRecord, outcomes: Sequence[Outcome]) -> None:
        standing = Standing.of(self._measured(outcomes), self._objectives)
        self._whole[record.architecture] = standing
        if self.leader is None or record.score > self.leader.score:
            self.leader = record

    def _measured(self, outcomes: Sequence[Outcome]) -> MeasuredArchitecture:
        return MeasuredArchitecture(
            scores=scores(outcomes),
            reference=None if self._reference is None else self._reference[: len(outcomes)],
            layers=[outcome.layer for outcome in outcomes],
            calls=[outcome.calls for outcome in outcomes],
            usd=[outcome.usd for outcome in outcomes],
            seconds=[outcome.seconds for outcome in outcomes],
        )

    def _record(
        self,
        architecture: Architecture,
        origin: str,
        number: int,
        outcomes: Sequence[Outcome],
    ) -> TrialRecord:
        n = len(outcomes)
        measured = self._measured(outcomes)
        unknown = self._unknown_costs(architecture.agents)
        return TrialRecord(
            number=number,
            architecture=str(architecture),
            origin=origin,
            win_rate=WinRateObjective()(measured),
            score=ScoreObjective()(measured),
            diversity=self._diversity(measured),
            calls=sum(measured.calls) / n,
            usd=None if "usd" in unknown else sum(measured.usd) / n,
            seconds=None if "seconds" in unknown else sum(measured.seconds) / n,
            rows=n,
            is_stopped_early=n < len(self._rows),
        )

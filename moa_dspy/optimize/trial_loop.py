"""The loop of a search: it proposes architectures, measures each as a trial, and picks one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Final

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget, Ledger, spending_under
from moa_dspy.errors import BudgetReachedError, UnknownCallError
from moa_dspy.optimize.comparison import Baseline, compared_baselines, measure_random_baseline
from moa_dspy.optimize.conclusion import EvidenceBuilder
from moa_dspy.optimize.early_facts import Cost
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.objectives import names_of, stopping_vote
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.progress import Progress, StageWork
from moa_dspy.optimize.prompts.joint import JointSearch
from moa_dspy.optimize.sampler import PerformanceDiversitySampler
from moa_dspy.optimize.selection import Choice, Evidence, choose
from moa_dspy.optimize.several import best_program, best_single_of
from moa_dspy.optimize.shares import BudgetShares
from moa_dspy.optimize.singles import N_VOTES, SingleAgents
from moa_dspy.optimize.space.programs import (
    ProgramSpace,
    baseline_architectures,
    listed_notes,
    random_draws,
)
from moa_dspy.optimize.space.rules import combine_features
from moa_dspy.optimize.storage import make_study
from moa_dspy.optimize.surrogate.acquisition import Prices
from moa_dspy.optimize.surrogate.gp import Traits
from moa_dspy.optimize.trials import Proposal, TrialJudge, Trials
from moa_dspy.optimize.votes.ballots import StopRule

STOPPED: Final = "A callback called study.stop()."
EXHAUSTED: Final = "The sampler has nothing left to propose."
INTERRUPTED: Final = "It was interrupted."


def _sampler(
    options: SearchOptions, singles: SingleAgents, pair: Callable[[str, str], float]
) -> PerformanceDiversitySampler:
    """Return the sampler that knows the criteria from the single agents.

    Of a program they are learned from the trials: what an agent is worth in each mixture.
    """
    space, traits, forecast = options.space, None, singles.forecast
    if isinstance(space, ProgramSpace):
        forecast = forecast.of_part(len(space.mixtures))
    else:
        traits = Traits(singles.means, pair, space.prompts, combine_features(space))
    return PerformanceDiversitySampler(
        space,
        seed=options.seed,
        traits=traits,
        canonical=singles.canonical,
        price_at=Prices(forecast, names_of(options.objectives), options.seed).at,
    )


@dataclass(slots=True)
class LastBlock:
    """The measurements after the last block of rows of a trial, each block being reported.

    Attributes:
        report: Takes the number of rows and the values of the objectives on them.
        row_scores: The metric, row by row.
        values: Values of the objectives.
    """

    report: Callable[[int, list[float]], None]
    row_scores: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __call__(self, row_scores: list[float], values: list[float]) -> None:
        """Report a block, and keep it in the place of the one before."""
        self.row_scores, self.values = row_scores, values
        self.report(len(row_scores), values)


@dataclass(slots=True)
class TrialLoop:
    """The state of the trials of one search.

    Attributes:
        options: Options of the search; its space knows the ranking of the single agents.
        ledger: What the search spends from.
        progress: Is shown each trial.
        evaluator: Runs architectures.
        singles: The single agents.
        judge: Measures an architecture until it is beaten or all rows are known.
        trials: Optuna's study and the records.
        builder: Turns records into evidence.
        joint: Tunes prompts between trials.
        shares: The part of the budget that the trials may use.
        draws: Architectures of the random baseline, which workers may begin with.
        stopped_by: The budget that ended the trials; None while there is room.
        has_tried_votes: Whether the most promising votes are trials, so that they may be picked.
    """

    options: SearchOptions
    ledger: Ledger
    progress: Progress
    evaluator: Evaluator
    singles: SingleAgents
    judge: TrialJudge
    trials: Trials
    builder: EvidenceBuilder
    joint: JointSearch
    shares: BudgetShares
    draws: Iterator[Architecture]
    stopped_by: str | None = None
    has_tried_votes: bool = False

    @classmethod
    def of(
        cls,
        options: SearchOptions,
        ledger: Ledger,
        progress: Progress,
        evaluator: Evaluator,
        singles: SingleAgents,
        joint: JointSearch,
        judged: Cost | None = None,
        storage: optuna.storages.BaseStorage | None = None,
        *,
        n_test: int,
    ) -> TrialLoop:
        """Return the loop before its first trial; nothing is asked."""
        pair = singles.pair(options.diversity)
        sampler = options.sampler or _sampler(options, singles, pair)
        study = make_study(options.objectives, seed=options.seed, sampler=sampler, storage=storage)
        trials = Trials(
            study=study,
            space=options.space,
            ranking=singles.ranking,
            canonical=singles.canonical,
            seed=options.seed,
            limits=options.limits,
        )
        judge = TrialJudge(
            evaluator,
            singles.rows,
            best_single=singles.ranking[0],
            diversity=options.diversity,
            limits=options.limits,
            objectives=options.objectives,
            n_arms=2 * options.n_trials,  # the random baseline has as many
            is_win_rate=evaluator.judging is not None and evaluator.judging.picks,
            unknown_costs=options.pool.unknown_costs,
        )
        return cls(
            options=options,
            ledger=ledger,
            progress=progress,
            evaluator=evaluator,
            singles=singles,
            judge=judge,
            trials=trials,
            builder=EvidenceBuilder(options, singles, evaluator, trials.records, pair),
            joint=joint,
            shares=BudgetShares(
                ledger.budget,
                singles.outcomes,
                n_test=n_test,
                num_threads=options.num_threads,
                random_share=options.random_share,
                judged=judged,
            ),
            draws=random_draws(options.space, singles.canonical, options.seed),
        )

    @property
    def may_announce(self) -> bool:
        """True if workers may begin with later architectures before earlier ones are measured.

        Under a budget, money is spent in the order of measuring: what it may not reach is
        not begun.
        """
        return self.ledger.budget == Budget()

    def share_with(self, *more: Architecture) -> float:
        """Return the share of the budget that the trials may use if ``more`` are measured too."""
        tried = self.trials.records.values()
        calls = [*(record.calls for record in tried), *(new.calls for new in more)]
        return self.shares.of_search(calls, part=self.joint.part())

    def run(self, *, ends_on_interrupt: bool = False) -> tuple[int, ...]:
        """Measure up to ``n_trials`` architectures, the single agents at least.

        Args:
            ends_on_interrupt: Whether Ctrl-C ends the trials, once the single agents are
                trials of the study; else it is raised.

        Returns:
            Number of measured architectures after each round; prompts are tuned in between.

        Raises:
            KeyboardInterrupt: If it may not end the trials.
        """
        self._measure_singles()
        phases: list[int] = []
        try:
            self._measure_mixtures(phases, limit=self.options.n_trials)
        except KeyboardInterrupt:
            if not ends_on_interrupt:
                raise
            self.stopped_by = INTERRUPTED
            phases.append(len(self.trials.records))
        self.joint.n_tried = sum(record.prompt is not None for record in self.trials.records)
        return tuple(phases)

    def _measure_singles(self) -> None:
        """Make each single agent a trial; its answers are known, so no call is made."""
        singles = [Architecture.single(name) for name in self.singles.ranking]
        self._measure_given(singles, "single", limit=len(singles))

    def best_single(self) -> Architecture:
        """Return the best single agent within the limits; without any, the best of all."""
        return best_single_of(self.singles.ranking, self.trials.records, self.options.limits)

    def baselines(
        self, picked: Architecture, best_single: Architecture, random: Baseline
    ) -> list[Baseline]:
        """Return everything that is compared on test, what the verdict needs first."""
        return compared_baselines(self.options, self.singles.ranking, picked, best_single, random)

    def _measure_mixtures(self, phases: list[int], *, limit: int) -> None:
        """Measure baselines, votes and listed mixtures, then what is proposed, round by round."""
        options, ranking = self.options, self.singles.ranking
        baselines = baseline_architectures(ranking, options.pool, options.space)
        self._measure_given(baselines, "baseline", limit=limit)
        # Votes are free and come first, but leave room for what the user listed.
        room = limit - len(self.trials.fresh(options.space.listed, origin="listed"))
        self.has_tried_votes = self._measure_given(self._promising_votes(), "votes", limit=room)
        self._measure_given(options.space.listed, "listed", limit=limit)
        for number in range(self.joint.n_rounds + 1):
            if number and not self.is_ended_by_user:
                self._measure_given(self._tuned(number), "prompt", limit=limit)
            self._measure_proposed(min(limit, round(limit * self.joint.part())))
            phases.append(len(self.trials.records))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the report: on options, on listed architectures, on tuned prompts."""
        space, n_trials = self.options.space, self.options.n_trials
        n_untried = 0 if self.stopped_by else len(self.trials.fresh(space.listed, origin="listed"))
        return (*self.options.notes, *listed_notes(space, n_untried, n_trials), *self.joint.notes)

    @property
    def is_ended_by_user(self) -> bool:
        """True if a callback or Ctrl-C ended the trials: then nothing more is tried."""
        return self.stopped_by in (STOPPED, INTERRUPTED)

    def choose(self) -> Choice:
        """Pick; a prompt that is not proven better than the aggregator's own is not picked."""
        choice = choose(self.builder.evidence())
        with spending_under(self.ledger, share=self.share_with()):
            own = self.joint.refused(
                choice.picked, self.singles.rows, min_gain=self.options.min_gain
            )
        if own is None:
            return choice
        if own not in self.trials.records and self.evaluator.knows(own, self.singles.rows):
            number = len(self.trials.records)
            self.trials.records[own] = self.judge.judge(own, "own_prompt", number=number)
        self.builder.may_prompt = False
        return choose(self.builder.evidence())

    def measure_random_baseline(self, n: int) -> Baseline:
        """Return the best on val of ``n`` random architectures, or of those that were measured."""
        if self.is_ended_by_user:
            return Baseline("random", None, "not measured, because the search ended early")
        draws = random_draws(self.options.space, self.singles.canonical, self.options.seed)
        with spending_under(self.ledger, share=self.share_with() + self.options.random_share):
            return measure_random_baseline(
                self.options, self.judge, self.progress, draws, n=n, may_announce=self.may_announce
            )

    def _measure_given(
        self, architectures: Iterable[Architecture], origin: str, *, limit: int
    ) -> bool:
        """Measure what is new, inside the space or not, in order; return if all are trials now."""
        fresh = self.trials.fresh(architectures, origin=origin)
        if self.may_announce and len(fresh) > 1 and self.stopped_by is None:
            n_left = max(0, limit - len(self.trials.records))
            self.judge.announce([proposal.architecture for proposal in fresh[:n_left]])
        for proposal in fresh:
            if self.stopped_by is not None or len(self.trials.records) >= limit:
                break
            self._measure(proposal)
        return all(proposal.architecture in self.trials.records for proposal in fresh)

    def _measure_proposed(self, n_trials: int) -> None:
        """Measure proposals up to ``n_trials``, while any is left and the budget lasts."""
        while len(self.trials.records) < n_trials and self.stopped_by is None:
            if (proposal := self.trials.ask()) is None:
                return
            self._measure(proposal)

    def _measure(self, proposal: Proposal) -> None:
        """Measure one architecture and tell the study; note what ends the search."""
        architecture, number = proposal.architecture, len(self.trials.records)
        self._show(architecture)
        if self.may_announce:
            # The baseline has as many trials as the search: one more now is one more then.
            self.judge.announce(islice(self.draws, 1), is_urgent=False)
        trial = self.trials.start(proposal)
        last = LastBlock(partial(self.trials.report, trial))
        try:
            with spending_under(self.ledger, share=self.share_with(architecture)):
                record = self.judge.judge(architecture, proposal.origin, number=number, report=last)
        except BudgetReachedError as error:
            self.stopped_by = str(error)
            finished = self.trials.fail(trial, str(error))
        except BaseException as error:
            self.trials.fail(trial, str(error) or type(error).__name__)
            # A baseline that was not recorded is left out; a hole in the user's space is an error.
            is_outside = not self.options.space.holds(architecture)
            if isinstance(error, UnknownCallError) and proposal.origin == "baseline" and is_outside:
                return
            raise
        else:
            finished = self.trials.tell(
                proposal, trial, record, last.values, row_scores=last.row_scores
            )
        self._call_back(finished)

    def _show(self, architecture: Architecture) -> None:
        records, n_rows = self.trials.records, len(self.singles.rows)
        self.progress.show(
            "search",
            current=str(architecture),
            trial=len(records),
            best=self.judge.leader,
            last=next(reversed(records.values()), None),
            work=StageWork(self.options.n_trials, "trials", n_rows, architecture.calls),
        )

    def _call_back(self, finished: optuna.trial.FrozenTrial) -> None:
        study = self.trials.study
        if study.is_stopped and self.stopped_by is None:
            self.stopped_by = EXHAUSTED  # such as of BruteForceSampler, when it is told
        for callback in self.options.callbacks:
            callback(study, finished)
        if study.is_stopped and self.stopped_by is None:
            self.stopped_by = STOPPED

    def _promising_votes(self) -> list[Architecture]:
        """Return the votes that redrawn answers put first, then stopping ones if calls count.

        Empty on free text, where a vote returns the answer of its tie-breaker.
        """
        if self.singles.ballots is None or self.singles.facts.is_vote_idle:
            return []
        evidence = self.builder.evidence()
        options = choose(evidence, may_be_unmeasured=True).options
        votes = [option.architecture for option in options if option.architecture.layers]
        return [*votes[:N_VOTES], *self._stopping(votes, evidence)]

    def _stopping(
        self, votes: Iterable[Architecture], evidence: Evidence
    ) -> Iterator[Architecture]:
        """Yield the best votes again, each stopping by the rule by which it asks fewest.

        Only where a cost of a question is an objective or has a limit, and by a rule that loses
        next to nothing on redrawn answers; see ``stopping_vote``.
        """
        options, space, asks_all = self.options, self.options.space, not self.singles.stops_early
        if not options.compared_costs:
            return
        # Of rules that ask as few, the most cautious.
        stops: list[StopRule] = [("lead", share) for share in sorted(space.lead, reverse=True)]
        stops.extend(("agree", n) for n in sorted(space.agree, reverse=True))
        whole = (arch for arch in votes if arch.combine == "vote" and arch.chooses_among_singles)
        gain = options.min_gain
        for vote in islice(whole, N_VOTES):
            if found := stopping_vote(evidence, vote, stops, min_gain=gain, asks_all=asks_all):
                yield found

    def _tuned(self, number: int) -> list[Architecture]:
        """Tune the prompts of the best mixtures; return the mixtures with them."""
        records = self.trials.records
        log = self.progress.log
        where = "" if log is None else f", what the optimizer prints goes to {log}"
        self.progress.show("prompts", current=f"round {number}{where}", trial=len(records))
        part = self.joint.part(0.5)
        share = self.shares.of_search([record.calls for record in records.values()], part=part)
        with spending_under(self.ledger, share=share), self.progress.optimizer_output():
            tuned = self.joint.tune(records, number)
        # What stopped was the part of the budget of this round, not all of it.
        self.stopped_by = None
        return tuned


class ProgramLoop(TrialLoop):
    """The trials of a search in a program with several mixtures.

    The single agents come first, each in all mixtures. Then, one mixture after the other, each
    agent takes the place of the one in the best program up to now: see ``best_program``.
    """

    def share_with(self, *more: Architecture) -> float:
        """Return the share of the budget that the trials may use if ``more`` are measured too."""
        tried = self.trials.records.values()
        calls = [*(record.calls for record in tried), *(new.calls for new in more)]
        # A single agent is asked once per mixture, where the shares count one call.
        alone = [fmean(o.calls for o in outcomes) for outcomes in self.singles.outcomes.values()]
        needed = [1.5 * sum(alone) - 1, max(alone) - 1 + max(calls, default=0.0)]
        return self.shares.of_search(needed, part=self.joint.part())

    def best_single(self) -> Architecture:
        """Return the best program of single agents."""
        return best_program(self.trials.records, self.options.limits)

    def baselines(
        self, picked: Architecture, best_single: Architecture, random: Baseline
    ) -> list[Baseline]:
        """Return everything that is compared on test; Self-MoA and top-k are in every mixture."""
        baselines = super().baselines(picked, best_single, random)
        lifted = self.evaluator.student.lifted
        return [
            baseline
            if baseline.architecture is None
            else replace(baseline, architecture=lifted(baseline.architecture))
            for baseline in baselines
            if baseline.name != "best_without_limits"
        ]

    def _measure_given(
        self, architectures: Iterable[Architecture], origin: str, *, limit: int
    ) -> bool:
        lifted = map(self.evaluator.student.lifted, architectures)
        return super()._measure_given(lifted, origin, limit=limit)

    def _measure_singles(self) -> None:
        super()._measure_singles()
        for path in self.evaluator.student.paths:
            best = best_program(self.trials.records, self.options.limits)
            agents = map(Architecture.single, self.singles.ranking)
            varied = [best.with_part(path, agent) for agent in agents]
            self._measure_given(varied, "single", limit=self.options.n_trials)

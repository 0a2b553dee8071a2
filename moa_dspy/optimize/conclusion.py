"""The trials of a search as evidence, the expected score of the pick, and the final result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Spending
from moa_dspy.diversity import (
    AggregatorRecord,
    EmbeddingDistance,
    TfidfDistance,
    collaboration_report,
    proposal_similarity,
)
from moa_dspy.judges.base import texts_of
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.judge_facts import JudgeFacts
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import scores
from moa_dspy.optimize.objectives import front, knee, names_of
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.result import ComparedSystems, StudyResult, TrialRecord, versions
from moa_dspy.optimize.sampler import program_kernels
from moa_dspy.optimize.selection import (
    CandidateScores,
    Choice,
    Evidence,
    ScoreMatrix,
    choose,
)
from moa_dspy.optimize.several import program_evidence
from moa_dspy.optimize.singles import SingleAgents
from moa_dspy.optimize.space.programs import ProgramSpace
from moa_dspy.optimize.surrogate.gp import Kernels, SurrogateModel, Traits
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS
from moa_dspy.optimize.votes.weights import N_FOLDS, N_PARTITIONS, CrossFittedVotes
from moa_dspy.winrate import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class SurrogateShrinkage:
    """Shrinks scores by a Gaussian process over architectures; a ``Shrink`` of a selection.

    Attributes:
        pair: Diversity of the answers of two agents.
        prompts: Names of the prompts that were tried.
        program: The space of a program with several mixtures; None for one mixture.
    """

    pair: Callable[[str, str], float]
    prompts: tuple[str, ...] = ()
    program: ProgramSpace | None = None

    def __call__(
        self, evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return gains over the incumbent and their errors, as ``Shrink`` says."""
        gains, errors = self.model(evidence, measured).gains(incumbent.architecture)
        return gains[: len(measured)].tolist(), errors[: len(measured)].tolist()

    def model(self, evidence: Evidence, measured: Sequence[CandidateScores]) -> SurrogateModel:
        """Return the model of ``measured`` and of all architectures that were stopped early."""
        stopped = [entry for entry in evidence.measured if not entry.is_whole]
        entries = [*measured, *stopped]
        return SurrogateModel(
            self.kernels(evidence),
            [entry.architecture for entry in entries],
            np.array([entry.scores for entry in entries]),
        )

    def kernels(self, evidence: Evidence) -> Kernels:
        """Return the kernels, which say how similar two architectures are."""
        if self.program is not None:
            return program_kernels(
                self.program, {entry.architecture: entry.scores for entry in evidence.measured}
            )
        means = {name: float(scores.mean()) for name, scores in evidence.singles.items()}
        return Kernels.of(Traits(means, self.pair, self.prompts))


@dataclass
class EvidenceBuilder:
    """Turns records into evidence; each is turned once, as a record never changes.

    Args:
        options: Say which architectures may be picked.
        singles: The single agents, with the rows in the order of measuring.
        evaluator: Knows every score.
        records: Records of the search, which adds to them while it runs.
        pair: Diversity of the answers of two agents.
        may_prompt: Whether a mixture may be picked with a prompt of the search.
    """

    options: SearchOptions
    singles: SingleAgents
    evaluator: Evaluator
    records: Mapping[Architecture, TrialRecord]
    pair: Callable[[str, str], float]
    may_prompt: bool = True
    _measured: dict[Architecture, CandidateScores] = field(default_factory=dict)
    _ways: CrossFittedVotes | None = None

    def measured(self) -> list[CandidateScores]:
        """Return every architecture with its scores, in the order of measuring."""
        return [self._candidate(*item) for item in self.records.items()]

    def evidence(self) -> Evidence:
        """Return all that was measured on val."""
        singles, space = self.singles, self.options.space
        # Where no vote can win, those that were measured count as measured, and no others.
        is_idle = singles.facts.is_vote_idle
        evidence = Evidence(
            singles=singles.scores,
            measured=tuple(self.measured()),
            ballots=None if is_idle else singles.ballots,
            widths=(space.min_width, space.max_width),
            admits=singles.admits,
            admits_weighted=self._wide.admits,
            shrink=self.shrink,
            seed=self.options.seed,
            smoothed=None if is_idle else singles.smoothed,
            ways=self._ways,
        )
        if self._ways is None and evidence.ballots is not None:
            evidence = evidence.counted(PSEUDO_ROWS)
            self._ways = evidence.ways
        if isinstance(space, ProgramSpace):
            return program_evidence(evidence)
        return evidence if self.may_prompt else _without_prompts(evidence)

    @cached_property
    def _wide(self) -> SingleAgents:
        """The single agents in a space whose votes may be as wide as the pool."""
        space = self.options.space
        wide = replace(space, max_width=max(space.max_width, len(space.agents)))
        return replace(self.singles, space=wide, _admitted={})

    @property
    def shrink(self) -> SurrogateShrinkage:
        """The estimator of gains of architectures that are not plain votes."""
        prompts = {record.prompt for record in self.records if record.prompt is not None}
        space = self.options.space
        program = space if isinstance(space, ProgramSpace) else None
        return SurrogateShrinkage(self.pair, tuple(sorted(prompts)), program)

    def _candidate(self, architecture: Architecture, record: TrialRecord) -> CandidateScores:
        options, all_rows = self.options, self.singles.rows
        if architecture not in self._measured:
            padded = np.full(len(all_rows), np.nan)
            outcomes = self.evaluator.measure(architecture, all_rows[: record.rows])
            padded[: record.rows] = scores(outcomes)
            self._measured[architecture] = CandidateScores(
                architecture,
                padded,
                calls=record.calls,
                usd=record.usd or 0.0,  # an unknown price breaks no tie
                bonus=options.diversity_weight * record.diversity,
                # Baselines are measured in any case, but picked only if the user's limits allow it.
                is_admitted=options.limits.admit(record)
                and options.space.keeps_constraints(architecture),
            )
        return self._measured[architecture]


def _without_prompts(evidence: Evidence) -> Evidence:
    """Return the evidence with no architecture admitted that has a prompt of the search."""
    measured = tuple(
        replace(entry, is_admitted=entry.is_admitted and entry.architecture.prompt is None)
        for entry in evidence.measured
    )
    return replace(evidence, measured=measured)


PSEUDO: Final = 30_000
"""Redrawn questions of a fold; fewer than for the pick, as noise averages out over 30 folds."""
CORRELATED: Final = 0.9
"""Weight of a cross-fitted score, relative to a new row's, in the interval of the expected score:
so it covers in about 95 % of splits instead of 92. ``winrate.verdict`` has that of a difference
of two choices, which is smaller."""


@dataclass(frozen=True, slots=True)
class CrossFittedPick:
    """The scores of picks on rows that did not take part in choosing them.

    Attributes:
        expected: The expected score of a pick on new rows, with a 95 % interval.
        pick: Score on each row of val of the architecture that was picked without its fold.
        single: The same for the best single agent that may be picked.
    """

    expected: Interval
    pick: ScoreMatrix
    single: ScoreMatrix


def cross_fitted(
    evidence: Evidence,
    *,
    seed: int,
    pseudo: int = PSEUDO,
    repeats: int = N_PARTITIONS,
    is_free: bool = True,
) -> CrossFittedPick | None:
    """Score the procedure of choosing on rows that it did not use; makes no call.

    The choice is made again, from the start, on nine tenths of the rows and scored on the rest,
    ten times in each of three partitions (cross-fitting). The mean is that of the procedure,
    which sometimes picks another architecture. None with fewer than 10 rows. A search that ended
    before its best votes were trials could not pick them: ``is_free`` is then False.
    """
    n = evidence.n_rows
    if n < N_FOLDS:
        return None
    rng = np.random.default_rng([seed, n])
    # Weights that were learned on all rows would know the rows that are left out.
    fair = tuple(entry for entry in evidence.measured if not entry.architecture.weights)
    evidence = replace(evidence, measured=fair)
    folds = [rng.permutation(np.arange(n) % N_FOLDS) for _ in range(repeats)]
    # A bonus is known of measured architectures only.
    is_free = is_free and not any(entry.bonus for entry in fair)
    held = [_held_out(evidence, fold, pseudo, is_free=is_free) for fold in folds]
    expected = _wider(mean_interval(np.mean([pick for pick, _ in held], axis=0).clip(0, 1)))
    # One partition keeps scores of 0 or 1, which a mean of the partitions would not.
    return CrossFittedPick(expected, *held[0])


def _held_out(
    evidence: Evidence, fold: NDArray[np.intp], pseudo: int, *, is_free: bool
) -> tuple[ScoreMatrix, ScoreMatrix]:
    """Return the scores of pick and best single agent on each row, chosen without its fold."""
    held, alone = np.zeros(evidence.n_rows), np.zeros(evidence.n_rows)
    singles = {str(m.architecture) for m in evidence.measured if m.is_admitted}
    for k in range(N_FOLDS):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        training = evidence.take(inside)
        choice = choose(training, pseudo=pseudo, may_be_unmeasured=is_free)
        held[outside] = choice.scores(evidence.take(outside))
        fair = (name for name in training.ranking if name in singles)
        alone[outside] = evidence.singles[next(fair, training.ranking[0])][outside]
    return held, alone


def _wider(interval: Interval) -> Interval:
    low, high = (
        interval.estimate + (end - interval.estimate) / sqrt(CORRELATED)
        for end in (interval.low, interval.high)
    )
    return replace(interval, low=max(low, 0.0), high=min(high, 1.0))


N_CANDIDATES: Final = 10
"""Most programs in ``candidate_programs``, beside that of the pick."""


def recommended_of(
    choice: Choice, compared: ComparedSystems, best_single: Architecture
) -> Architecture:
    """Return the pick if it is proven or a single agent, else the best single agent."""
    is_taken = compared.verdict.kind == "mixture" or not choice.picked.layers
    return choice.picked if is_taken else best_single


Fronts: TypeAlias = tuple[Sequence[TrialRecord], TrialRecord | None]
"""The Pareto front, and its cheapest member that is as good on val (``cheapest_as_good``)."""


def front_of(builder: EvidenceBuilder, choice: Choice) -> tuple[TrialRecord, ...]:
    """Return the Pareto front by shrunk scores, so that chance on val adds no member."""
    options, shrunk = builder.options, _shrunk(builder, choice)
    names, records = names_of(options.objectives), list(builder.records.values())
    return front(records, names, limits=options.limits, shrunk=shrunk)


def _knee(builder: EvidenceBuilder, choice: Choice, records: Sequence[TrialRecord]) -> str | None:
    names = names_of(builder.options.objectives)
    best = knee(records, names, shrunk=_shrunk(builder, choice))
    return None if best is None else best.architecture


def _shrunk(builder: EvidenceBuilder, choice: Choice) -> dict[str, float]:
    level = builder.records[choice.incumbent].score
    # The gains include the user's weight on diversity.
    return {str(option.architecture): level + option.gain for option in choice.options}


def make_result(
    builder: EvidenceBuilder,
    choice: Choice,
    compared: ComparedSystems,
    recommended: Architecture,
    *,
    held: CrossFittedPick | None,
    fronts: Fronts,
    early: EarlyFacts,
    spent: Spending,
    stopped_by: str | None,
    notes: tuple[str, ...],
    prompts: tuple[dict[str, Any], ...],
    judge: JudgeFacts | None = None,
) -> StudyResult:
    """Return the result of the search as plain data.

    Args:
        builder: Has the trials and the single agents.
        choice: The pick.
        compared: The pick on val and test beside the baselines.
        recommended: The architecture of the program that is handed back.
        held: Made by ``cross_fitted``.
        fronts: The Pareto front and its cheapest member that is as good.
        early: Facts from the single agents.
        spent: What this search spent.
        stopped_by: The budget that ended the trials, or None.
        notes: On the tuning of prompts.
        prompts: Every prompt that was tried.
        judge: Facts on the judge, where there is one.
    """
    options, records, (front, for_less) = builder.options, builder.records, fronts
    expected = held.expected if held else None
    return StudyResult(
        pick=choice.picked,
        recommended=recommended,
        verdict=compared.verdict,
        cost_verdict=compared.cost_verdict,
        front_verdicts=compared.front_verdicts,
        savings=compared.savings,
        for_less=None if for_less is None else for_less.architecture,
        val=compared.val,
        test=compared.test,
        differences=compared.differences,
        expected=expected,
        optimism=0.0 if expected is None else records[choice.picked].score - expected.estimate,
        early=early,
        explained=_explained(builder),
        front=tuple(record.architecture for record in front),
        knee=_knee(builder, choice, front),
        trials=tuple(records.values()),
        space_size=options.space.size,
        **_spent(spent, options, builder.evaluator),
        seed=options.seed,
        stopped_by=stopped_by,
        versions=versions(),
        notes=notes,
        prompts=prompts,
        judge=judge,
    )


def _explained(builder: EvidenceBuilder) -> dict[str, float]:
    evidence = builder.evidence()
    whole = [entry for entry in evidence.measured if entry.is_whole]
    if not any(entry.architecture.layers for entry in whole):
        return {}  # the score of a single agent is explained by nothing but itself
    return builder.shrink.model(evidence, whole).explained()


def _spent(spent: Spending, options: SearchOptions, evaluator: Evaluator) -> dict[str, Any]:
    unpriced = options.pool.unpriced or (options.judge is not None and options.judge.unpriced)
    return {
        "calls_made": spent.made,
        "calls_reused": spent.reused,
        "usd": None if unpriced else spent.usd,
        "seconds": spent.seconds,
        **evaluator.failed(),
    }


MOST_FOLLOWED: Final = 5
"""Most mixtures whose aggregators are checked for following the better proposals."""


def final_facts(
    judging: Judging, evaluator: Evaluator, compared: ComparedSystems, builder: EvidenceBuilder
) -> JudgeFacts:
    """Return the facts on the judge at the end of a search."""
    return judging.facts(
        systems=compared.judged, direct=compared.direct, follows=_follows(evaluator, builder)
    )


def _follows(evaluator: Evaluator, builder: EvidenceBuilder) -> dict[str, dict[str, float]]:
    """Return how far the best synthesizing mixtures follow the better of their proposals."""
    whole = [pair for pair in builder.records.items() if not pair[1].is_stopped_early]
    best = sorted(whole, key=lambda item: (-item[1].score, item[1].calls))
    shown = [arch for arch, _ in best if arch.combine == "synthesize" and len(arch.layers) == 1]
    records = {str(arch): _record(arch, evaluator, builder) for arch in shown[:MOST_FOLLOWED]}
    correlations = collaboration_report(records).correlations
    return {
        name: {"mean": sample.mean, "standard_error": sample.standard_error, "n": float(sample.n)}
        for name, sample in correlations.items()
        if sample.n > 1
    }


def _record(arch: Architecture, evaluator: Evaluator, builder: EvidenceBuilder) -> AggregatorRecord:
    """Return the aggregator's answers beside its proposals, each with the judge's preference."""
    rows, layer = builder.singles.rows, arch.layers[0]
    outcomes = evaluator.measure(arch, rows)
    singles = {name: evaluator.measure(Architecture.single(name), rows) for name in layer}
    preferences = np.full((len(rows), len(layer)), np.nan)
    for row in range(len(rows)):
        # The judge compared the first sample of an agent only, when the agent answered alone.
        for seat, name in enumerate(layer):
            judged = singles[name][row].judged
            if judged is not None and judged.preference is not None and name not in layer[:seat]:
                preferences[row, seat] = judged.preference
        if len(outcomes[row].layer) != len(layer):
            preferences[row] = np.nan
    texts = ["".join(texts_of(evaluator.ask(arch, row)) or ()) for row in rows]
    proposals = [
        outcome.layer if len(outcome.layer) == len(layer) else ("",) * len(layer)
        for outcome in outcomes
    ]
    metric = builder.options.diversity
    used = metric if isinstance(metric, EmbeddingDistance) else TfidfDistance()
    return AggregatorRecord(proposal_similarity(used, texts, proposals), preferences)


def make_program(
    evaluator: Evaluator,
    recommended: Architecture,
    picked: Architecture,
    records: Mapping[Architecture, TrialRecord],
) -> Any:
    """Return the recommended program with the attributes that DSPy's optimizers set.

    It is not marked as compiled, which would freeze its prompts for later optimizers.
    """
    student = Student.of(evaluator.student, evaluator.registry)
    program: Any = student.with_architecture(recommended)
    program.score = records[recommended].score
    program.trial_logs = list(records.values())
    whole = [record for record in records.items() if not record[1].is_stopped_early]
    best = dict(sorted(whole, key=lambda one: (-one[1].score, one[1].calls))[:N_CANDIDATES])
    best.setdefault(picked, records[picked])
    program.candidate_programs = [
        {"score": record.score, "program": student.with_architecture(arch), "architecture": arch}
        for arch, record in best.items()
    ]
    return program

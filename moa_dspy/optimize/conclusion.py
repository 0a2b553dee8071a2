"""The conclusion of a search: its result as plain data, and the recommended program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

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
from moa_dspy.optimize.comparison import ComparedSystems
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.evidence import EvidenceBuilder
from moa_dspy.optimize.judge_facts import JudgeFacts
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.objectives import front, knee, names_of
from moa_dspy.optimize.result import StudyResult, TrialRecord, versions
from moa_dspy.optimize.selection import Choice, expected_score

N_CANDIDATES: Final = 10
"""Programs in ``candidate_programs``."""


def recommended_of(
    choice: Choice, compared: ComparedSystems, best_single: Architecture
) -> Architecture:
    """Return the pick if it is proven or a single agent, else the baseline of the verdict."""
    is_taken = compared.verdict.kind == "mixture" or not choice.picked.layers
    return choice.picked if is_taken else best_single


def front_of(builder: EvidenceBuilder, choice: Choice) -> tuple[TrialRecord, ...]:
    """Return the Pareto front on shrunk scores, so that luck on val puts nothing there."""
    options, shrunk = builder.options, _shrunk(builder, choice)
    names, records = names_of(options.objectives), list(builder.records.values())
    return front(records, names, limits=options.limits, shrunk=shrunk)


def _knee(builder: EvidenceBuilder, choice: Choice, found: Sequence[TrialRecord]) -> str | None:
    names = names_of(builder.options.objectives)
    best = knee(found, names, shrunk=_shrunk(builder, choice))
    return None if best is None else best.architecture


def _shrunk(builder: EvidenceBuilder, choice: Choice) -> dict[str, float]:
    level = builder.records[choice.incumbent].score
    # What the user's weight makes of diversity is in the gains already.
    return {str(one.architecture): level + one.gain for one in choice.options}


def make_result(
    builder: EvidenceBuilder,
    choice: Choice,
    compared: ComparedSystems,
    recommended: Architecture,
    *,
    front: Sequence[TrialRecord],
    early: EarlyFacts,
    spent: Spending,
    stopped_by: str | None,
    notes: tuple[str, ...],
    prompts: tuple[dict[str, Any], ...],
    judge: JudgeFacts | None = None,
) -> StudyResult:
    """Return all that was found, as plain data.

    Args:
        builder: Has the trials and the single agents.
        choice: The pick.
        compared: The pick on val and test beside the baselines.
        recommended: The architecture of the program that is handed back.
        front: See ``front_of``.
        early: What the single agents told.
        spent: By this search.
        stopped_by: The budget that ended the trials, or None.
        notes: On the tuning of prompts.
        prompts: Every prompt that was tried.
        judge: On the judge, where there is one.
    """
    options, records, evidence = builder.options, builder.records, builder.evidence()
    expected = expected_score(evidence, seed=options.seed)
    whole = [one for one in evidence.measured if one.is_whole]
    return StudyResult(
        pick=choice.picked,
        recommended=recommended,
        verdict=compared.verdict,
        cost_verdict=compared.cost_verdict,
        front_verdicts=compared.front_verdicts,
        val=compared.val,
        test=compared.test,
        differences=compared.differences,
        expected=expected,
        optimism=0.0 if expected is None else records[choice.picked].score - expected.estimate,
        early=early,
        explained=builder.shrink.model(evidence, whole).explained(),
        front=tuple(record.architecture for record in front),
        knee=_knee(builder, choice, front),
        trials=tuple(records.values()),
        space_size=options.space.size,
        **_paid(spent),
        seed=options.seed,
        stopped_by=stopped_by,
        failures=dict(builder.evaluator.failures),
        cut=builder.evaluator.cut,
        versions=versions(),
        notes=notes,
        prompts=prompts,
        judge=judge,
    )


def _paid(spent: Spending) -> dict[str, Any]:
    made, reused = spent.made, spent.reused
    return {"calls_made": made, "calls_reused": reused, "usd": spent.usd, "seconds": spent.seconds}


MOST_FOLLOWED: Final = 5
"""Mixtures of which it is told whether the aggregator follows the better proposals."""


def final_facts(
    judging: Judging, evaluator: Evaluator, compared: ComparedSystems, builder: EvidenceBuilder
) -> JudgeFacts:
    """Return all that is known of the judge when the search has ended."""
    return judging.facts(
        systems=compared.judged, direct=compared.direct, follows=_follows(evaluator, builder)
    )


def _follows(evaluator: Evaluator, builder: EvidenceBuilder) -> dict[str, dict[str, float]]:
    """Return how far the best synthesizing mixtures follow the better of their proposals."""
    whole = [one for one in builder.records.items() if not one[1].is_stopped_early]
    best = sorted(whole, key=lambda item: (-item[1].score, item[1].calls))
    shown = [one for one, _ in best if one.combine == "synthesize" and len(one.layers) == 1]
    records = {str(one): _record(one, evaluator, builder) for one in shown[:MOST_FOLLOWED]}
    found = collaboration_report(records).correlations
    return {
        name: {"mean": one.mean, "standard_error": one.standard_error, "n": float(one.n)}
        for name, one in found.items()
        if one.n > 1
    }


def _record(one: Architecture, evaluator: Evaluator, builder: EvidenceBuilder) -> AggregatorRecord:
    """Return the aggregator's answers beside its proposals, each with the judge's preference."""
    rows, layer = builder.singles.rows, one.layers[0]
    outcomes = evaluator.measure(one, rows)
    singles = {name: evaluator.measure(Architecture.single(name), rows) for name in layer}
    preferences = np.full((len(rows), len(layer)), np.nan)
    for row in range(len(rows)):
        # Only the first sample of an agent is what was judged when it was alone.
        for seat, name in enumerate(layer):
            judged = singles[name][row].judged
            if judged is not None and judged.preference is not None and name not in layer[:seat]:
                preferences[row, seat] = judged.preference
        if len(outcomes[row].layer) != len(layer):
            preferences[row] = np.nan
    texts = ["".join(texts_of(evaluator.ask(one, row)) or ()) for row in rows]
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
    records: Mapping[Architecture, TrialRecord],
) -> Any:
    """Return the recommended program with what DSPy's optimizers leave on theirs.

    It does not count as compiled, which would freeze it: its prompts are still open.
    """
    student = Student.of(evaluator.student, evaluator.registry)
    program: Any = student.with_architecture(recommended)
    program.score = records[recommended].score
    program.trial_logs = list(records.values())
    program.candidate_programs = _candidates(student, program.trial_logs)
    return program


def _candidates(student: Student, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    whole = [record for record in records if not record.is_stopped_early]
    ordered = sorted(whole, key=lambda record: (-record.score, record.calls))
    return [
        {
            "score": record.score,
            "program": student.with_architecture(Architecture.parse(record.architecture)),
        }
        for record in ordered[:N_CANDIDATES]
    ]

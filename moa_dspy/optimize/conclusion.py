"""The end of a search: what was picked, what it is worth, and the program that comes of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Spending
from moa_dspy.optimize.comparison import ComparedSystems
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.evidence import EvidenceBuilder
from moa_dspy.optimize.pareto import front, knee, names_of
from moa_dspy.optimize.prompts.joint import JointSearch
from moa_dspy.optimize.result import StudyResult, TrialRecord, versions
from moa_dspy.optimize.selection import Choice, expected_score

N_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Everything is measured; this says what follows.

    Attributes:
        context: The options of the search.
        gathering: Its trials and the single agents.
        started: When it began, on the monotonic clock.
        before: What had been spent when it began.
        joint: Says what became of the prompts.
    """

    context: SearchContext
    gathering: EvidenceBuilder
    started: float
    before: Spending
    joint: JointSearch

    def result(
        self, choice: Choice, outcome: ComparedSystems, *, stopped_by: str | None
    ) -> StudyResult:
        """Return what was found, as plain data."""
        evidence, records = self.gathering.evidence(), self.gathering.records
        expected = expected_score(evidence, seed=self.context.seed)
        spending = self.context.pool.calls.ledger.spending
        whole = [one for one in evidence.measured if one.is_whole]
        return StudyResult(
            pick=choice.picked,
            recommended=self._recommended(choice, outcome),
            verdict=outcome.verdict,
            val=outcome.val,
            test=outcome.test,
            differences=outcome.differences,
            expected=expected,
            optimism=0.0 if expected is None else records[choice.picked].score - expected.estimate,
            early=self.gathering.known.early,
            explained=self.gathering.shrink.model(evidence, whole).explained(),
            **self._front(choice),
            trials=tuple(records.values()),
            space_size=self.context.space.size,
            calls_made=spending.made - self.before.made,
            calls_reused=spending.reused - self.before.reused,
            usd=spending.usd - self.before.usd,
            seconds=time.monotonic() - self.started,
            seed=self.context.seed,
            stopped_by=stopped_by,
            failures=dict(self.gathering.evaluator.failures),
            versions=versions(),
            notes=self.joint.notes,
            prompts=self.joint.to_json(records),
        )

    def program(self, result: StudyResult) -> Any:
        """Return the recommended program with what DSPy's optimizers leave on theirs.

        It does not count as compiled, which would freeze it: its prompts are still open.
        """
        evaluator = self.gathering.evaluator
        student = Student.of(evaluator.student, evaluator.book)
        records = list(self.gathering.records.values())
        program: Any = student.with_architecture(result.recommended)
        program.score = self.gathering.records[result.recommended].score
        program.trial_logs = records
        program.candidate_programs = _candidates(student, records)
        return program

    def _front(self, choice: Choice) -> Mapping[str, Any]:
        """Return front and knee on shrunk scores, so that luck on val puts nobody there."""
        context, records = self.context, self.gathering.records
        level = records[choice.incumbent].score
        # What the user's weight makes of diversity is in the gains already.
        shrunk = {str(one.architecture): level + one.gain for one in choice.options}
        names = names_of(context.objectives)
        found = front(list(records.values()), names, limits=context.limits, shrunk=shrunk)
        best = knee(found, names, shrunk=shrunk)
        return {
            "front": tuple(record.architecture for record in found),
            "knee": None if best is None else best.architecture,
        }

    def _recommended(self, choice: Choice, outcome: ComparedSystems) -> Architecture:
        """Return the pick if proven or a single agent, else the best single within the limits."""
        if outcome.verdict.kind == "mixture" or not choice.picked.layers:
            return choice.picked
        records, limits = self.gathering.records, self.context.limits
        singles = (Architecture.single(name) for name in choice.ranking)
        return next((one for one in singles if limits.admit(records[one])), choice.picked)


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

"""The trials of a search as evidence: the numbers from which an architecture is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.nodes import scores
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.joint import without_prompts
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import CandidateScores, Evidence
from moa_dspy.optimize.singles import SingleAgents
from moa_dspy.optimize.surrogate.features import Kernels, Traits
from moa_dspy.optimize.surrogate.gp import SurrogateModel


@dataclass(frozen=True, slots=True)
class SurrogateShrinkage:
    """A ``Shrink`` of a selection.

    Attributes:
        pair: Diversity of the answers of two agents.
        prompts: Names of the prompts that were tried.
    """

    pair: Callable[[str, str], float]
    prompts: tuple[str, ...] = ()

    def __call__(
        self, evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """See the protocol."""
        gains, errors = self.model(evidence, measured).gains(incumbent.architecture)
        return gains[: len(measured)].tolist(), errors[: len(measured)].tolist()

    def model(self, evidence: Evidence, measured: Sequence[CandidateScores]) -> SurrogateModel:
        """Return the model of all that was measured, what was stopped early included."""
        means = {name: float(scores.mean()) for name, scores in evidence.singles.items()}
        stopped = [one for one in evidence.measured if not one.is_whole]
        known = [*measured, *stopped]
        return SurrogateModel(
            Kernels.of(Traits(means, self.pair, self.prompts)),
            [one.architecture for one in known],
            np.array([one.scores for one in known]),
        )


@dataclass(slots=True)
class EvidenceBuilder:
    """Turns records into evidence; a record never changes, so each is turned once.

    Args:
        options: Say which architectures may be picked.
        singles: The single agents, with the rows in the order of measuring.
        evaluator: Knows every score.
        records: Of the search, which adds to them.
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

    def measured(self) -> list[CandidateScores]:
        """Return every architecture with its scores, in the order of measuring."""
        return [self._candidate(*item) for item in self.records.items()]

    def evidence(self) -> Evidence:
        """Return all that was measured on val."""
        singles, space = self.singles, self.options.space
        found = Evidence(
            singles=singles.scores,
            measured=tuple(self.measured()),
            ballots=singles.ballots,
            widths=(space.min_width, space.max_width),
            admits=singles.admits,
            shrink=self.shrink,
            seed=self.options.seed,
            smoothed=singles.smoothed,
        )
        return found if self.may_prompt else without_prompts(found)

    @property
    def shrink(self) -> SurrogateShrinkage:
        """The judge of an architecture that is no plain vote."""
        prompts = {one.prompt for one in self.records if one.prompt is not None}
        return SurrogateShrinkage(self.pair, tuple(sorted(prompts)))

    def _candidate(self, architecture: Architecture, record: TrialRecord) -> CandidateScores:
        options, all_rows = self.options, self.singles.rows
        if architecture not in self._measured:
            found = np.full(len(all_rows), np.nan)
            outcomes = self.evaluator.measure(architecture, all_rows[: record.rows])
            found[: record.rows] = scores(outcomes)
            self._measured[architecture] = CandidateScores(
                architecture,
                found,
                calls=record.calls,
                usd=record.usd,
                bonus=options.diversity_weight * record.diversity,
                # Baselines are measured whatever the user demands, but not picked against it.
                is_admitted=options.limits.admit(record)
                and options.space.keeps_constraints(architecture),
            )
        return self._measured[architecture]

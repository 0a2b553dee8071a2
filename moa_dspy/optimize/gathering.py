"""What the trials measured, as the numbers that a choice is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dspy
import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.known import Known
from moa_dspy.optimize.measure import Measurer
from moa_dspy.optimize.outcome import scores
from moa_dspy.optimize.prompts import without_prompts
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Evidence, Measured
from moa_dspy.optimize.shrinking import ResponseShrink


@dataclass(slots=True)
class Gathering:
    """Turns records into evidence; a record never changes, so each is turned once.

    Args:
        context: Says what may be picked.
        known: Of the single agents.
        measurer: Knows every score.
        rows: Of val, in the order of measuring.
        records: Of the search, which adds to them.
        may_prompt: Whether a mixture may be picked with a prompt of the search.
    """

    context: SearchContext
    known: Known
    measurer: Measurer
    rows: Sequence[dspy.Example]
    records: Mapping[Architecture, TrialRecord]
    may_prompt: bool = True
    _measured: dict[Architecture, Measured] = field(default_factory=dict)

    def measured(self) -> list[Measured]:
        """Return every architecture with its scores, in the order of measuring."""
        return [self._of(*pair) for pair in self.records.items()]

    def evidence(self) -> Evidence:
        """Return all that was measured on val."""
        known, space = self.known, self.context.space
        found = Evidence(
            singles=known.scores,
            measured=tuple(self.measured()),
            ballots=known.ballots,
            widths=(space.min_width, space.max_width),
            admits=known.admits,
            shrink=self.shrink,
            seed=self.context.seed,
            smoothed=known.smoothed,
        )
        return found if self.may_prompt else without_prompts(found)

    @property
    def shrink(self) -> ResponseShrink:
        """What judges an architecture that is no plain vote."""
        prompts = {one.prompt for one in self.records if one.prompt is not None}
        return ResponseShrink(self.known.pair(self.context.diversity), tuple(sorted(prompts)))

    def _of(self, architecture: Architecture, record: TrialRecord) -> Measured:
        context = self.context
        if architecture not in self._measured:
            found = np.full(len(self.rows), np.nan)
            rows = self.rows[: record.rows]
            found[: record.rows] = scores(self.measurer.measure(architecture, rows))
            self._measured[architecture] = Measured(
                architecture,
                found,
                calls=record.calls,
                usd=record.usd,
                bonus=context.diversity_weight * record.diversity,
                # Rivals are measured whatever the user demands, but not picked against it.
                is_admitted=context.limits.admit(record)
                and context.space.keeps_constraints(architecture),
            )
        return self._measured[architecture]

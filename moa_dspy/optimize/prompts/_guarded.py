"""The last word on a prompt that a search picked: better than the seat's own, or not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError
from moa_dspy.optimize.measure import Measurer
from moa_dspy.optimize.outcome import scores
from moa_dspy.optimize.prompts._book import PromptBook
from moa_dspy.optimize.prompts._guard import Comparison, compare
from moa_dspy.optimize.prompts._rounds import Tried
from moa_dspy.optimize.selection import Evidence


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """Whether a picked mixture may keep its prompt.

    Attributes:
        picked: With the prompt.
        comparison: Its prompt against the seat's own, on val; None if that was not measured.
        reason: Why it was not; "" if it was.
    """

    picked: Architecture
    comparison: Comparison | None
    reason: str = ""

    @property
    def is_proven(self) -> bool:
        """Whether the prompt is used."""
        return self.comparison is not None and self.comparison.is_proven

    @property
    def note(self) -> str:
        """One sentence for the report."""
        if self.comparison is None:
            return f"Prompt {self.picked.prompt} is not used: {self.reason}"
        found = self.comparison
        gap = f"{100 * found.difference.estimate + 0.0:+.1f} points on {found.n} val rows"
        numbers = f"{gap}, p = {found.p_value:.3f}"
        if found.is_proven:
            return f"Prompt {self.picked.prompt} beats the aggregator's own: {numbers}."
        return (
            f"Prompt {self.picked.prompt} is not proven better than the aggregator's own, so that "
            f"stays: {numbers}."
        )


def guarded(
    picked: Architecture,
    measurer: Measurer,
    rows: Sequence[dspy.Example],
    *,
    n_tried: int,
    alpha: float = 0.05,
    gain: float = 0.03,
) -> PromptVerdict | None:
    """Test the prompt of ``picked`` against the seat's own; None if it has no other.

    The rows tuned no prompt, but one mixture of ``n_tried`` was picked on them: the level is
    divided by that number (Bonferroni). The number of prompts would not do, as the same prompt
    has another chance to look good in every mixture.

    Args:
        picked: The search's choice.
        measurer: Knows its scores.
        rows: Of val.
        n_tried: How many mixtures with a prompt other than the seat's own were measured.
        alpha: Level of the one-sided paired test, before it is divided.
        gain: Smallest gain worth having, for the number of rows that are missing.
    """
    if picked.prompt is None:
        return None
    try:
        before = scores(measurer.measure(replace(picked, prompt=None), rows))
        after = scores(measurer.measure(picked, rows))
    except BudgetReachedError as error:
        return PromptVerdict(picked, None, str(error))
    return PromptVerdict(picked, compare(before, after, alpha=alpha / max(n_tried, 1), gain=gain))


def without_prompts(evidence: Evidence) -> Evidence:
    """Return the evidence in which nothing with a prompt of the search may be picked."""
    measured = tuple(
        replace(one, is_admitted=one.is_admitted and one.architecture.prompt is None)
        for one in evidence.measured
    )
    return replace(evidence, measured=measured)


def prompts_to_json(
    book: PromptBook,
    records: Mapping[Architecture, Tried],
    verdict: PromptVerdict | None,
) -> tuple[dict[str, Any], ...]:
    """Return every prompt as ``StudyResult.prompts`` holds it.

    ``accepted`` is None for a prompt that was not picked; ``val`` is the best score of a
    mixture with it, and of the same mixture with the seat's own.
    """
    return tuple(
        {**entry, "val": _val(entry["name"], records), **_fate(entry["name"], verdict)}
        for entry in book.to_json()
    )


def _val(name: str, records: Mapping[Architecture, Tried]) -> dict[str, Any] | None:
    scored = {one: record.score for one, record in records.items() if not record.is_stopped_early}
    mine = [one for one in scored if one.prompt == name]
    if not mine:
        return None
    best = max(mine, key=lambda one: scored[one])
    own = scored.get(replace(best, prompt=None))
    return {"architecture": str(best), "score": scored[best], "own": own}


def _fate(name: str, verdict: PromptVerdict | None) -> dict[str, Any]:
    if verdict is None or verdict.picked.prompt != name:
        return {"accepted": None, "test_on_val": None}
    found = verdict.comparison
    return {
        "accepted": verdict.is_proven,
        "test_on_val": None if found is None else found.to_json(),
    }

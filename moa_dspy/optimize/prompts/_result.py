"""What prompt optimisation found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._candidates import Candidate
from moa_dspy.optimize.prompts._guard import Comparison
from moa_dspy.optimize.prompts._prompt import Prompt, prompt_diff
from moa_dspy.optimize.prompts._tally import Counted


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made the new prompt.

    Attributes:
        optimizer: Name of its class.
        settings: Its plain settings and the options of ``compile``; no LM, no key.
    """

    optimizer: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The outcome of ``optimize_aggregator``.

    Attributes:
        program: The mixture with the accepted prompt; with the incumbent's if none was.
        accepted: Whether the new prompt was proven better on ``val``.
        before: The incumbent's prompt.
        after: The optimizer's, accepted or not.
        val: Both on the validation rows, which the optimizer never saw.
        test: Both on the test rows, after the decision; None without a ``testset``.
        calls: Requests by stage and role, over all rows.
        origin: Who made the prompt.
        candidates: What the optimizer tried, where it tells, the best first.
        layer: Whose prompt it is: None is the last step.
        notes: What a reader must know of this run.
    """

    program: MixtureOfAgents
    accepted: bool
    before: Prompt
    after: Prompt
    val: Comparison
    test: Comparison | None
    calls: Mapping[str, Mapping[str, Counted]]
    origin: Origin
    candidates: tuple[Candidate, ...]
    layer: int | None = None
    notes: tuple[str, ...] = ()

    def calls_of(self, role: str) -> Counted:
        """Return what was asked of ``proposers``, ``aggregator`` or ``prompt_model`` in all."""
        found = [roles[role] for roles in self.calls.values()]
        return Counted(sum(one.made for one in found), sum(one.reused for one in found))

    @property
    def proposer_calls(self) -> int:
        """Requests made to whom the optimised seats read; 0 if all of it was stored."""
        return self.calls_of("proposers").made

    @property
    def aggregator_calls(self) -> int:
        """Requests made to the optimised seats, and to who reads them."""
        return self.calls_of("aggregator").made

    @property
    def prompt_model_calls(self) -> int:
        """Requests made by the optimizer itself, to write prompts."""
        return self.calls_of("prompt_model").made

    @property
    def diff(self) -> str:
        """The two prompts as a unified diff; "" if the optimizer changed nothing."""
        return prompt_diff(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        roles = ("proposers", "aggregator", "prompt_model")
        return {
            "architecture": str(self.program.architecture),
            "layer": self.layer,
            "accepted": self.accepted,
            "origin": asdict(self.origin),
            "val": self.val.to_json(),
            "test": self.test.to_json() if self.test else None,
            "calls": {role: asdict(self.calls_of(role)) for role in roles},
            "calls_by_stage": {
                stage: {role: asdict(one) for role, one in found.items()}
                for stage, found in self.calls.items()
            },
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "diff": self.diff,
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "notes": list(self.notes),
        }

from __future__ import annotations

from dataclasses import dataclass

from moa_dspy.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """Most tokens that references may take; None is no limit.

    Attributes:
        per_reference: Of one reference.
        total: Of all references together.

    Raises:
        ArchitectureError: If a limit is below 1.
    """

    per_reference: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        for name, limit in (("per_reference", self.per_reference), ("total", self.total)):
            if limit is not None and limit < 1:
                raise ArchitectureError(f"`{name}` must be at least 1, but got {limit}.")


@dataclass(frozen=True, slots=True)
class Cut:
    """A reference that was shortened, or left out, before an agent read it.

    Attributes:
        reference: Its number, from 1, among those that were to be read.
        agent: Whose response it is.
        tokens: Of the whole response.
        kept_tokens: Of what was read, the mark of the cut included; 0 if it was left out.
    """

    reference: int
    agent: str | None
    tokens: int
    kept_tokens: int

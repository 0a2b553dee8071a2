"""How much of the references an agent may read, and what was cut to keep to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """Most tokens that references may take; None is no limit.

    Attributes:
        per_reference: Of one reference.
        total: Of all references together.
    """

    per_reference: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A reference that was shortened before an agent read it.

    Attributes:
        reference: Its number, from 1.
        agent: Whose response it is.
        tokens: Of the whole response.
        kept_tokens: Of what was read.
    """

    reference: int
    agent: str | None
    tokens: int
    kept_tokens: int

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """Share of responses that are new, (distinct - 1) / (n - 1).

    Texts that differ only in case or white space are the same.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        distinct = {" ".join(r.casefold().split()) for r in responses}
        return (len(distinct) - 1) / (len(responses) - 1) if len(responses) > 1 else 0.0

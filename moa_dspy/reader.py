"""Makes responses readable for the next agent: guarded as data, and cut to what it can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from moa_dspy.adapters import guarded
from moa_dspy.pool import Pool
from moa_dspy.references import Cut, ReferenceLimits, built_tokens, fitted
from moa_dspy.response import Response
from moa_dspy.signatures import REFERENCES


@dataclass(frozen=True, slots=True)
class Reader:
    """Adds responses to the inputs of an agent that reads them.

    Attributes:
        pool: Says what each agent can take.
        adapter: A DSPy adapter for every seat; None takes the one of the settings.
        limits: How much of the references may be read.
    """

    pool: Pool
    adapter: Any = None
    limits: ReferenceLimits = field(default_factory=ReferenceLimits)

    def __call__(
        self, agent: str, module: Any, inputs: Mapping[str, Any], responses: Sequence[Response], /
    ) -> tuple[Mapping[str, Any], tuple[Cut, ...]]:
        """Return the inputs with the references added, and what was cut from these."""
        adapter, reader = self.adapter or dspy.settings.adapter, self.pool[agent]

        def with_references(texts: Sequence[str]) -> dict[str, Any]:
            return {**inputs, REFERENCES: guarded(texts, adapter=adapter)}

        # Cut first and guard then: an escape is never cut in two.
        texts, cuts = fitted(
            [response.text for response in responses],
            agents=[response.agent for response in responses],
            limits=self.limits,
            window=reader.context_window,
            max_tokens=reader.max_tokens,
            measure=lambda read: built_tokens(module, adapter, with_references(read)),
        )
        return with_references(texts), cuts

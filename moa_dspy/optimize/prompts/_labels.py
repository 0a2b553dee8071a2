"""Stored rows as the examples that optimizers are given."""

from __future__ import annotations

from typing import Any, Final

import dspy

from moa_dspy.optimize.prompts._bank import StoredRow
from moa_dspy.optimize.prompts._feedback import RIGHT, ReferenceFeedback

BEST: Final = "best"
"""What a ranker answers: the number of a reference."""


def labelled(found: StoredRow, feedback: ReferenceFeedback, signature: Any) -> dspy.Example:
    """Return the row with its references and, for a ranker, the number of the first right one.

    Raises:
        MetricError: If the metric cannot score a reference.
    """
    if BEST not in signature.output_fields or BEST in feedback.outputs:
        return found.example
    scores = feedback.reference_scores(found)
    right = [number for number, score in enumerate(scores, start=1) if score >= RIGHT]
    inputs = found.example.inputs().keys()
    made: dspy.Example = found.example.copy(**({BEST: str(right[0])} if right else {}))
    return made.with_inputs(*inputs)

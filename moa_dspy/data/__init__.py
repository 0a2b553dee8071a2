"""Files become rows, rows become three splits that share nothing, answers become 1 or 0."""

from __future__ import annotations

from moa_dspy.data._metrics import METRICS, answer_match, normalise_answer, normalise_text
from moa_dspy.data._rows import FORMATS, read_rows
from moa_dspy.data._splits import Splits, fingerprint, split_rows

__all__ = [
    "FORMATS",
    "METRICS",
    "Splits",
    "answer_match",
    "fingerprint",
    "normalise_answer",
    "normalise_text",
    "read_rows",
    "split_rows",
]

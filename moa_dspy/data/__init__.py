"""Files and hub tables become rows, rows become three splits that share nothing."""

from __future__ import annotations

from moa_dspy.data._hub import read_hub
from moa_dspy.data._questions import find_duplicates, find_overlap
from moa_dspy.data._recorded import RecordedResponses
from moa_dspy.data._recorded_table import read_recorded
from moa_dspy.data._rows import FORMATS, read_rows
from moa_dspy.data._splits import Splits, fingerprint, split_rows
from moa_dspy.data.benchmarks import BENCHMARKS, Benchmark, Origin, card
from moa_dspy.data.metrics import (
    METRICS,
    answer_letter,
    answer_match,
    bbh_match,
    gsm8k_match,
    last_number,
    mmlu_pro_match,
    normalise_answer,
    normalise_text,
)

__all__ = [
    "BENCHMARKS",
    "FORMATS",
    "METRICS",
    "Benchmark",
    "Origin",
    "RecordedResponses",
    "Splits",
    "answer_letter",
    "answer_match",
    "bbh_match",
    "card",
    "find_duplicates",
    "find_overlap",
    "fingerprint",
    "gsm8k_match",
    "last_number",
    "mmlu_pro_match",
    "normalise_answer",
    "normalise_text",
    "read_hub",
    "read_recorded",
    "read_rows",
    "split_rows",
]

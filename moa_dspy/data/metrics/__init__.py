"""Right answers score 1 and others 0, each benchmark's by its own rule."""

from __future__ import annotations

from collections.abc import Callable

from moa_dspy.data.metrics._answer import answer_match, normalise_answer, normalise_text
from moa_dspy.data.metrics._bbh import bbh_match
from moa_dspy.data.metrics._gsm8k import gsm8k_match, last_number
from moa_dspy.data.metrics._mmlu_pro import answer_letter, mmlu_pro_match

METRICS: dict[str, Callable[..., float]] = {
    "answer_match": answer_match,
    "bbh_match": bbh_match,
    "gsm8k_match": gsm8k_match,
    "mmlu_pro_match": mmlu_pro_match,
}
"""Name in a study file -> DSPy metric. One line each."""

__all__ = [
    "METRICS",
    "answer_letter",
    "answer_match",
    "bbh_match",
    "gsm8k_match",
    "last_number",
    "mmlu_pro_match",
    "normalise_answer",
    "normalise_text",
]

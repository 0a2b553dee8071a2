"""The letter that a response settles on, A to J."""

from __future__ import annotations

import re
from typing import Any

import dspy

from moa_dspy.errors import MetricError

_PATTERNS = (
    re.compile(r"(?i:answer is)[\s:*]*\(?([A-J])\b"),
    re.compile(r"(?i:answer)\s*:[\s*]*\(?([A-J])\b"),
)
_LETTER = re.compile(r"(?<![\w'])[A-J](?![\w'])")


def answer_letter(text: str) -> str | None:
    """The option a response chooses, or None if it names none.

    In this order, as the benchmark's own script does: the first "answer is (X)", since base
    models run on into questions of their own; else the first "Answer: X"; else the last
    capital A to J that stands alone, so that a stray "I" may count as option I.
    """
    for pattern in _PATTERNS:
        if found := pattern.search(text):
            return found[1]
    alone = _LETTER.findall(text)
    return alone[-1] if alone else None


def mmlu_pro_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if the letter of `prediction.answer` is `example.answer`, else 0.0; none is wrong.

    A response without a letter scores 0; the benchmark's own script guesses at random there.

    Args:
        example: Has a field `answer`, a letter A to J.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.

    Raises:
        MetricError: The right answer is no letter A to J.
    """
    if not re.fullmatch("[A-J]", str(example.answer)):
        raise MetricError(f"The right answer must be a letter A to J, but is {example.answer!r}.")
    given = "" if prediction.answer is None else str(prediction.answer)
    return float(answer_letter(given) == example.answer)

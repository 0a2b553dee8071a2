"""The number that a solution ends in is its answer."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import dspy

from moa_dspy.errors import MetricError

_NUMBER = re.compile(
    r"(?:(?<![\w)\].%])(?P<minus>[-\u2212]))?"  # a sign, not the minus of "5-3"
    r"(?:[$\u00a3\u00a5\u20ac]\s?(?P<late_minus>[-\u2212])?)?"  # "$-5" as well as "-$5"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.(?P<part>[0-9]+))?"
)


def last_number(text: str) -> str | None:
    """The last number of the text in its only spelling, or None if it holds none.

    Thousands commas (also LaTeX's ``{,}``), currency signs, a trailing point and idle zeros
    are left out: "$1,200.50." and "1200.5" are both "1200.5".
    """
    plain = unicodedata.normalize("NFKC", text).replace("{,}", ",").replace("\\", "")
    found = [m for m in _NUMBER.finditer(plain) if m["whole"] or m["part"]]
    if not found:
        return None
    number = found[-1]
    # As text: a float would round, and int() refuses more than 4300 digits.
    whole = (number["whole"] or "0").replace(",", "").lstrip("0") or "0"
    part = (number["part"] or "").rstrip("0")
    value = f"{whole}.{part}" if part else whole
    is_negative = bool(number["minus"] or number["late_minus"]) and value != "0"
    return f"-{value}" if is_negative else value


def gsm8k_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if the last number of `prediction.answer` is that of `example.answer`, else 0.0.

    So a whole solution may be given; one without a number is wrong.

    Args:
        example: Has a field `answer` that holds a number.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.

    Raises:
        MetricError: The right answer holds no number.
    """
    right = last_number(str(example.answer))
    if right is None:
        raise MetricError(f"The right answer must hold a number, but is {example.answer!r}.")
    return float(last_number(str(prediction.answer)) == right)

"""Exact match, after the words around an answer are taken away."""

from __future__ import annotations

import re
from typing import Any

import dspy

from moa_dspy.data.metrics._answer import normalise_text

_LEAD = re.compile(r"(?i)\banswer(?:\s+is|\s*:)[\s:*]*")
_OPTION = re.compile(r"\(([A-Z])\)")
_BARE_OPTION = re.compile(r"[*\s]*([A-Z])[*\s]*(?:[).:].*)?")


def bbh_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if the final answer equals `example.answer` exactly, else 0.0.

    The final answer is what follows the last "answer is" or "answer:" on its line; without
    these words it is the last line. Case, blanks, quotes, markdown and a closing point do not
    count. Where the right answer is an option, "(B)", the first "(X)" of the final answer
    counts, or a bare letter that it starts with, "B" or "B) ...".

    Args:
        example: Has a field `answer`.
        prediction: Has a field `answer`; None and other types count as their text.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.
    """
    right = str(example.answer).strip()
    given = "" if prediction.answer is None else _final(str(prediction.answer))
    if _OPTION.fullmatch(right):
        return float(_option(given) == right[1])
    return float(bool(_bare(given)) and _bare(given) == _bare(right))


def _final(text: str) -> str:
    """The last line that is not blank, or what "answer is" announces."""
    # A lead at the very end announces nothing: the answer stands before it.
    led = [rest for part in _LEAD.split(text)[1:] if (rest := part.strip())]
    lines = (led[-1] if led else text).strip().splitlines()
    return "" if not lines else lines[0 if led else -1]


def _option(text: str) -> str | None:
    found = _OPTION.search(text) or _BARE_OPTION.fullmatch(text)
    return found[1] if found else None


def _bare(text: str) -> str:
    return normalise_text(normalise_text(text).strip("*_`\"' ").removesuffix(".").strip("*_`\"' "))

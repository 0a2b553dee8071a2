"""Reads verdicts and grades strictly: what is not clearly one is no verdict at all."""

from __future__ import annotations

import math
import re
from typing import Any, Final

FIRST: Final[str] = "1"
SECOND: Final[str] = "2"
NEITHER: Final[str] = "0"

_DECORATION: Final = " \t\r\n*_`\"'[](){}<>#.,:;!="
_LEAD: Final = (
    r"(?:(?:the |my |final )*(?:verdict|winner|better|best|rating|grade|score|answer)"
    r"(?: (?:response|answer|one))?(?: is)?[\s:=*_`\"'\[(]*)?"
)
_VERDICT: Final = re.compile(
    _LEAD + r"(?:(?:response|answer|output)[\s_]*)?(?P<verdict>[012]|tie)(?: is better)?",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(
    _LEAD + r"(?P<number>[0-9]{1,2}(?:\.[0-9]+)?)(?:[*_\])]*\s*(?:/|out of)\s*(?P<best>10|5))?",
    re.IGNORECASE,
)


def read_verdict(text: str, *, allows_ties: bool) -> str | None:
    """Return ``1``, ``2`` or ``0`` (neither) if the whole text says just that, else None.

    Quotes, brackets and markdown around it, and words such as "Response 2 is better", are fine;
    a text that goes on to argue is not, since it may name both.
    """
    found = _VERDICT.fullmatch(text.strip(_DECORATION))
    if found is None:
        return None
    verdict = NEITHER if found["verdict"].lower() == "tie" else found["verdict"]
    return verdict if allows_ties or verdict != NEITHER else None


def read_number(text: str, *, best: int) -> float | None:
    """Return the number from 1 to ``best`` if the whole text says just that, else None.

    "7", "Grade: 7.5" and "**7**/10" are numbers; "-3", "0", "11" and "7 because ..." are not.
    """
    found = _NUMBER.fullmatch(text.strip(_DECORATION))
    if found is None or found["best"] not in (None, str(best)):
        return None
    number = float(found["number"])
    return number if 1 <= number <= best else None


def second_share(logprobs: Any, verdict: str, *, allows_ties: bool) -> float | None:
    """Return the probability that the second response is preferred, among the verdicts alone.

    With P of the alternatives of the token that holds the verdict, ``P(2) / (P(1) + P(2))``, as
    AlpacaEval 2 weights its verdicts (Dubois et al., 2024, arXiv:2404.04475); with ties,
    ``(P(2) + P(0) / 2) / (P(0) + P(1) + P(2))``. A verdict that is not among the alternatives
    counts 0. Spellings that differ in blanks and quotes are added up.

    Args:
        logprobs: What DSPy puts beside the outputs: tokens under ``content``, each with its
            ``top_logprobs``; None where the endpoint gave none.
        verdict: As it was read from the whole reply; its last occurrence as a token counts, since
            reasoning that stands before it may name both.
        allows_ties: Whether 0 is a verdict.

    Returns:
        A number in [0, 1]; None if no token holds the verdict or it has no alternatives.
    """
    token = _holder(logprobs, verdict)
    alternatives = getattr(token, "top_logprobs", None) or ()
    if token is None or not alternatives:
        return None
    # By spelling: the chosen token is usually, not always, one of the alternatives.
    spelled = {entry.token: math.exp(entry.logprob) for entry in (token, *alternatives)}
    allowed = (FIRST, SECOND, NEITHER) if allows_ties else (FIRST, SECOND)
    mass: dict[str, float] = dict.fromkeys((FIRST, SECOND, NEITHER), 0.0)
    for text, probability in spelled.items():
        if (word := _word(text)) in allowed:
            mass[word] += probability
    total = sum(mass.values())
    if not (math.isfinite(total) and total > 0):
        return None
    return (mass[SECOND] + mass[NEITHER] / 2) / total


def _holder(logprobs: Any, verdict: str) -> Any:
    tokens = getattr(logprobs, "content", None) or ()
    return next((token for token in reversed(tokens) if _word(token.token) == verdict), None)


def _word(token: str) -> str:
    word = token.strip(_DECORATION).lower()
    return NEITHER if word == "tie" else word

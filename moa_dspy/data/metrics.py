"""Short answers that mean the same become the same text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import dspy

_NUMBER = re.compile(r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.(?P<part>[0-9]+))?")
# A colon parts "answer:42" but not "10:30".
_GAP = re.compile(r"[\s=()\[\]{}<>]+|(?<![0-9]):+|:+(?![0-9])")


def normalise_answer(text: str) -> str:
    """Equal answers become equal text: "The answer is 42.", "**42.0**" and "42" are all "42".

    The answer is the last word or number of the last line that holds one, so an answer of several
    words keeps only its last. It is folded (NFKC, case), without quotes, punctuation and markdown
    around it, and a number is written in one way: no thousands commas, no idle zeros.

    Args:
        text: Any text, from a model or from a file; never an error.

    Returns:
        The answer; of a text without word or number its last piece, so "" only for blank text.
        Normalising it again changes nothing.
    """
    words = _words(text)
    if words:
        return words[-1]
    pieces = _folded(text).split()
    return pieces[-1] if pieces else ""


def normalise_text(text: str) -> str:
    """Texts that differ only in case, blanks and Unicode spelling become equal text.

    Unlike `normalise_answer` it keeps every word and mark; normalising again changes nothing.
    """
    return " ".join(_folded(text).split())


def answer_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """1.0 if `prediction.answer` ends in `example.answer`, else 0.0; any DSPy optimizer takes it.

    Both are read as `normalise_answer` reads them, except that a right answer of several words
    must be there in full. A prediction without text is wrong, whatever the right answer is.

    Args:
        example: Has a field `answer`.
        prediction: Has a field `answer`; other types than text count as their text, None as none.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.
    """
    given = "" if prediction.answer is None else str(prediction.answer)
    right = str(example.answer)
    words = _words(right)
    if words:
        return float(_words(given)[-len(words) :] == words)
    answer = normalise_answer(given)
    return float(bool(answer) and answer == normalise_answer(right))


def _folded(text: str) -> str:
    """One spelling per text; folding a folded text changes nothing."""
    # Once is not enough: some letters fold into letters that NFKC composes anew, and back.
    for _ in range(4):
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


def _words(text: str) -> list[str]:
    """The words of the last line that has any, in order."""
    for line in reversed(_folded(text).splitlines()):
        words = [word for piece in _GAP.split(line) if (word := _word(piece))]
        if words:
            return words
    return []


def _word(piece: str) -> str:
    """The piece without what surrounds the word, "" if there is no word in it."""
    first, end = 0, len(piece)
    while first < end and _is_wrapping(piece[first]):
        first += 1
    while end > first and _is_wrapping(piece[end - 1]):
        end -= 1
    before, word = piece[:first], piece[first:end]
    number = _NUMBER.fullmatch(word)
    return _number(before, number) if number else word


def _number(before: str, number: re.Match[str]) -> str:
    """The only spelling of this number; `before` may hold its sign and its point."""
    whole, part = number["whole"].replace(",", ""), number["part"] or ""
    if before.count(".") == 1 and before.endswith(".") and not part:
        whole, part = "0", whole
    # As text: int() refuses more than 4300 digits, and Decimal would round.
    part = part.rstrip("0")
    value = (whole.lstrip("0") or "0") + ("." + part if part else "")
    minus = before.count("-") + before.count("\N{MINUS SIGN}") == 1 and value != "0"
    return "-" + value if minus else value


def _is_wrapping(character: str) -> bool:
    """True of punctuation, symbols, blanks and control characters: never part of a bare word."""
    return unicodedata.category(character)[0] in "PSZC"

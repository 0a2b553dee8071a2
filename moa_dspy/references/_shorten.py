"""Cuts the end of a text so that a reader sees that it was cut, and nothing half."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Final

MARK: Final = " [cut]"
"""Where a text was cut."""

_LONGEST_WORD: Final = 40
_STEPS: Final = 24


def shortened(text: str, tokens: int, *, count: Callable[[str], int]) -> str:
    """Return the longest start found of a text that is too long, and the mark; or "".

    It ends between words where there are any, so a number is whole or not there at all,
    and never inside of a character that is several code points.
    """
    fits, too_long, best = 0, len(text) + 1, ""
    guess = tokens * 4  # about four letters are a token
    for _ in range(_STEPS):
        if too_long - fits <= 1:
            break
        n = guess if fits < guess < too_long else (fits + too_long) // 2
        start = _start(text, n)
        size = count(start + MARK)
        if size <= tokens:
            fits, best = n, start
        else:
            too_long = n
        guess = n * tokens // max(size, 1)
    return best + MARK if best else ""


def _start(text: str, n: int) -> str:
    while 0 < n < len(text) and _is_inside(text, n):
        n -= 1
    if n < len(text) and not text[n].isspace():
        # Half a number is another number.
        end = text[max(0, n - _LONGEST_WORD) : n]
        word = end.split()[-1] if end.strip() and not end[-1].isspace() else ""
        n -= len(word) if len(word) < len(end) else 0
    return text[:n].rstrip()


def _is_inside(text: str, n: int) -> bool:
    before, after = text[n - 1], text[n]
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return True
    if before == "\u200d" or after in "\u200c\u200d\ufe0e\ufe0f":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    return _is_flag(before) and _is_flag(after)


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"

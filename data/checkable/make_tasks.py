"""Writes `tasks.jsonl`: four families of questions whose answers are easier to check than to find.

Run it without options to write the file, with `--check` to learn whether the file on disk is the
one this program writes. Same program, same bytes.
"""

from __future__ import annotations

import random
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 20261128
SIZES = {"train": 25, "val": 50, "test": 60}
"""Rows of one family in each split: with four families 100, 200 and 240."""

Question = tuple[str, str]
"""The text that is asked, and its only right answer."""

QUICKSTART: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parent.parent / "quickstart/make_tasks.py")
)
"""The words are the quickstart's, and so is the way in which rows are drawn and written."""
GROUPS: list[list[str]] = QUICKSTART["GROUPS"]
WORDS = [word for group in GROUPS for word in group if len(word) <= 5]
_SPELLINGS = Counter("".join(sorted(word)) for word in WORDS)
ANAGRAMS = [word for word in WORDS if _SPELLINGS["".join(sorted(word))] == 1]


def _factor(rng: random.Random) -> Question:
    first, second = rng.randint(3, 12), rng.randint(11, 29)
    return f"{first} times which number is {first * second}?", str(second)


def _anagram(rng: random.Random) -> Question:
    word = rng.choice(ANAGRAMS)
    letters = list(word)
    while "".join(letters) == word:
        rng.shuffle(letters)
    options = rng.sample(
        [option for option in ANAGRAMS if len(option) == len(word) and option != word], 3
    )
    options.append(word)
    rng.shuffle(options)
    text = f"Which of these words has exactly the letters {' '.join(letters).upper()}: "
    return f"{text}{', '.join(options)}?", word


def _constraint(rng: random.Random) -> Question:
    while True:
        low, first, second = 10 * rng.randint(1, 9), *rng.sample(range(3, 13), 2)
        fits = [n for n in range(low, low + 21) if n % first == 0 and n % second == 0]
        if len(fits) == 1:
            text = f"Which number from {low} to {low + 20} can be divided by {first} and {second}?"
            return text, str(fits[0])


def _gap(rng: random.Random) -> Question:
    first, second = rng.randint(12, 59), rng.randint(12, 39)
    return f"{first} plus which number is {first + second}?", str(second)


FAMILIES: dict[str, Callable[[random.Random], Question]] = {
    "anagram": _anagram,
    "constraint": _constraint,
    "factor": _factor,
    "gap": _gap,
}


def text() -> str:
    """One JSON object a line, one row of each family in turn."""
    rows = QUICKSTART["in_turn"](FAMILIES, seed=SEED, sizes=SIZES)
    return str(QUICKSTART["lines"](rows))


if __name__ == "__main__":
    sys.exit(QUICKSTART["main"](Path(__file__), text()))

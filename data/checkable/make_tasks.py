"""Writes `tasks.jsonl`: four families of questions whose answers are easier to check than to find.

Run it without options to write the file, with `--check` to learn whether the file on disk is the
one this program writes. Same program, same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

SEED = 20261128
SIZES = {"train": 25, "val": 50, "test": 60}
"""Rows of one family in each split: with four families 100, 200 and 240."""

Question = tuple[str, str]
"""The text that is asked, and its only right answer."""

GROUPS: list[list[str]] = tomllib.loads(
    (Path(__file__).parent.parent / "quickstart/words.toml").read_text(encoding="utf-8")
)["groups"]
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
    options = rng.sample([one for one in ANAGRAMS if len(one) == len(word) and one != word], 3)
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


def _drawn(family: str) -> Iterator[dict[str, str]]:
    """No question comes twice, and each family draws from its own seed."""
    rng, seen = random.Random(f"{SEED}-{family}"), set[str]()
    for split in [split for split, n_rows in SIZES.items() for _ in range(n_rows)]:
        question, answer = FAMILIES[family](rng)
        while question in seen:
            question, answer = FAMILIES[family](rng)
        row = {"id": f"{family}-{len(seen):04d}", "split": split, "family": family}
        seen.add(question)
        yield row | {"question": question, "answer": answer}


def text() -> str:
    """One JSON object a line, one row of each family in turn."""
    turns = zip(*map(_drawn, FAMILIES), strict=True)
    return "".join(json.dumps(row) + "\n" for turn in turns for row in turn)


def main() -> int:
    """Returns 0 after writing; with `--check` 0 if the file is as it would be written, else 1."""
    parser = argparse.ArgumentParser(description="Write tasks.jsonl beside this program.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 if they differ")
    path = Path(__file__).with_name("tasks.jsonl")
    if not parser.parse_args().check:
        path.write_bytes(text().encode())
        return 0
    is_current = path.is_file() and path.read_bytes() == text().encode()
    if not is_current:
        print(f"{path.name} is not what {Path(__file__).name} writes; run it again.")
    return 0 if is_current else 1


if __name__ == "__main__":
    sys.exit(main())

"""Writes `tasks.jsonl`: ten families of short questions with one-word answers.

Run it without options to write the file, with `--check` to learn whether the file on disk is the
one this program writes. Same program, same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

SEED = 20261122
SIZES = {"train": 10, "val": 20, "test": 30}
"""Rows of one family in each split: with ten families 100, 200 and 300."""

Question = tuple[str, str]
"""The text that is asked, and its only right answer."""

WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
NAMES: list[str] = WORDS["names"]
DAYS: list[str] = WORDS["days"]
MONTHS: list[str] = WORDS["months"]
GROUPS: list[list[str]] = WORDS["groups"]
SAYINGS: list[str] = WORDS["sayings"]
CAPITALS: list[Question] = list(WORDS["capitals"].items())
OPPOSITES: list[Question] = list(WORDS["opposites"].items())


def _alphabet(rng: random.Random) -> Question:
    words = rng.sample([word for group in GROUPS for word in group], 4)
    text = f"Which of these words comes first in alphabetical order: {', '.join(words)}?"
    return text, min(words)


def _capital(rng: random.Random) -> Question:
    country, city = rng.choice(CAPITALS)
    return f"What is the capital city of {country}?", city


def _day(rng: random.Random) -> Question:
    start, n_days, sign = rng.randrange(7), rng.randint(2, 6), rng.choice((1, -1))
    when = f"will it be in {n_days} days" if sign > 0 else f"was it {n_days} days ago"
    day = DAYS[(start + sign * n_days) % 7]
    return f"Today is {DAYS[start]}. Which day of the week {when}?", day


def _decimal(rng: random.Random) -> Question:
    whole, tenths = rng.randint(1, 20), rng.randint(2, 9)
    hundredths = rng.choice([n for n in range(11, 100) if n % 10])
    short, long = f"{whole}.{tenths}", f"{whole}.{hundredths}"
    first, second = rng.sample((short, long), 2)
    larger = short if 10 * tenths > hundredths else long
    return f"Which number is larger, {first} or {second}?", larger


def _month(rng: random.Random) -> Question:
    start, n_months = rng.randrange(12), rng.randint(2, 7)
    month = MONTHS[(start + n_months) % 12]
    return f"Which month comes {n_months} months after {MONTHS[start]}?", month


def _odd(rng: random.Random) -> Question:
    many, other = rng.sample(GROUPS, 2)
    stranger = rng.choice(other)
    words = [*rng.sample(many, 3), stranger]
    rng.shuffle(words)
    return f"Which word does not belong with the others: {', '.join(words)}?", stranger


def _opposite(rng: random.Random) -> Question:
    word, opposite = rng.choice(OPPOSITES)
    return f"What is the opposite of {word}?", opposite


def _product(rng: random.Random) -> Question:
    first, second = rng.randint(12, 99), rng.randint(12, 99)
    return f"What is {first} times {second}?", str(first * second)


def _race(rng: random.Random) -> Question:
    first, second, third = rng.sample(NAMES, 3)
    return f"{first} came in first, {second} second and {third} third. Who came in last?", third


def _saying(rng: random.Random) -> Question:
    start, end = rng.choice(SAYINGS).rsplit(" ", 1)
    return f"Finish the saying: {start} ...", end


FAMILIES: dict[str, Callable[[random.Random], Question]] = {
    "alphabet": _alphabet,
    "capital": _capital,
    "day": _day,
    "decimal": _decimal,
    "month": _month,
    "odd": _odd,
    "opposite": _opposite,
    "product": _product,
    "race": _race,
    "saying": _saying,
}


def drawn(
    family: str, draw: Callable[[random.Random], Question], *, seed: int, sizes: dict[str, int]
) -> Iterator[dict[str, str]]:
    """No question comes twice, and each family draws from its own seed."""
    rng, seen = random.Random(f"{seed}-{family}"), set[str]()
    for split in [split for split, n_rows in sizes.items() for _ in range(n_rows)]:
        question, answer = draw(rng)
        while question in seen:
            question, answer = draw(rng)
        row = {"id": f"{family}-{len(seen):04d}", "split": split, "family": family}
        seen.add(question)
        yield row | {"question": question, "answer": answer}


def rows() -> list[dict[str, str]]:
    """The first n rows of a split hold every family equally often, or once more than another."""
    # One row of each family in turn, so a study may take the first n of a split as they are.
    return in_turn(FAMILIES, seed=SEED, sizes=SIZES)


def in_turn(
    families: dict[str, Callable[[random.Random], Question]], *, seed: int, sizes: dict[str, int]
) -> list[dict[str, str]]:
    """One row of each family in turn, again and again."""
    each = [drawn(name, draw, seed=seed, sizes=sizes) for name, draw in families.items()]
    return [row for turn in zip(*each, strict=True) for row in turn]


def text() -> str:
    """One JSON object a line, in the order of `rows`."""
    return lines(rows())


def lines(tasks: list[dict[str, str]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in tasks)


def main(program: Path, content: str) -> int:
    """Returns 0 after writing; with `--check` 0 if the file is as it would be written, else 1."""
    parser = argparse.ArgumentParser(description="Write tasks.jsonl beside this program.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 if they differ")
    path = program.with_name("tasks.jsonl")
    if not parser.parse_args().check:
        path.write_bytes(content.encode())
        return 0
    is_current = path.is_file() and path.read_bytes() == content.encode()
    if not is_current:
        print(f"{path.name} is not what {program.name} writes; run it again.")
    return 0 if is_current else 1


if __name__ == "__main__":
    sys.exit(main(Path(__file__), text()))

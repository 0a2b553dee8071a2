from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "checkable"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / "tasks.jsonl").read_text("utf-8").splitlines()]


def test_the_file_is_what_the_program_writes_and_the_card_says() -> None:
    program = [sys.executable, str(FOLDER / "make_tasks.py"), "--check"]
    assert subprocess.run(program, check=False).returncode == 0
    digest = hashlib.sha256((FOLDER / "tasks.jsonl").read_bytes()).hexdigest()
    assert digest in (FOLDER / "README.md").read_text("utf-8")


def test_splits_and_families_have_the_sizes_of_the_card(rows: list[dict[str, str]]) -> None:
    assert Counter(row["split"] for row in rows) == {"train": 100, "val": 200, "test": 240}
    assert set(Counter((row["split"], row["family"]) for row in rows).values()) == {25, 50, 60}
    assert len({row["question"] for row in rows}) == len({row["id"] for row in rows}) == 540


def test_every_answer_is_right_and_the_only_one(rows: list[dict[str, str]]) -> None:
    # Worked out from the question alone, another way than the generator does it.
    for row in rows:
        question, answer = row["question"], row["answer"]
        if row["family"] == "anagram":
            spelled, words = question.rstrip("?").split(" the letters ")[1].split(": ")
            wanted = sorted(spelled.lower().replace(" ", ""))
            assert [word for word in words.split(", ") if sorted(word) == wanted] == [answer]
            continue
        numbers = [int(found) for found in re.findall(r"\d+", question)]
        if row["family"] == "constraint":
            low, high, *divisors = numbers
            fits = [n for n in range(low, high + 1) if not any(n % divisor for divisor in divisors)]
            assert fits == [int(answer)]
        elif row["family"] == "factor":
            assert numbers[0] * int(answer) == numbers[1]
        else:
            assert numbers[0] + int(answer) == numbers[1]

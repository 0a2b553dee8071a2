from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

from moa_dspy.data import normalise_answer, normalise_text, read_rows, split_rows

FOLDER = Path(__file__).parents[2] / "data" / "quickstart"
SIZES = {"train": 100, "val": 200, "test": 300}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tasks", FOLDER / "make_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(generator: ModuleType) -> list[dict[str, str]]:
    made: list[dict[str, str]] = generator.rows()
    return made


def test_the_file_is_what_the_program_writes(generator: ModuleType) -> None:
    assert (FOLDER / "tasks.jsonl").read_bytes() == generator.text().encode()


def test_check_tells_a_changed_file(tmp_path: Path) -> None:
    for name in ("make_tasks.py", "words.toml", "tasks.jsonl"):
        shutil.copy(FOLDER / name, tmp_path)
    program = [sys.executable, str(tmp_path / "make_tasks.py")]
    assert subprocess.run([*program, "--check"], check=False).returncode == 0
    (tmp_path / "tasks.jsonl").write_text("{}\n", encoding="utf-8")
    changed = subprocess.run([*program, "--check"], check=False, capture_output=True, text=True)
    assert (changed.returncode, "run it again" in changed.stdout) == (1, True)
    assert subprocess.run(program, check=False).returncode == 0
    assert (tmp_path / "tasks.jsonl").read_bytes() == (FOLDER / "tasks.jsonl").read_bytes()


def test_the_library_reads_and_splits_the_file() -> None:
    splits = split_rows(read_rows(FOLDER / "tasks.jsonl", inputs=["question"]), column="split")
    sizes = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
    assert sizes == SIZES


def test_no_id_and_no_question_comes_twice(rows: list[dict[str, str]]) -> None:
    assert len({row["id"] for row in rows}) == 600
    assert len({normalise_text(row["question"]) for row in rows}) == 600


def test_families_are_equally_frequent_in_every_start_of_a_split(
    rows: list[dict[str, str]],
) -> None:
    for split, n_rows in SIZES.items():
        families = [row["family"] for row in rows if row["split"] == split]
        for n_first in (10, 50, n_rows):
            assert set(Counter(families[:n_first]).values()) == {n_first // 10}


def test_questions_are_short_and_answers_one_word(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert len(row["question"].split()) <= 20, row["id"]
        assert normalise_answer(row["answer"]) == row["answer"].casefold(), row["id"]


def numbers(text: str) -> list[str]:
    return [word.strip("?,.") for word in text.split() if word[0].isdigit()]


def test_computed_answers_are_right(rows: list[dict[str, str]]) -> None:
    # Worked out anew, another way than the generator does it.
    for row in rows:
        family, question, answer = row["family"], row["question"], row["answer"]
        if family == "product":
            first, second = map(int, numbers(question))
            assert int(answer) // first == second
            assert int(answer) % first == 0
        elif family == "decimal":
            assert answer == max(numbers(question), key=float)
        elif family == "alphabet":
            assert answer == sorted(question.split(": ")[1].rstrip("?").split(", "))[0]
        elif family == "race":
            assert answer in question.split(" and ")[1]


def test_calendar_answers_are_right(rows: list[dict[str, str]]) -> None:
    # 2024-01-01 was a Monday; months and days are spelled by strftime in the C locale.
    days = {f"{date(2024, 1, 1 + i):%A}": i for i in range(7)}
    months = {f"{date(2024, 1 + i, 1):%B}": i for i in range(12)}
    for row in rows:
        question, answer = row["question"], row["answer"]
        if row["family"] == "day":
            step = int(numbers(question)[0]) * (-1 if "ago" in question else 1)
            start = question.split("Today is ")[1].split(".")[0]
            assert (days[start] + step - days[answer]) % 7 == 0
        elif row["family"] == "month":
            start = question.rstrip("?").split(" after ")[1]
            assert (months[start] + int(numbers(question)[0]) - months[answer]) % 12 == 0


def test_exactly_the_stranger_is_of_another_group(
    generator: ModuleType, rows: list[dict[str, str]]
) -> None:
    groups = {word: i for i, group in enumerate(generator.GROUPS) for word in group}
    assert len(groups) == 80, "a word in two groups would be a question with two answers"
    for row in rows:
        if row["family"] == "odd":
            words = row["question"].split(": ")[1].rstrip("?").split(", ")
            strange = [word for word in words if word == row["answer"]]
            assert len(strange) == 1
            assert len({groups[word] for word in words if word not in strange}) == 1

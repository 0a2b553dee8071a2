"""Writes the tables of answers that the vote studies read, from folders of published recordings.

The recordings are not part of this repository; the card beside this file says where they come
from. Nothing is asked and nothing is judged again: rows are renamed, and questions that the source
marks as changed or asked twice are left out.

    uv run python data/pools/make_tables.py ../shared   # a folder that holds mmlu_pro, ...
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("MOA_DSPY_SHARED", HERE.parents[2] / "shared"))
CHARACTERS_PER_TOKEN = 4
"""A usual figure for English; the recordings hold the lengths of texts, not their tokens."""
COLUMNS = ["question", "agent", "answer", "score"]
NAMES = {"question_id": "question", "model": "agent", "letter": "answer", "correct": "score"}


def mmlu_pro(folder: Path) -> pd.DataFrame:
    """Return letters; without questions that were revised, or stand twice in the benchmark."""
    questions = pd.read_parquet(folder / "questions.parquet").set_index("question_id")
    kept = questions.index[~(questions.revised | questions.repeated)]
    letters = pd.read_parquet(folder / "letters.parquet").rename(columns=NAMES)
    return letters.loc[letters["question"].isin(list(kept))].filter(items=COLUMNS)


def reasoning_gym(folder: Path) -> pd.DataFrame:
    """Return the extracted answers with the grade of the task's own verifier."""
    answers = pd.read_parquet(folder / "responses.parquet", columns=[*_ANSWERS])
    answers = answers.rename(columns=NAMES | {"extracted": "answer"})
    answers["score"] = answers.score.clip(0.0, 1.0).where(answers.answer.notna(), 0.0)
    return answers.filter(items=COLUMNS)


def math(folder: Path) -> pd.DataFrame:
    """Return the final numbers, and what each text would have cost at its model's list price."""
    answers = pd.read_parquet(folder / "letters.parquet").rename(columns=NAMES)
    questions = pd.read_parquet(folder / "questions.parquet").set_index("question_id")
    prices = pd.read_csv(folder / "models.csv").set_index("model") / 1e6
    read = answers.question.map(questions.question.str.len()) / CHARACTERS_PER_TOKEN
    written = answers.n_chars / CHARACTERS_PER_TOKEN
    answers["usd"] = read * answers.agent.map(prices.usd_per_million_prompt_tokens)
    answers["usd"] += written * answers.agent.map(prices.usd_per_million_completion_tokens)
    return answers.filter(items=[*COLUMNS, "usd"])


_ANSWERS = ("question_id", "model", "extracted", "score")
TABLES: dict[str, tuple[str, Callable[[Path], pd.DataFrame]]] = {
    "mmlu_pro": ("mmlu_pro", mmlu_pro),
    "reasoning_gym": ("reasoning_gym", reasoning_gym),
    "math": ("zeroeval_math", math),
}


def main() -> None:
    """Write the table of every folder that is there, and name those that are not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED)
    options = parser.parse_args()
    for name, (source, read) in TABLES.items():
        folder = options.folder / source
        if not folder.is_dir():
            print(f"{name}: skipped, there is no {folder}")
            continue
        table = read(folder)
        table.to_parquet(HERE / f"{name}.parquet", index=False)
        print(f"{name}: {table.question.nunique()} questions, {table.agent.nunique()} agents")


if __name__ == "__main__":
    main()

"""Writes answers.csv: what the quickstart's agents answered alone, as a table of answers.

Usage: uv run python data/recorded/make_answers.py
"""

from __future__ import annotations

import csv
from pathlib import Path

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Ledger
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.study import PreparedStudy

ROOT = Path(__file__).parents[2]
COLUMNS = ("question", "agent", "answer", "score", "seconds", "tokens", "split")


def main() -> None:
    """Write the file; the quickstart's recording answers everything."""
    prepared = PreparedStudy.read(ROOT / "optimize" / "quickstart.toml")
    pool = prepared.make_pool(None, Ledger())
    evaluator = Evaluator(prepared.study.make_student(pool), prepared.metric)
    file = Path(__file__).with_name("answers.csv")
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for split in ("train", "val", "test"):
            rows = getattr(prepared.splits, split)
            # Of train two questions are enough: no prompt is tuned on recorded answers.
            rows = rows[:2] if split == "train" else rows
            for agent in pool:
                outcomes = evaluator.measure(Architecture.single(agent), rows)
                for row, outcome in zip(rows, outcomes, strict=True):
                    text = "" if outcome.failure else " ".join(outcome.layer[0].split())
                    costs = f"{outcome.seconds:.3f}", outcome.tokens
                    writer.writerow([row.id, agent, text, f"{outcome.score:g}", *costs, split])


if __name__ == "__main__":
    main()

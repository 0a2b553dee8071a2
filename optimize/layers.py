"""Depth and synthesis against a vote over the same answers, on the quickstart's recording.

Every mixture that the recording holds a synthesis for is answered again from it, on the 500 rows
of val and test, beside its aggregator alone, the vote of the answers that the aggregator read, and
the best single agent. Nothing is chosen, so nothing has to be kept apart for a test. Where a folder
with the published AlpacaEval 2 table of the paper's mixtures is given, its rows are added as they
are: they are the only evidence on large models here.

    uv run python optimize/layers.py [FOLDER]    # writes docs/results/layers.json; asks no model
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import runpy
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from moa_dspy import Architecture, MixtureOfAgents, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Calls, Recording, call_scope
from moa_dspy.data import answer_match, read_rows
from moa_dspy.winrate import mean_interval, paired_interval

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "data/quickstart"
SHARED = Path(os.environ.get("MOA_DSPY_SHARED", ROOT.parent / "shared"))
PUBLISHED = "paper_leaderboard.csv"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One architecture on every row: points, and what its answers took when they were recorded."""

    scores: list[float]
    calls: float
    usd: float
    seconds: float


def replayed(text: str, pool: Pool, rows: list[dspy.Example], signature: Any) -> Replayed:
    """Answer every row with an architecture from the recording."""
    program = MixtureOfAgents(signature, text, pool=pool, adapter=PlainChat())

    def answer(row: dspy.Example) -> tuple[float, Any]:
        with call_scope(example=row.id):
            prediction = program(question=row.question)
        return float(answer_match(row, prediction)), prediction.mixture

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(copy_context().run, answer, row) for row in rows]
        answers = [future.result() for future in running]
    took = [mixture for _, mixture in answers]
    return Replayed(
        [score for score, _ in answers],
        fmean(outcome.calls for outcome in took),
        fmean(outcome.usd for outcome in took),
        fmean(outcome.seconds for outcome in took),
    )


def compared(mixtures: list[str], pool: Pool, rows: list[dspy.Example]) -> list[dict[str, Any]]:
    """Return each mixture's score, and its differences to what it has to beat."""
    signature = runpy.run_path(str(QUICKSTART / "record.py"))["SIGNATURE"]
    replays: dict[str, Replayed] = {}

    def of(text: str) -> Replayed:
        if text not in replays:
            replays[text] = replayed(text, pool, rows, signature)
        return replays[text]

    best = max(pool, key=lambda name: fmean(of(name).scores))
    compared_rows = []
    for text in mixtures:
        aggregator = text.rpartition("(")[2].rstrip(")")
        layer = text.partition(" > ")[0]
        members = set(Architecture.parse(text).layers[0])
        leader = max(sorted(members), key=lambda name: fmean(of(name).scores))
        rivals = {"aggregator": aggregator, "vote": f"{layer} > vote({leader})", "best": best}
        score = mean_interval(of(text).scores)
        row: dict[str, Any] = {"architecture": text, "aggregator": aggregator}
        row |= {"depth": Architecture.parse(text).depth, "rows": len(rows)}
        row["score"] = [score.estimate, score.low, score.high]
        row |= {key: getattr(of(text), key) for key in ("calls", "usd", "seconds")}
        row["minus"] = {name: gap(of(text), of(rival)) for name, rival in rivals.items()}
        compared_rows.append(row | {"rivals": rivals})
    return compared_rows


def gap(mixture: Replayed, other: Replayed) -> dict[str, float]:
    """Return the paired difference with its 95 % interval."""
    interval = paired_interval(mixture.scores, other.scores)
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def published(folder: Path) -> list[dict[str, str]]:
    """Return the published rows of the paper's mixtures and of models that they are made of."""
    return list(csv.DictReader((folder / PUBLISHED).read_text("utf-8").splitlines()))


def main() -> None:
    """Replay the recording, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED / "alpaca_eval")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/layers.json")
    options = parser.parse_args()
    recorded = runpy.run_path(str(QUICKSTART / "record.py"))
    pairs = [(layer, name) for layer in recorded["SETS"] for name in recorded["AGGREGATORS"]]
    mixtures = [f"{layer} > synthesize({name})" for layer, name in pairs] + [recorded["CHAIN"]]
    calls = Calls(recording=Recording.read(QUICKSTART / "calls.parquet"), replay_only=True)
    pool = Pool.read(ROOT / "optimize/pools/quickstart.toml", calls=calls)
    rows = [r for r in read_rows(QUICKSTART / "tasks.jsonl", inputs=["question"])]
    rows = [row for row in rows if row.split in ("val", "test")]
    result: dict[str, Any] = {"syntheses": compared(mixtures, pool, rows)}
    before = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    if (options.folder / PUBLISHED).is_file():
        result["published"] = published(options.folder)
    elif "published" in before:
        print(f"{options.folder} has no {PUBLISHED}: those rows stay as they are")
        result["published"] = before["published"]
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Depth and synthesis against a vote over the same answers, on the quickstart's recordings.

Every mixture that a recording holds a synthesis for is answered again from it, on the rows of val
and test, beside its aggregator alone, the vote of the answers that the aggregator read, and the
best single agent: those of the quickstart's own space, and every set of agents by each aggregator
(`data/quickstart/record.py --syntheses`). Nothing is chosen, so nothing has to be kept apart for a
test. Where a folder with the published AlpacaEval 2 table of the paper's mixtures is given, its
rows are added as they are: they are the only evidence on large models here.

    uv run python optimize/layers.py [FOLDER]    # writes docs/results/layers.json; asks no model
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
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
from moa_dspy.data import answer_match
from moa_dspy.errors import UnknownCallError
from moa_dspy.winrate import mean_interval, paired_interval

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "data/quickstart"
SHARED = Path(os.environ.get("MOA_DSPY_SHARED", ROOT.parent / "shared"))
PUBLISHED = "paper_leaderboard.csv"


LADDER = ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
"""The weights, weakest first; a name that continues with "-warm" is the same weights, sampled."""
N_ROWS = 100
"""Rows of val and of test that every set is compared on. A set that lacks one is left out: what is
known of it by chance are questions on which agents answered alike, so that prompts are equal."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answered question: points, and what the answer took when it was recorded."""

    score: float
    calls: int
    usd: float
    seconds: float


class Replays:
    """Architectures that are answered from the recordings, each once."""

    def __init__(self, pool: Pool, rows: list[dspy.Example]) -> None:
        self.pool, self.rows = pool, rows
        self.signature = runpy.run_path(str(QUICKSTART / "record.py"))["SIGNATURE"]
        self._found: dict[str, dict[str, Answered]] = {}

    def of(self, text: str) -> dict[str, Answered]:
        """Return what an architecture answered, by row; a row that lacks a call is not there."""
        if text not in self._found:
            self._found[text] = dict(self._answered(text))
        return self._found[text]

    def scores(self, text: str, ids: list[str]) -> list[float]:
        """Return an architecture's points on these rows."""
        return [self.of(text)[name].score for name in ids]

    def _answered(self, text: str) -> list[tuple[str, Answered]]:
        program = MixtureOfAgents(self.signature, text, pool=self.pool, adapter=PlainChat())

        def answer(row: dspy.Example) -> tuple[str, Answered] | None:
            try:
                with call_scope(example=row.id):
                    prediction = program(question=row.question)
            except UnknownCallError:
                return None
            took, score = prediction.mixture, float(answer_match(row, prediction))
            return row.id, Answered(score, took.calls, took.usd, took.seconds)

        with ThreadPoolExecutor(2) as threads:
            running = [threads.submit(copy_context().run, answer, row) for row in self.rows]
            return [found for future in running if (found := future.result()) is not None]


def compared(mixtures: list[str], replays: Replays) -> list[dict[str, Any]]:
    """Return each mixture's score, and its differences to what it has to beat."""
    ids = [row.id for row in replays.rows]

    def mean(text: str) -> float:
        return fmean(replays.scores(text, ids))

    best, compared_rows = max(replays.pool, key=mean), []
    for text in mixtures:
        aggregator = text.rpartition("(")[2].rstrip(")")
        layer = text.partition(" > ")[0]
        leader = max(sorted(set(Architecture.parse(text).layers[0])), key=mean)
        rivals = {"aggregator": aggregator, "vote": f"{layer} > vote({leader})", "best": best}
        scores = replays.scores(text, ids)
        score, took = mean_interval(scores), [replays.of(text)[name] for name in ids]
        row: dict[str, Any] = {"architecture": text, "aggregator": aggregator}
        row |= {"depth": Architecture.parse(text).depth, "rows": len(ids)}
        row["score"] = [score.estimate, score.low, score.high]
        row |= {key: fmean(getattr(a, key) for a in took) for key in ("calls", "usd", "seconds")}
        row["minus"] = {
            name: gap(scores, replays.scores(rival, ids)) for name, rival in rivals.items()
        }
        compared_rows.append(row | {"rivals": rivals})
    return compared_rows


def every_synthesis(layers: list[str], replays: Replays) -> list[dict[str, Any]]:
    """Return the comparisons of every recorded set, by aggregator, with whom its answers are of."""
    found = []
    for aggregator in LADDER:
        texts = [str(Architecture.parse(f"{x} > synthesize({aggregator})")) for x in layers]
        texts = [text for text in texts if len(replays.of(text)) == len(replays.rows)]
        for row in compared(texts, replays):
            found.append(row | {"reads": relation(row["architecture"], aggregator)})
    return found


def relation(text: str, aggregator: str) -> str:
    """Return how the strongest of the models that an aggregator reads compares with itself."""
    places = [LADDER.index(a.removesuffix("-warm")) for a in Architecture.parse(text).layers[0]]
    own = LADDER.index(aggregator)
    return "weaker" if max(places) < own else "equal" if max(places) == own else "stronger"


def gap(scores: list[float], others: list[float]) -> dict[str, float]:
    """Return the paired difference with its 95 % interval."""
    interval = paired_interval(scores, others)
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def published(folder: Path) -> list[dict[str, str]]:
    """Return the published rows of the paper's mixtures and of models that they are made of."""
    return list(csv.DictReader((folder / PUBLISHED).read_text("utf-8").splitlines()))


def main() -> None:
    """Replay the recording, and write the file."""
    logging.getLogger("dspy").setLevel(logging.ERROR)  # it tells of every answer that is cut
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED / "alpaca_eval")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/layers.json")
    options = parser.parse_args()
    recorded = runpy.run_path(str(QUICKSTART / "record.py"))
    pairs = [(layer, name) for layer in recorded["SETS"] for name in recorded["AGGREGATORS"]]
    mixtures = [f"{layer} > synthesize({name})" for layer, name in pairs] + [recorded["CHAIN"]]
    files = (QUICKSTART / "calls.parquet", QUICKSTART / "syntheses.parquet")
    recording = Recording(call for path in files for call in Recording.read(path))
    calls = Calls(recording=recording, replay_only=True)
    pool = Pool.read(ROOT / "optimize/pools/quickstart.toml", calls=calls)
    rows, layers = recorded["shuffled_rows"](), recorded["every_set"](pool)
    every, first = (recorded["first_rows"](rows, ("val", "test"), n) for n in (None, N_ROWS))
    result: dict[str, Any] = {"syntheses": compared(mixtures, Replays(pool, every))}
    result["sets"] = every_synthesis([*layers, *recorded["SAMPLES"]], Replays(pool, first))
    before = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    if (options.folder / PUBLISHED).is_file():
        result["published"] = published(options.folder)
    elif "published" in before:
        print(f"{options.folder} has no {PUBLISHED}: those rows stay as they are")
        result["published"] = before["published"]
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

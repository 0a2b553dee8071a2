"""Does a small model answer better when it reads other models' answers? Measured live.

Each local model answers two sets of questions alone, then reading its own draft, and 1, 2, 3 or
6 answers of a weaker, an equal (itself, sampled) or a stronger model, or of all of them; once with
the default prompt and once with the paper's. The paper's figure 1, on models of two CPU cores.

    python optimize/collaboration.py --out docs/results/collaboration.json

Needs the weights that `optimize/pools/local.toml` names. Every answer is stored, and those that the
quickstart's recording holds are taken from it: the program may be stopped at any time and run
again, asks for what is missing only, and writes the file anew after each condition. The file keeps
what other runs of the program measured, so that the parts may be run one by one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from moa_dspy import MixtureOfAgents, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.agent import read_agents
from moa_dspy.calls import Calls, CallStore, Recording, call_scope
from moa_dspy.calls.timeout import in_threads
from moa_dspy.data import answer_match, read_rows
from moa_dspy.winrate import mean_interval, paired_interval

ROOT = Path(__file__).parent.parent
LADDER = ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
"""The models, weakest first; each also answers at temperature 0.7, as NAME-warm."""
TASKS = ("quickstart", "checkable")
KINDS = ("own draft", "weaker", "equal", "stronger", "mixed")
"""Whose answers are read; each reader is also asked alone."""
LAYOUTS = ("guarded", "paper")
COUNTS = (1, 3, 2, 6)
MIXED = {3: ("",), 6: ("", "-warm")}
"""What a mixed layer holds of each model: its greedy answer, with 6 references a sample too."""
SIGNATURE = dspy.make_signature(
    "question -> answer",
    "Answer the question. Reply with the answer only, in one word or number.",
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One reader, and whose answers it reads.

    Attributes:
        reader: Who answers in the end.
        references: ``alone``, ``own draft``, ``weaker``, ``equal``, ``stronger`` or ``mixed``.
        n: Number of references.
        architecture: The mixture that this is, in text.
    """

    reader: str
    references: str
    n: int
    architecture: str


def conditions(readers: list[str], counts: tuple[int, ...]) -> Iterator[Condition]:
    """Yield what each reader reads, the comparison to be made first at the front."""
    for reader in readers:
        yield Condition(reader, "alone", 0, reader)
        yield Condition(reader, "own draft", 1, f"{reader} > synthesize({reader})")
    for n in counts:
        for reader in readers:
            place = LADDER.index(reader)
            sources = {
                "weaker": LADDER[place - 1] if place else None,
                "equal": reader,
                "stronger": LADDER[place + 1] if place + 1 < len(LADDER) else None,
            }
            for kind, source in sources.items():
                if source is not None:
                    text = f"{source}-warm*{n} > synthesize({reader})"
                    yield Condition(reader, kind, n, text)
            if n in MIXED:
                # In the order of names, as the quickstart's recording has them.
                names = sorted(LADDER)
                layer = " + ".join(f"{name}{ending}" for ending in MIXED[n] for name in names)
                yield Condition(reader, "mixed", n, f"{layer} > synthesize({reader})")


@dataclass(frozen=True, slots=True)
class Found:
    """One answered question: 1 or 0 points, and what the answer took when it was made."""

    score: float
    calls: int = 0
    usd: float = 0.0
    seconds: float = 0.0


def answered(
    pool: Pool, condition: Condition, layout: str, rows: list[dspy.Example], num_threads: int
) -> list[Found]:
    """Return what each row's answer was worth; one that could not be had is a wrong answer."""
    program = MixtureOfAgents(
        SIGNATURE, condition.architecture, pool=pool, adapter=PlainChat(layout)
    )

    def find(row: dspy.Example) -> Found:
        try:
            with call_scope(example=row.id):
                prediction = program(question=row.question)
        except Exception as error:
            print(f"  {row.id}: {error}", flush=True)
            return Found(0.0)
        took = prediction.mixture
        return Found(float(answer_match(row, prediction)), took.calls, took.usd, took.seconds)

    return in_threads(find, rows, num_threads=num_threads)


def measured(
    pool: Pool, options: argparse.Namespace, tasks: str, layout: str
) -> Iterator[dict[str, Any]]:
    """Yield one row of the result per condition, in turn."""
    path = ROOT / "data" / tasks / "tasks.jsonl"
    rows = [row for row in read_rows(path, inputs=["question"]) if row.split == "test"]
    rows = rows[: options.rows]
    alone: dict[str, list[float]] = {}
    for condition in conditions(options.readers, tuple(options.counts)):
        if condition.n and condition.references not in options.references:
            continue
        outcomes = answered(pool, condition, layout, rows, options.threads)
        right = [outcome.score for outcome in outcomes]
        own = alone.setdefault(condition.reader, right)
        score, gain = mean_interval(right), paired_interval(right, own)
        yield {
            "tasks": tasks,
            "layout": layout,
            "reader": condition.reader,
            "references": condition.references,
            "n": condition.n,
            "architecture": condition.architecture,
            "rows": len(rows),
            "score": [score.estimate, score.low, score.high],
            "gain": [gain.estimate, gain.low, gain.high],
            "calls": fmean(outcome.calls for outcome in outcomes),
            "usd": fmean(outcome.usd for outcome in outcomes),
            "seconds": fmean(outcome.seconds for outcome in outcomes),
        }


def place_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return where a row of the result stands; equal for the same condition, run again."""
    reading = (LADDER.index(row["reader"]), row["n"], row["references"])
    return (TASKS.index(row["tasks"]), LAYOUTS.index(row["layout"]), *reading)


def opened_pool(store: CallStore, n_threads: int | None) -> Pool:
    """Return the agents of this machine, with what is recorded of them in the store."""
    store.put_all(Recording.read(ROOT / "data/quickstart/calls.parquet"))
    agents = read_agents(ROOT / "optimize/pools/local.toml")
    return Pool([replace(a, n_threads=n_threads) for a in agents], calls=Calls(store))


def main() -> None:
    """Measure every condition that is asked for, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/collaboration.json")
    parser.add_argument("--store", type=Path, default=ROOT / "runs/collaboration/calls.sqlite")
    parser.add_argument("--readers", nargs="+", choices=LADDER, default=list(LADDER))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--references", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=200, help="questions of each set")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--model-threads", type=int, help="threads of each model; default all")
    options = parser.parse_args()
    pool = opened_pool(CallStore(options.store), options.model_threads)
    previous = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    row_of = {place_of(row): row for row in previous.get("conditions", [])}
    for layout in options.layouts:
        for tasks in options.tasks:
            for row in measured(pool, options, tasks, layout):
                row_of[place_of(row)] = row
                written = {"conditions": [row_of[place] for place in sorted(row_of)]}
                options.out.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
                print(f"{tasks} {layout} {row['architecture']}: {row['score'][0]:.3f}", flush=True)


if __name__ == "__main__":
    main()

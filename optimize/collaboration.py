"""Does a small model answer better when it reads other models' answers? Measured live.

Each local model answers two sets of questions alone, then reading its own draft, and 1, 2, 3 or
6 answers of a weaker, an equal (itself, sampled) or a stronger model, or of all of them; once with
the default prompt and once with the paper's. The paper's figure 1, on models of two CPU cores.

    python optimize/collaboration.py --out docs/results/collaboration.json

Needs the weights that `optimize/pools/local.toml` names. Every answer is stored: the program may
be stopped at any time and run again, and it writes the file anew after each condition.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy

from moa_dspy import MixtureOfAgents, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.agent import read_agents
from moa_dspy.calls import Calls, CallStore, call_scope
from moa_dspy.data import answer_match, read_rows
from moa_dspy.winrate import mean_interval, paired_interval

ROOT = Path(__file__).parent.parent
LADDER = ("smollm2-135m", "qwen-0.5b", "qwen-1.5b")
"""The models, weakest first; each also answers at temperature 0.7, as NAME-warm."""
TASKS = ("quickstart", "checkable")
LAYOUTS = ("guarded", "paper")
COUNTS = (1, 3, 2, 6)
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
            if n % len(LADDER) == 0:
                layer = " + ".join(f"{name}-warm*{n // len(LADDER)}" for name in LADDER)
                yield Condition(reader, "mixed", n, f"{layer} > synthesize({reader})")


def scores(
    pool: Pool, condition: Condition, layout: str, rows: list[dspy.Example], num_threads: int
) -> list[float]:
    """Return 1 or 0 per row; a question that could not be answered is a wrong answer."""
    program = MixtureOfAgents(
        SIGNATURE, condition.architecture, pool=pool, adapter=PlainChat(layout)
    )

    def score(row: dspy.Example) -> float:
        try:
            with call_scope(example=row.id):
                return float(answer_match(row, program(question=row.question)))
        except Exception as error:
            print(f"  {row.id}: {error}", flush=True)
            return 0.0

    with ThreadPoolExecutor(num_threads) as threads:
        running = [threads.submit(copy_context().run, score, row) for row in rows]
        return [future.result() for future in running]


def measured(
    pool: Pool, options: argparse.Namespace, tasks: str, layout: str
) -> Iterator[dict[str, Any]]:
    """Yield one row of the result per condition, in turn."""
    path = ROOT / "data" / tasks / "tasks.jsonl"
    rows = [row for row in read_rows(path, inputs=["question"]) if row.split == "test"]
    rows = rows[: options.rows]
    alone: dict[str, list[float]] = {}
    for condition in conditions(options.readers, tuple(options.counts)):
        found = scores(pool, condition, layout, rows, options.threads)
        own = alone.setdefault(condition.reader, found)
        score, gain = mean_interval(found), paired_interval(found, own)
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
        }


def main() -> None:
    """Measure every condition that is asked for, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/collaboration.json")
    parser.add_argument("--store", type=Path, default=ROOT / "runs/collaboration/calls.sqlite")
    parser.add_argument("--readers", nargs="+", choices=LADDER, default=list(LADDER))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--rows", type=int, default=200, help="questions of each set")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--model-threads", type=int, help="threads of each model; default all")
    options = parser.parse_args()
    agents = read_agents(ROOT / "optimize/pools/local.toml")
    pool = Pool(
        [replace(agent, n_threads=options.model_threads) for agent in agents],
        calls=Calls(CallStore(options.store)),
    )
    found: list[dict[str, Any]] = []
    for tasks in options.tasks:
        for layout in options.layouts:
            for row in measured(pool, options, tasks, layout):
                found.append(row)
                options.out.write_text(json.dumps({"conditions": found}, indent=1) + "\n", "utf-8")
                print(f"{tasks} {layout} {row['architecture']}: {row['score'][0]:.3f}", flush=True)


if __name__ == "__main__":
    main()

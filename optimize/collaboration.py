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
COUNTS = (1, 2, 3, 6)
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


def conditions(reader: str, counts: tuple[int, ...]) -> Iterator[list[Condition]]:
    """Yield what a reader reads, one list per kind of references, few of them first."""
    yield [Condition(reader, "alone", 0, reader)]
    yield [Condition(reader, "own draft", 1, f"{reader} > synthesize({reader})")]
    place = LADDER.index(reader)
    sources = {
        "weaker": LADDER[place - 1] if place else None,
        "equal": reader,
        "stronger": LADDER[place + 1] if place + 1 < len(LADDER) else None,
    }
    for kind, source in sources.items():
        if source is not None:
            texts = {n: f"{source}-warm*{n} > synthesize({reader})" for n in sorted(counts)}
            yield [Condition(reader, kind, n, text) for n, text in texts.items()]
    # In the order of names, as the quickstart's recording has them.
    names = sorted(LADDER)
    layers = {n: [f"{name}{end}" for end in MIXED[n] for name in names] for n in sorted(MIXED)}
    texts = {n: f"{' + '.join(layers[n])} > synthesize({reader})" for n in layers if n in counts}
    yield [Condition(reader, "mixed", n, text) for n, text in texts.items()]


@dataclass(frozen=True, slots=True)
class Found:
    """One answered question: 1 or 0 points, and what the answer took when it was made."""

    score: float
    calls: int = 0
    usd: float = 0.0
    seconds: float = 0.0


def answered(
    pool: Pool, group: list[Condition], layout: str, rows: list[dspy.Example], num_threads: int
) -> list[list[Found]]:
    """Return what each row's answer was worth, per condition.

    One thread asks all of a row in turn: their prompts begin alike, and a model that has just read
    one reads only the rest of the next.
    """
    programs = [
        MixtureOfAgents(SIGNATURE, condition.architecture, pool=pool, adapter=PlainChat(layout))
        for condition in group
    ]

    def find(row: dspy.Example) -> list[Found]:
        return [found(program, row) for program in programs]

    by_row = in_threads(find, rows, num_threads=num_threads)
    return [list(outcomes) for outcomes in zip(*by_row, strict=True)]


def found(program: MixtureOfAgents, row: dspy.Example) -> Found:
    """Return what the answer to a row was worth; one that could not be had is a wrong answer."""
    try:
        with call_scope(example=row.id):
            prediction = program(question=row.question)
    except Exception as error:
        print(f"  {row.id}: {error}", flush=True)
        return Found(0.0)
    took = prediction.mixture
    return Found(float(answer_match(row, prediction)), took.calls, took.usd, took.seconds)


def measured(
    pool: Pool, options: argparse.Namespace, tasks: str, layout: str
) -> Iterator[dict[str, Any]]:
    """Yield one row of the result per condition, in turn."""
    path = ROOT / "data" / tasks / "tasks.jsonl"
    rows = [row for row in read_rows(path, inputs=["question"]) if row.split == "test"]
    rows = rows[: options.rows]
    for reader in options.readers:
        alone: list[float] = []
        for group in conditions(reader, tuple(options.counts)):
            if group[0].n and group[0].references not in options.references:
                continue
            outcomes = answered(pool, group, layout, rows, options.threads)
            for condition, answers in zip(group, outcomes, strict=True):
                alone = alone or [answer.score for answer in answers]
                yield {"tasks": tasks, "layout": layout, **row_of(condition, answers, alone)}


def row_of(condition: Condition, answers: list[Found], alone: list[float]) -> dict[str, Any]:
    """Return what is written of a condition; ``alone`` are its reader's own points."""
    right = [answer.score for answer in answers]
    score, gain = mean_interval(right), paired_interval(right, alone)
    return {
        "reader": condition.reader,
        "references": condition.references,
        "n": condition.n,
        "architecture": condition.architecture,
        "rows": len(answers),
        "score": [score.estimate, score.low, score.high],
        "gain": [gain.estimate, gain.low, gain.high],
        "calls": fmean(answer.calls for answer in answers),
        "usd": fmean(answer.usd for answer in answers),
        "seconds": fmean(answer.seconds for answer in answers),
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
    known = {place_of(row): row for row in previous.get("conditions", [])}
    for layout in options.layouts:
        for tasks in options.tasks:
            for row in measured(pool, options, tasks, layout):
                known[place_of(row)] = row
                written = {"conditions": [known[place] for place in sorted(known)]}
                options.out.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
                print(f"{tasks} {layout} {row['architecture']}: {row['score'][0]:.3f}", flush=True)


if __name__ == "__main__":
    main()

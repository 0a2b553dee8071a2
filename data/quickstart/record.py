"""Records every call of the quickstart's space from live local models; can be stopped and resumed.

The space is finite and computed before anything is asked: every agent alone, `vote` and `select`
over every set of agents (which need no further calls), and the architectures listed below. Calls
are kept in a store as they are answered and exported to `calls.parquet` after every stage.
Syntheses of every set of agents, which the space does not have, go to `syntheses.parquet`.

    uv run python data/quickstart/record.py --plan      # sizes only, asks nothing
    uv run python data/quickstart/record.py             # records what is missing
    uv run python data/quickstart/record.py --syntheses smollm2-135m qwen-0.5b
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import read_agents
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Call, Calls, CallStore, Recording, call_scope
from moa_dspy.data import answer_match, read_rows
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool

HERE = Path(__file__).parent
INSTRUCTIONS = "Answer the question. Reply with the answer only, in one word or number."
SIGNATURE = dspy.make_signature("question -> answer", INSTRUCTIONS)
AGGREGATORS = ("qwen-0.5b", "qwen-1.5b")
SETS = (
    "qwen-0.5b + qwen-1.5b + smollm2-135m",
    "qwen-1.5b-warm*3",
    "qwen-0.5b + qwen-0.5b-warm + qwen-1.5b",
    "qwen-0.5b + qwen-1.5b",
)
"""Layers that are synthesized, most informative first: a recording that stops early keeps these."""
SYNTHESES = HERE / "syntheses.parquet"
SAMPLES = ("qwen-0.5b-warm*3", "qwen-1.5b-warm*3")
CHAIN = f"{SETS[0]} > {' + '.join(AGGREGATORS)} > synthesize(qwen-1.5b)"
"""Three layers; the second one's calls are those of the first set's two aggregators."""


def stages(pool: Pool) -> Iterator[tuple[str, list[Architecture], tuple[str, ...]]]:
    """Yield the parts of the recording: a name, architectures, and the splits they run on."""
    singles = [Architecture.single(name) for name in pool]
    yield "single agents", singles, ("val", "test", "train")
    for layer in SETS:
        group = [Architecture.parse(f"{layer} > synthesize({name})") for name in AGGREGATORS]
        yield layer, group, ("val", "test")
    yield "chain", [Architecture.parse(CHAIN)], ("val", "test")
    samples = f"{SETS[1]} > vote"
    yield "samples of train", [Architecture.parse(samples)], ("train",)


def every_set(pool: Pool) -> list[str]:
    """Return every set of agents as a layer.

    Sets with the same first members follow one another: their prompts begin alike, and a model
    that has just read one reads only the rest of the next.
    """
    sets = [names for n in range(2, len(pool) + 1) for names in combinations(sorted(pool), n)]
    return [" + ".join(names) for names in sorted(sets)]


def synthesized(layers: Sequence[str], aggregator: str) -> list[Architecture]:
    """Return the aggregator's synthesis of each layer."""
    return [Architecture.parse(f"{layer} > synthesize({aggregator})") for layer in layers]


def shuffled_rows() -> list[dspy.Example]:
    """Return every row, so that a stage that is cut short covers every family."""
    rows = read_rows(HERE / "tasks.jsonl", inputs=["question"])
    random.Random(0).shuffle(rows)
    return rows


def first_rows(
    rows: Sequence[dspy.Example], splits: Sequence[str], n: int | None = None
) -> list[dspy.Example]:
    """Return the first ``n`` rows of each split, or all."""
    return [row for split in splits for row in [x for x in rows if x.split == split][:n]]


def space_size(pool: Pool) -> int:
    """Count the different architectures that the recording can answer."""
    sets = sum(1 for n in range(2, len(pool) + 1) for _ in combinations(pool, n))
    listed = len(SETS) * len(AGGREGATORS) + 1
    return len(pool) + 2 * sets + listed + 2  # vote and select over the samples of Self-MoA


def record(
    programs: Sequence[MixtureOfAgents], rows: Sequence[dspy.Example], num_threads: int
) -> int:
    """Ask every program every row's question; return how many answers failed.

    One thread asks all of a row, so that a model still has the beginning of its next prompt.
    """

    def ask(row: dspy.Example) -> list[Exception]:
        return [error for program in programs if (error := failure(program, row)) is not None]

    def failure(program: MixtureOfAgents, row: dspy.Example) -> Exception | None:
        try:
            with call_scope(example=row.id):
                program(question=row.question)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(num_threads) as threads:
        running = [threads.submit(copy_context().run, ask, row) for row in rows]
        errors = [error for future in running for error in future.result()]
    for error in errors[:3]:
        print(f"  failed: {error}", flush=True)
    return len(errors)


def summarize(recording: Recording, size: int) -> dict[str, object]:
    """Return what the card says of the recording, computed from its file."""
    calls = list(recording)
    return {
        "architectures": size,
        "calls": len(calls),
        "calls_by_agent": dict(sorted(Counter(call.agent for call in calls).items())),
        "failed_calls": sum(call.failure is not None for call in calls),
        "prompt_tokens": sum(call.prompt_tokens for call in calls),
        "completion_tokens": sum(call.completion_tokens for call in calls),
        "right_on_val": right_on_val(calls),
        "sha256": hashlib.sha256((HERE / "calls.parquet").read_bytes()).hexdigest(),
        "xllamacpp": version("xllamacpp"),
        "cores": os.cpu_count(),
    }


def right_on_val(calls: Sequence[Call]) -> dict[str, dict[str, float]]:
    """Return, per family and in all, the share of val rows that each agent alone got right."""
    rows = {r.question: r for r in read_rows(HERE / "tasks.jsonl", inputs=["question"])}
    right: defaultdict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for call in calls:
        request, response = json.loads(call.request), json.loads(call.response or "null")
        row = rows.get(request["messages"][-1]["parts"][0]["text"])
        if row is None or row.split != "val" or call.sample:
            continue
        text = response["message"]["parts"][0]["text"]
        score = answer_match(row, dspy.Prediction(answer=text))
        for family in (row.family, "all"):
            right[family][call.agent, row.id] = score
    return {family: _shares(scores) for family, scores in sorted(right.items())}


def _shares(scores: Mapping[tuple[str, str], float]) -> dict[str, float]:
    agents, ids = {agent for agent, _ in scores}, {row for _, row in scores}
    shares = {a: sum(scores[a, i] for i in ids) / len(ids) for a in sorted(agents)}
    any_right = sum(max(scores[a, i] for a in agents) for i in ids) / len(ids)
    return {**{name: round(share, 3) for name, share in shares.items()}, "any": any_right}


def main() -> None:
    """Print the plan, then record stage by stage."""
    options = _options()
    # Each file has a store of its own, so that no call gets into the other file.
    folder = "quickstart-syntheses" if options.syntheses else "quickstart-recording"
    store = CallStore(options.store or Path("runs") / folder / "calls.sqlite")
    exported = HERE / "calls.parquet"
    for known in (exported, SYNTHESES) if options.syntheses else (exported,):
        if known.exists():
            store.put_all(Recording.read(known))
    agents = read_agents(Path("optimize/pools/quickstart.toml"))
    agents = [replace(agent, n_threads=options.model_threads) for agent in agents]
    pool = Pool(agents, calls=Calls(store))
    rows = shuffled_rows()
    print(f"space: {space_size(pool)} architectures, {len(rows)} rows, {len(store)} calls known")
    plan = list(stages(pool))
    if options.syntheses:
        layers = options.layers or (*every_set(pool), *SAMPLES)
        plan = [(n, synthesized(layers, n), ("val", "test")) for n in options.syntheses]
    for name, architectures, splits in plan:
        chosen = first_rows(rows, splits, options.rows)
        print(f"{name}: {len(architectures)} architectures x {len(chosen)} rows")
        if not options.plan:
            _stage(pool, architectures, chosen, options.threads)
            _export(store, exported, space_size(pool), is_of_syntheses=bool(options.syntheses))
    print(f"{len(store)} calls known")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", action="store_true", help="print the sizes and stop")
    parser.add_argument("--store", type=Path, help="where calls are kept; default in runs/")
    parser.add_argument("--threads", type=int, default=8, help="answers asked for at the same time")
    parser.add_argument("--model-threads", type=int, help="threads of each model; default all")
    parser.add_argument("--rows", type=int, help="record only so many rows of each split")
    parser.add_argument(
        "--syntheses", nargs="+", metavar="AGGREGATOR", help="every set, by these aggregators"
    )
    parser.add_argument("--layers", nargs="+", help="with --syntheses: these layers only")
    return parser.parse_args()


def _export(store: CallStore, exported: Path, size: int, *, is_of_syntheses: bool) -> None:
    """Write the space's calls and what the card says of them, or the calls of other syntheses."""
    if is_of_syntheses:
        known = {call.key for call in Recording.read(exported)}
        Recording(call for call in store if call.key not in known).write(SYNTHESES)
        return
    Recording(store).write(exported)
    summary = summarize(Recording.read(exported), size)
    (HERE / "recording.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def _stage(
    pool: Pool, architectures: Sequence[Architecture], rows: Sequence[dspy.Example], threads: int
) -> None:
    before, started = pool.calls.ledger.spending.made, time.monotonic()
    programs = [
        MixtureOfAgents(SIGNATURE, architecture, pool=pool, adapter=PlainChat())
        for architecture in architectures
    ]
    failed = record(programs, rows, threads)
    n_made, hours = pool.calls.ledger.spending.made - before, (time.monotonic() - started) / 3600
    print(f"  {n_made} calls in {hours:.2f} hours, {failed} answers failed", flush=True)


if __name__ == "__main__":
    main()

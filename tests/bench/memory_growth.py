"""Measures how much the resident memory grows while a mixture goes on answering.

Usage: python tests/bench/memory_growth.py URL [--store on|off] [--calls N] [--json]

URL is an OpenAI-compatible server that answers at once, up to and with its ``/v1``. A mixture of 6
proposers and an aggregator answers new questions, 8 at a time, until N calls are made, with
``max_history_size=100``. Printed: the growth between call N/2 and call N, and the size at the end,
in MB (10^6 bytes), as Linux counts it. ``on`` keeps the calls in a new SQLite file, ``off`` keeps
none of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices inside a measurement

import dspy

from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, CallStore, NoStore
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool

NAMES = tuple(f"agent{n}" for n in range(6))
N_TASKS = 8
_number = count()


def mixture_of(url: str, calls: Calls) -> MixtureOfAgents:
    pool = Pool([Agent(name=n, model=f"openai/{n}", api_base=url) for n in NAMES], calls=calls)
    architecture = f"{' + '.join(NAMES)} > synthesize({NAMES[0]})"
    return MixtureOfAgents("question -> answer", architecture, pool=pool)


async def answer(mixture: MixtureOfAgents, n_calls: int) -> None:
    """Ask new questions until this many calls were made since the pool is there."""

    async def task() -> None:
        while mixture.pool.calls.ledger.spending.made < n_calls:
            await mixture.acall(question=f"Question {next(_number)}: the capital of France?")

    await asyncio.gather(*(task() for _ in range(N_TASKS)))


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


async def growth(url: str, calls: Calls, n_calls: int) -> dict[str, float]:
    dspy.configure(max_history_size=100)
    mixture = mixture_of(url, calls)
    await answer(mixture, n_calls // 2)
    half = resident_mb()
    await answer(mixture, n_calls)
    end = resident_mb()
    return {"growth_mb": end - half, "at_end_mb": end, "calls": calls.ledger.spending.made}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Measure the growth of resident memory.")
    parser.add_argument("url", help="of the server, with /v1")
    parser.add_argument("--store", choices=("on", "off"), default="on")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        store = CallStore(Path(folder) / "calls.sqlite") if options.store == "on" else NoStore()
        result = asyncio.run(growth(options.url, Calls(store), options.calls))
        if isinstance(store, CallStore):
            store.close()
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Times ``Predict`` with an agent's endpoint against ``Predict`` with a plain ``dspy.LM``.

Usage: python tests/bench/endpoint_speed.py URL [--json] [--calls N] [--rounds N]

URL is an OpenAI-compatible server that answers at once, up to and with its ``/v1``. Both sides ask
it the same number of questions, in turn, one after the other (sync) and 32 at once (async). The
ratios are medians over rounds: calls per second of the agent over those of the plain LM, by the
clock, and by processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from statistics import median
from time import perf_counter, process_time
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices inside a measurement

import dspy

from moa_dspy.agent import Agent
from moa_dspy.pool import Pool

N_TASKS = 32
_number = count()
_predict = dspy.Predict("question -> answer")


def question() -> str:
    return f"Question {next(_number)}: what is the capital of France? Answer in one sentence."


async def in_a_row(lm: Any, n_calls: int) -> None:
    for _ in range(n_calls):
        _predict(question=question(), lm=lm)


async def by_tasks(lm: Any, n_calls: int) -> None:
    async def task() -> None:
        for _ in range(n_calls // N_TASKS):
            await _predict.acall(question=question(), lm=lm)

    await asyncio.gather(*(task() for _ in range(N_TASKS)))


async def both_clocks(work: Awaitable[None]) -> tuple[float, float]:
    wall, cpu = perf_counter(), process_time()
    await work
    return perf_counter() - wall, process_time() - cpu


async def compared(
    work: Callable[[Any, int], Awaitable[None]], lms: Sequence[Any], *, n_calls: int, n_rounds: int
) -> dict[str, float]:
    plain, agent = lms
    times: dict[int, list[tuple[float, float]]] = {id(plain): [], id(agent): []}
    for lm in lms:
        await work(lm, N_TASKS)
    for round_ in range(n_rounds):
        for lm in (plain, agent) if round_ % 2 else (agent, plain):
            times[id(lm)].append(await both_clocks(work(lm, n_calls)))
    printed: dict[str, float] = {}
    for clock, name in enumerate(("", "_by_cpu")):
        slow, fast = ([pair[clock] for pair in times[id(lm)]] for lm in (plain, agent))
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        printed[f"calls_per_second_over_plain_lm{name}"] = median(ratios)
        printed[f"calls_per_second{name}"] = n_calls / median(fast)
        printed[f"calls_per_second_of_plain_lm{name}"] = n_calls / median(slow)
    return printed


async def measure(url: str, *, n_calls: int, n_rounds: int) -> dict[str, float]:
    plain = dspy.LM(
        "openai/plain", api_base=url, api_key="none", cache=False, temperature=0.7, max_tokens=1_024
    )
    pool = Pool([Agent(name="a", model="openai/plain", api_base=url)])
    printed: dict[str, float] = {}
    for kind, work in (("sync", in_a_row), ("async", by_tasks)):
        lms = (plain, pool.lm("a"))
        numbers = await compared(work, lms, n_calls=n_calls, n_rounds=n_rounds)
        printed |= {f"{name}_{kind}": value for name, value in numbers.items()}
    return printed


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time an agent's endpoint against a plain LM.")
    parser.add_argument("url", help="of the server, with /v1")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--calls", type=int, default=160, help="per side and round, at least 32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    result = asyncio.run(measure(options.url, n_calls=options.calls, n_rounds=options.rounds))
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Times a mixture of 6 proposers and an aggregator against DSPy's own calls.

Usage: python tests/bench/mixture_speed.py URL [--json] [--rounds N] [--mixtures N] ...

URL is that of tests/servers/latency_server.py, without a path. No question is asked twice, both
sides are measured in turn, who goes first changes, and every ratio is a median over rounds, so
that a busy machine disturbs both sides:

wall_over_critical_path_*: seconds of a mixture whose models answer after 200 ms, over 0.4 s.
cpu_over_predicts_*: processor seconds of a mixture whose models answer at once, over those of the
same 7 calls as bare ``dspy.Predict`` with the same LMs: one after the other for ``sync``, the six
with ``asyncio.gather`` for ``async``. ``sync`` is the worst case: six threads want the interpreter
at the same moment. cpu_over_predicts_at_20_ms_* is the same with models that take 20 ms.
throughput_over_gather: 64 mixtures at once, 200 ms, against the same calls as two plain gathers
of ``Predict.acall``: mixtures per second over mixtures per second.
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
from typing import TypeAlias

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices inside a measurement

import dspy

from moa_dspy.agent import Agent
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool

SIGNATURE = "question -> answer"
NAMES = tuple(f"agent{n}" for n in range(6))
AGGREGATOR = "writer"
SHORT_LATENCY_MS = 20
REFERENCE = "Paris is the capital of France."

_number = count()
Side: TypeAlias = Callable[[], Awaitable[object]]


def question() -> str:
    """Return a question that nobody asked before."""
    return f"Question {next(_number)}: what is the capital of France? Answer in one sentence."


class World:
    """A mixture on endpoints of one latency, and the same calls as bare predictors."""

    def __init__(self, url: str, *, latency_ms: int, n_at_once: int = 1) -> None:
        self.latency_ms, self.n_at_once = latency_ms, n_at_once
        base = f"{url}/{latency_ms}/v1"
        names = (*NAMES, AGGREGATOR)
        self.pool = Pool([Agent(name=n, model=f"openai/{n}", api_base=base) for n in names])
        architecture = f"{' + '.join(NAMES)} > synthesize({AGGREGATOR})"
        self.mixture = MixtureOfAgents(SIGNATURE, architecture, pool=self.pool)
        self.proposers = [(dspy.Predict(SIGNATURE), self.pool.lm(name)) for name in NAMES]
        self.aggregator = dspy.Predict(self.mixture.aggregator.signature)
        self.references = {"references": [REFERENCE] * len(NAMES)}

    async def mix(self) -> None:
        self.mixture(question=question())

    async def amix(self) -> None:
        await self.mixture.acall(question=question())

    async def predict(self) -> None:
        asked = question()
        for predict, lm in self.proposers:
            predict(question=asked, lm=lm)
        self.aggregator(question=asked, **self.references, lm=self.pool.lm(AGGREGATOR))

    async def apredict(self) -> None:
        asked = question()
        await asyncio.gather(*self.first_wave(asked))
        await self.last_call(asked)

    def first_wave(self, asked: str) -> list[Awaitable[object]]:
        return [predict.acall(question=asked, lm=lm) for predict, lm in self.proposers]

    def last_call(self, asked: str) -> Awaitable[object]:
        lm = self.pool.lm(AGGREGATOR)
        done: Awaitable[object] = self.aggregator.acall(question=asked, **self.references, lm=lm)
        return done

    async def mixtures_at_once(self) -> None:
        await asyncio.gather(*(self.amix() for _ in range(self.n_at_once)))

    async def two_gathers(self) -> None:
        asked = [question() for _ in range(self.n_at_once)]
        await asyncio.gather(
            *(call for question_asked in asked for call in self.first_wave(question_asked))
        )
        await asyncio.gather(*(self.last_call(question_asked) for question_asked in asked))


async def seconds(side: Side, clock: Callable[[], float], n: int = 1) -> float:
    started = clock()
    for _ in range(n):
        await side()
    return (clock() - started) / n


async def paired(
    left: Side, right: Side, *, n_rounds: int, clock: Callable[[], float], n: int = 1
) -> tuple[float, float, float]:
    """Return the median of left/right over rounds, and the median seconds of both sides.

    Who goes first changes from round to round: the second may find warmer caches.
    """
    for side in (left, right):
        await side()
    lefts: list[float] = []
    rights: list[float] = []
    for round_ in range(n_rounds):
        for side in (left, right) if round_ % 2 else (right, left):
            (lefts if side is left else rights).append(await seconds(side, clock, n))
    ratios = [a / b for a, b in zip(lefts, rights, strict=True)]
    return median(ratios), median(lefts), median(rights)


async def walls(slow: World, n_rounds: int) -> dict[str, float]:
    printed: dict[str, float] = {}
    for kind, side in (("sync", slow.mix), ("async", slow.amix)):
        await side()
        took = median([await seconds(side, perf_counter) for _ in range(n_rounds)])
        printed[f"wall_over_critical_path_{kind}"] = took / (2 * slow.latency_ms / 1_000)
    return printed


async def work(world: World, *, n_rounds: int, n: int, where: str = "") -> dict[str, float]:
    printed: dict[str, float] = {}
    for kind, left, right in (
        ("sync", world.mix, world.predict),
        ("async", world.amix, world.apredict),
    ):
        ratio, ours, plain = await paired(left, right, n_rounds=n_rounds, clock=process_time, n=n)
        printed[f"cpu_over_predicts{where}_{kind}"] = ratio
        printed[f"cpu_ms_per_mixture{where}_{kind}"] = 1_000 * ours
        printed[f"cpu_ms_per_7_predicts{where}_{kind}"] = 1_000 * plain
    return printed


async def throughput(slow: World, n_rounds: int) -> dict[str, float]:
    sides = (slow.two_gathers, slow.mixtures_at_once)
    ratio, plain, ours = await paired(*sides, n_rounds=n_rounds, clock=perf_counter)
    return {
        "throughput_over_gather": ratio,
        "seconds_of_mixtures_at_once": ours,
        "seconds_of_two_gathers": plain,
    }


async def measure(url: str, *, n_rounds: int, n: int, **of_slow: int) -> dict[str, float]:
    fast, slow = World(url, latency_ms=0), World(url, **of_slow)
    printed = await walls(slow, (n_rounds + 1) // 2)
    printed |= await work(fast, n_rounds=n_rounds, n=n)
    short = World(url, latency_ms=SHORT_LATENCY_MS)
    rounds = {"n_rounds": (n_rounds + 1) // 2, "n": (n + 3) // 4}
    printed |= await work(short, **rounds, where=f"_at_{SHORT_LATENCY_MS}_ms")
    return printed | await throughput(slow, (n_rounds + 2) // 3)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time a mixture against DSPy's own calls.")
    parser.add_argument("url", help="of latency_server.py, without a path")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--mixtures", type=int, default=12, help="per side and round")
    parser.add_argument("--at-once", type=int, default=64, help="mixtures, for the throughput")
    parser.add_argument("--latency-ms", type=int, default=200, help="for seconds and throughput")
    options = parser.parse_args(arguments)
    of_slow = {"latency_ms": options.latency_ms, "n_at_once": options.at_once}
    work = measure(options.url, n_rounds=options.rounds, n=options.mixtures, **of_slow)
    numbers = asyncio.run(work)
    print(json.dumps(numbers, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

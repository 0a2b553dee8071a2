"""A process that asks questions of a server through a store, for tests of many processes.

Usage: python asker.py STORE URL LEASE_SECONDS N_QUESTIONS SEED [async]

Prints ``ready``, waits for a line, asks every question once, eight at a time, and prints what it
was answered, spent and reused as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moa_dspy.calls import AgentCalls, Call, Calls, CallStore

PLACE, URL, LEASE, N_QUESTIONS, SEED, *MODE = sys.argv[1:]
CALLER = AgentCalls("a", "served/a", usd_per_completion_token=0.5)


def send(number: int) -> dict[str, Any]:
    body = json.dumps({"number": number}).encode()
    request = urllib.request.Request(f"{URL}/chat/completions", body)
    with urllib.request.urlopen(request, timeout=60) as reply:
        content = json.load(reply)
    usage = content["usage"]
    return {
        "text": content["choices"][0]["message"]["content"],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
        },
    }


async def ask_all(calls: Calls, numbers: list[int]) -> list[Call]:
    slots = asyncio.Semaphore(8)

    async def ask(number: int) -> Call:
        async with slots:
            asked = calls.prepare(CALLER, {"number": number})
            return await calls.aanswer(asked, lambda: asyncio.to_thread(send, number))

    return await asyncio.gather(*map(ask, numbers))


def main() -> None:
    store = CallStore(PLACE, lease_seconds=float(LEASE))
    calls = Calls(store)
    numbers = list(range(int(N_QUESTIONS)))
    random.Random(SEED).shuffle(numbers)
    print("ready", flush=True)
    sys.stdin.readline()
    if MODE:
        answers = asyncio.run(ask_all(calls, numbers))
    else:
        with ThreadPoolExecutor(8) as threads:
            asked = [calls.prepare(CALLER, {"number": number}) for number in numbers]
            work = zip(asked, numbers, strict=True)
            answers = list(threads.map(lambda w: calls.answer(w[0], lambda: send(w[1])), work))
    spending = calls.ledger.spending
    texts = {n: json.loads(a.response or "")["text"] for n, a in zip(numbers, answers, strict=True)}
    print(json.dumps({"texts": texts, "made": spending.made, "reused": spending.reused}))
    store.close()


if __name__ == "__main__":
    main()

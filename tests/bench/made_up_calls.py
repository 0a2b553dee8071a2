"""Calls of a usual size, made up by number, to fill a store with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from moa_dspy.calls import AgentCalls, Call, Calls, CallStore, canonical_json

CALLER = AgentCalls("agent", "openai/model@vendor", usd_per_completion_token=1e-6)
WORDS = ["the", "of", "capital", "country", "question", "answer", "model", "because", "river"]
WORDS += ["longest", "between", "city", "population", "language", "mountain", "known", "called"]


def request(number: int) -> dict[str, Any]:
    """Return a request of some 900 bytes."""
    text = " ".join(random.Random(number).choices(WORDS, k=100))
    part = {"type": "text", "text": f"{number}: {text}?"}
    config = {"temperature": 0.0, "max_tokens": 512}
    return {"config": config, "messages": [{"role": "user", "parts": [part]}], "system": "Answer."}


def call(number: int) -> Call:
    """Return an answered call with a response of some 700 bytes."""
    ask = Calls().prepare(CALLER, request(number))
    text = " ".join(random.Random(-number - 1).choices(WORDS, k=70))
    message = {"role": "assistant", "parts": [{"type": "text", "text": text}]}
    usage = {"input_tokens": 150, "output_tokens": 90, "total_tokens": 240}
    response = canonical_json({"finish_reason": "stop", "message": message, "usage": usage})
    identity, now = CALLER.identity, 1790000000.0 + number
    plain = (ask.key, CALLER.agent, identity, 0, ask.content, response, 150, 90, 9e-5, 0.5)
    return Call(*plain, None, 1, now)


def fill(place: Path | str, n_calls: int) -> None:
    """Store ``n_calls`` calls."""
    store = CallStore(place)
    for start in range(0, n_calls, 20_000):
        store.put_all(call(number) for number in range(start, min(start + 20_000, n_calls)))
    store.close()

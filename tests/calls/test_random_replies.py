"""Replies of random odd shapes: whatever a server sends is an answer or a counted failure."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import ADAPTERS
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from tests.calls.test_odd_replies import CLIENTS, mixture_of
from tests.servers.chat import HEAD, USAGE, Reply, serving

N_REPLIES = 40
TEXT = '[[ ## answer ## ]]\nParis <answer>Paris</answer> {"answer": "Paris"}'
ODD: list[Any] = [
    *(None, "", "x", 0, -1, 2**70, 1.5, math.nan, math.inf, True, [], {}, [None], [[]], [1, "x"]),
    *("<think>", "</think>", "\ud83d", "\x00", "{", "7", "NaN", {"a": None}),
    *([{"type": "text", "text": None}], [{"type": "thinking", "thinking": [None]}]),
    *([{"type": "text", "text": "Paris"}, None], {"text": "Paris"}, {"content": None}),
]


def content_of(draw: random.Random) -> dict[str, Any]:
    """Return a reply with up to four fields, at any depth, missing or replaced by something odd."""
    message = {"role": "assistant", "content": TEXT, "reasoning_content": None, "refusal": None}
    tokens = [{"token": "x", "logprob": -0.1, "top_logprobs": [{"token": "x", "logprob": 0.0}]}]
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    choice["logprobs"] = {"content": tokens}
    whole: dict[str, Any] = {**HEAD, "object": "chat.completion", "usage": dict(USAGE)}
    whole["choices"] = [choice]
    for _ in range(draw.randint(1, 4)):
        place: Any = draw.choice([whole, choice, message, whole["usage"], tokens[0]])
        if not isinstance(place, dict) or not place:
            continue
        name = draw.choice(sorted(place))
        if draw.random() < 0.25:
            del place[name]
        else:
            place[name] = draw.choice(ODD)
        if not isinstance(whole.get("usage"), dict):
            whole["usage"] = {}
    return whole


def body_of(draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return json.dumps(draw.choice(ODD)).encode()
    body = json.dumps(content_of(draw)).encode()
    return body[: draw.randrange(len(body))] if draw.random() < 0.05 else body


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["chat_strict", "json", "plain", "xml_strict"])
@pytest.mark.parametrize("client", CLIENTS)
def test_whatever_a_server_sends_is_an_answer_or_a_counted_failure(
    client: str, adapter: str
) -> None:
    draw = random.Random(f"{client} {adapter}")
    sent: list[bytes] = []

    def script(_: dict[str, Any]) -> Reply:
        sent.append(body_of(draw))
        return Reply(body=sent[-1])

    with serving(script) as server, dspy.context(adapter=ADAPTERS[adapter]()):
        made = mixture_of(server, client)
        program = MixtureOfAgents(
            "question -> answer", "a", pool=made.pool, adapter=ADAPTERS[adapter]()
        )
        n_answers = n_failures = 0
        for number in range(N_REPLIES):
            try:
                answer = program(question=f"{number}?").mixture
            except LayerFailedError:
                n_failures += 1
            except Exception as error:
                raise AssertionError(sent[-1]) from error
            else:
                assert answer.final.text.strip()
                n_answers += 1
    assert n_answers + n_failures == N_REPLIES
    assert n_answers > 0
    assert n_failures > 0

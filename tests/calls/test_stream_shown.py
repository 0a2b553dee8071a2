from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.pool import Pool
from tests.servers.chat import Reply, serving

VALUE = "Paris is [1] nice, a[0].\n\nTwo lines\tand 'quotes' [x]"
ADAPTERS: dict[str, tuple[Any, Callable[[str], str]]] = {
    "chat": (
        dspy.ChatAdapter(),
        lambda v: f"[[ ## answer ## ]]\n{v}\n\n[[ ## completed ## ]]",
    ),
    "json": (dspy.JSONAdapter(), lambda v: json.dumps({"answer": v})),
    "xml": (dspy.XMLAdapter(), lambda v: f"<answer>\n{v}\n</answer>"),
}
SPLITS: dict[str, Callable[[str], Sequence[str]]] = {
    "characters": list,
    "words": lambda text: re.findall(r"\S+\s*", text),
    "whole": lambda text: [text],
}


async def shown(pool: Pool, adapter: Any, *, is_async: bool) -> tuple[list[str], str]:
    """Return the chunks that a user sees of the answer, and the answer."""
    listeners = [dspy.streaming.StreamListener("answer")]
    predict = dspy.Predict("question -> answer")
    program = dspy.streamify(predict, stream_listeners=listeners, is_async_program=is_async)
    chunks, answer = [], ""
    with dspy.context(lm=pool.lm("a"), adapter=adapter):
        async for value in program(question="q"):
            if isinstance(value, dspy.streaming.StreamResponse):
                chunks.append(value.chunk)
            elif isinstance(value, dspy.Prediction):
                answer = value.answer
    return chunks, answer


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_user_sees_the_field_and_no_marker_however_the_endpoint_splits(
    adapter: str, split: str, is_async: bool
) -> None:
    _, written = ADAPTERS[adapter]
    chunks = shown_twice(written(VALUE), adapter, split, is_async=is_async)
    assert len(chunks) > 5, "a stored answer comes in pieces as well"


def shown_twice(text: str, adapter: str, split: str, *, is_async: bool) -> list[str]:
    """Return the chunks that are shown of a stored answer; it and the first show the value."""
    chunks: list[str] = []
    with serving(Reply(text, split=SPLITS[split])) as server:
        pool = Pool([Agent(name="a", model="openai/x", api_base=server.url)])
        for _ in range(2):  # from the endpoint, and from the store
            chunks, answer = asyncio.run(shown(pool, ADAPTERS[adapter][0], is_async=is_async))
            assert answer == VALUE
            # DSPy shows a JSON field as JSON.
            seen = json.loads("".join(chunks)) if adapter == "json" else "".join(chunks)
            assert seen == VALUE
        assert len(server.bodies) == pool.calls.ledger.spending.made == 1
    return chunks


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_thought_with_a_closing_tag_only_is_set_apart_in_the_very_first_stream(
    adapter: str, split: str, is_async: bool
) -> None:
    _, written = ADAPTERS[adapter]
    text = f"France, so {{it}} is\nParis.\n</think>\n\n{written(VALUE)}"
    if adapter == "json":  # A brace in a thought may be the beginning of the answer.
        text = text.replace("{it}", "it")
    shown_twice(text, adapter, split, is_async=is_async)

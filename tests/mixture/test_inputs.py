"""Conversations, pictures, typed and several outputs go through every layer, with every adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

import dspy
import pytest

from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool

PICTURE: Final = "data:image/png;base64,iVBORw0KGgo="
EARLIER: Final = dspy.History(
    messages=[{"question": "And before?", "sure": 0.5, "tags": ["old"], "answer": "Earlier."}]
)


class Look(dspy.Signature):
    """Say what is in the picture."""

    history: dspy.History = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    question: str = dspy.InputField()
    sure: float = dspy.OutputField()
    tags: list[str] = dspy.OutputField()
    answer: str = dspy.OutputField()


def chat(values: dict[str, Any]) -> str:
    blocks = [f"[[ ## {k} ## ]]\n{json.dumps(v) if k == 'tags' else v}" for k, v in values.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


def xml(values: dict[str, Any]) -> str:
    tags = "".join(f"<item>{tag}</item>" for tag in values["tags"])
    shown = {**values, "tags": tags}
    return "\n".join(f"<{name}>{value}</{name}>" for name, value in shown.items())


ADAPTERS: Final[dict[str, tuple[Any, Callable[[dict[str, Any]], str]]]] = {
    "chat": (dspy.ChatAdapter, chat),
    "json": (dspy.JSONAdapter, json.dumps),
    "xml": (dspy.XMLAdapter, xml),
}


def values_of(name: str) -> dict[str, Any]:
    return {"sure": 0.25, "tags": [name, "cat"], "answer": f"{name} sees a cat"}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_picture_in_a_conversation_reaches_every_seat(
    name: str, is_own: bool, is_async: bool
) -> None:
    adapter, written = ADAPTERS[name]
    pool = scripted_pool({agent: written(values_of(agent)) for agent in "abc"})
    own = {"adapter": adapter()} if is_own else {}
    program = MixtureOfAgents(Look, "a + b > b > synthesize(c)", pool=pool, **own)
    inputs = {"history": EARLIER, "picture": dspy.Image(PICTURE), "question": "What is it?"}
    with dspy.context(adapter=adapter()):
        found = asyncio.run(program.acall(**inputs)) if is_async else program(**inputs)
    assert found.toDict() == values_of("c")
    assert [r.values for r in found.mixture.responses] == [values_of(agent) for agent in "abbc"]
    # Every reply was read at once: no seat asked a second time.
    assert [r.calls for r in found.mixture.responses] == [1, 1, 1, 1]
    assert len(program.history) == 4
    for entry in program.history:
        sent = json.dumps(entry["messages"])
        assert sent.count(PICTURE) == 1
        assert sent.count("Earlier.") == 1
        assert sent.count("What is it?") == 1
    readers = [entry for entry in program.history if "references" in str(entry["messages"])]
    assert len(readers) == 2
    assert "b sees a cat" in str(readers[-1]["messages"])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_several_typed_outputs_are_voted_on_together(name: str, is_async: bool) -> None:
    adapter, written = ADAPTERS[name]
    replies = {"a": values_of("z"), "b": values_of("y"), "c": values_of("y")}
    pool = scripted_pool({agent: written(values) for agent, values in replies.items()})
    program = MixtureOfAgents(Look, "a + b + c > vote", pool=pool, adapter=adapter())
    inputs = {"history": EARLIER, "picture": dspy.Image(PICTURE), "question": "What is it?"}
    found = asyncio.run(program.acall(**inputs)) if is_async else program(**inputs)
    assert (found.sure, found.tags) == (0.25, ["y", "cat"])
    assert len(program.history) == 3


def test_an_input_without_a_name_is_refused_before_anything_is_asked() -> None:
    pool = scripted_pool({name: chat({"answer": "Paris"}) for name in "ab"})
    program = MixtureOfAgents("question, context -> answer", "a + b > vote", pool=pool)
    expected = r"by name, as program\(question=...\), but got 1 .* inputs are question, context"
    with pytest.raises(ArchitectureError, match=expected):
        program("Where?")
    with pytest.raises(ArchitectureError, match=expected):
        asyncio.run(program.acall("Where?"))
    assert pool.calls.ledger.spending.made == 0

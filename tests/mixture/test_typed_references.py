"""Typed responses as later agents read them."""

from __future__ import annotations

import datetime
import enum
import json
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.streaming import StreamResponse

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.prediction import render
from moa_dspy.streaming import AnswerListener
from moa_dspy.testing import scripted_pool


class Color(enum.Enum):
    RED = "red"


class Tone(enum.StrEnum):
    LOUD = "loud"


class Person(pydantic.BaseModel):
    name: str
    age: int | None = None
    color: Color = Color.RED


class Text(str):
    """A text of a class of its own."""


DAY = datetime.date(2024, 1, 2)
MOMENT = datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC)
IMAGE = dspy.Image("https://example.org/a.png")

TYPED: list[tuple[Any, Any, str]] = [
    (Color, Color.RED, "red"),
    (Tone, Tone.LOUD, "loud"),
    (list[Color], [Color.RED], '["red"]'),
    (Person, Person(name="Ål"), '{"name": "Ål", "age": null, "color": "red"}'),
    (list[Person], [Person(name="Al", age=3)], '[{"name": "Al", "age": 3, "color": "red"}]'),
    (dict[str, bool | None], {"x": True, "y": None}, '{"x": true, "y": null}'),
    (list[str], ["z"], '["z"]'),
    (datetime.date, DAY, "2024-01-02"),
    (datetime.datetime, MOMENT, "2024-01-02T03:04:00Z"),
    (Literal["yes", "no"], "yes", "yes"),
    (int | None, None, "None"),
    (bool, True, "True"),
    (int, 3, "3"),
    (float, 0.5, "0.5"),
    (str, '"a"\n  [b]', '"a"\n  [b]'),
    (str, Text("text"), "text"),
    (dspy.Code, dspy.Code(code="x = 1"), "x = 1"),
    (dspy.Image, IMAGE, str(IMAGE)),
    (dspy.History, dspy.History(messages=[{"q": "a"}]), '{"messages": [{"q": "a"}]}'),
]
"""Type of an output, a value, and its text."""


@pytest.mark.parametrize(("kind", "value", "text"), TYPED)
def test_a_value_is_shown_as_in_a_demo_of_dspy(kind: Any, value: Any, text: str) -> None:
    assert render({"x": value}) == text
    assert render({"x": value, "y": "z"}) == f"x: {text}\ny: z"
    fields: dict[str, Any] = {"q": (str, dspy.InputField()), "x": (kind, dspy.OutputField())}
    signature: Any = dspy.make_signature(fields, "")
    demo = dspy.ChatAdapter().format_assistant_message_content(signature, {"x": value})
    assert demo == f"[[ ## x ## ]]\n{text}\n\n[[ ## completed ## ]]\n"


REPLIES = {
    dspy.ChatAdapter: "[[ ## x ## ]]\n{text}\n\n[[ ## completed ## ]]",
    dspy.JSONAdapter: '{{"x": {json}}}',
    dspy.XMLAdapter: "<x>\n{text}\n</x>",
}
"""Format of an answer by adapter."""


def replied(kind: Any, text: str, adapter: type[Any], architecture: str) -> MixtureOfAgents:
    """Return a mixture whose agents reply ``text`` for an output of the type ``kind``."""
    reply = REPLIES[adapter].format(text=text, json=text if text[0] in "[{" else json.dumps(text))
    pool = scripted_pool(dict.fromkeys("ab", reply))
    fields: dict[str, Any] = {"q": (str, dspy.InputField()), "x": (kind, dspy.OutputField())}
    signature: Any = dspy.make_signature(fields, "Do.")
    return MixtureOfAgents(signature, architecture, pool=pool, adapter=adapter())


PERSON = '{"name": "Al", "age": null, "color": "red"}'


@pytest.mark.parametrize("adapter", REPLIES)
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Color, "red"),
        (list[Color], '["red"]'),
        (Person, PERSON),
        (list[Person], f"[{PERSON}]"),
        (dict[str, bool], '{"x": true}'),
        (list[dspy.Image], '[{"url": "https://example.org/a.png"}]'),
    ],
)
def test_agents_read_responses_in_the_form_in_which_they_answer(
    kind: Any, text: str, adapter: type[Any]
) -> None:
    found = replied(kind, text, adapter, "a > synthesize(b)")(q="?").mixture
    assert found.failures == ()
    if kind != list[dspy.Image]:  # DSPy shows an image as its content, not as its address
        assert [response.text for response in found.responses] == [text, text]


@pytest.mark.parametrize("architecture", ["a > synthesize(b)", "a + b > vote"])
def test_a_vote_is_streamed_in_the_form_in_which_an_agent_writes(architecture: str) -> None:
    mixture = replied(list[str], '["z"]', dspy.ChatAdapter, architecture)
    stream: Any = dspy.streamify(
        mixture, stream_listeners=[AnswerListener(mixture)], async_streaming=False
    )
    chunks = [value.chunk for value in stream(q="?") if isinstance(value, StreamResponse)]
    assert "".join(chunks) == '["z"]'

"""Requests in the shapes that OpenAI's clients send, good and bad; answers by OpenAI's schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.serve.running import KEY, app_of, one_agent, running, server_pool
from tests.servers.chat import Reply

CHAT, TEXT, RESPONSES = "chat/completions", "completions", "responses"
USER = {"role": "user", "content": "Where is Paris?"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
FUNCTION = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "Sunny."}
SCHEMA = {"name": "s", "strict": True, "schema": {"type": "object", "properties": {}}}


def chat(*messages: Any, **rest: Any) -> dict[str, Any]:
    return {"model": "a + b > synthesize(c)", "messages": list(messages) or [USER], **rest}


def text(prompt: Any = "Where?", **rest: Any) -> dict[str, Any]:
    return {"model": "a + b > synthesize(c)", "prompt": prompt, **rest}


def response(given: Any = "Where?", **rest: Any) -> dict[str, Any]:
    return {"model": "a + b > synthesize(c)", "input": given, **rest}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def parts(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


SAID = {"type": "text", "text": "What is this?"}
ASSISTANT = {"role": "assistant", "content": "In France."}

GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("the least", CHAT, chat()),
    ("a system message", CHAT, chat(system("Be brief."), USER)),
    ("a developer message", CHAT, chat({"role": "developer", "content": "Be brief."}, USER)),
    ("several turns", CHAT, chat(USER, ASSISTANT, {"role": "user", "content": "Sure?"})),
    ("content in parts", CHAT, chat(parts(SAID))),
    ("an image inline", CHAT, chat(parts(SAID, image(PIXEL)))),
    ("an image by its address", CHAT, chat(parts(image("https://example.org/a.png"), SAID))),
    ("a tool", CHAT, chat(tools=[TOOL], tool_choice="auto")),
    ("a tool that must be called", CHAT, chat(tools=[TOOL], tool_choice="required")),
    (
        "a tool by its name",
        CHAT,
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}}),
    ),
    ("a tool's result", CHAT, chat(USER, CALLED, RESULT, tools=[TOOL])),
    ("no parallel calls", CHAT, chat(tools=[TOOL], parallel_tool_calls=False)),
    (
        "a strict tool",
        CHAT,
        chat(tools=[{"type": "function", "function": {**FUNCTION, "strict": True}}]),
    ),
    ("settings", CHAT, chat(temperature=0.3, top_p=0.9, seed=7, max_tokens=20)),
    ("the newer token limit", CHAT, chat(max_completion_tokens=20)),
    ("penalties", CHAT, chat(frequency_penalty=0.5, presence_penalty=-0.5)),
    ("one stop", CHAT, chat(stop="END")),
    ("several stops", CHAT, chat(stop=["END", "STOP"])),
    ("two answers", CHAT, chat(n=2)),
    ("text as format", CHAT, chat(response_format={"type": "text"})),
    ("JSON as format", CHAT, chat(response_format={"type": "json_object"})),
    ("a schema", CHAT, chat(response_format={"type": "json_schema", "json_schema": SCHEMA})),
    ("who asks", CHAT, chat(user="u1", metadata={"a": "b"}, store=False, service_tier="auto")),
    ("a cache key", CHAT, chat(prompt_cache_key="k", safety_identifier="s")),
    ("nulls, as some clients send", CHAT, chat(temperature=None, stop=None, tools=None, n=None)),
    ("no log probabilities", CHAT, chat(logprobs=False)),
    ("text as modality", CHAT, chat(modalities=["text"])),
    ("effort", CHAT, chat(reasoning_effort="low")),
    ("each agent's response", CHAT, chat(moa_details=True)),
    ("a stream", CHAT, chat(stream=True)),
    ("a stream with usage", CHAT, chat(stream=True, stream_options={"include_usage": True})),
    ("a stream of two answers", CHAT, chat(stream=True, n=2)),
    ("a stream with details", CHAT, chat(stream=True, moa_details=True)),
    ("no stream, said", CHAT, chat(stream=False)),
    ("a text", TEXT, text()),
    ("several texts", TEXT, text(["Where?", "Why?"])),
    ("a text's settings", TEXT, text(max_tokens=16, temperature=0, stop="\n", n=2, echo=False)),
    ("a stream of a text", TEXT, text(stream=True)),
    ("a response", RESPONSES, response()),
    ("instructions", RESPONSES, response(instructions="Be brief.", max_output_tokens=20)),
    ("messages as items", RESPONSES, response([USER, ASSISTANT, USER])),
    (
        "content of items",
        RESPONSES,
        response(
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What?"},
                        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                    ],
                }
            ]
        ),
    ),
    (
        "calls as items",
        RESPONSES,
        response(
            [
                USER,
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
            ],
            tools=[{"type": "function", **FUNCTION}],
        ),
    ),
    ("a response's format", RESPONSES, response(text={"format": {"type": "json_object"}})),
    ("effort of a response", RESPONSES, response(reasoning={"effort": "low"}, store=True)),
    ("a stream of a response", RESPONSES, response(stream=True)),
]

BAD: list[tuple[str, str, Any, str]] = [
    ("no model", CHAT, {"messages": [USER]}, "`model` must be"),
    ("a model that is a number", CHAT, chat() | {"model": 3}, "`model` must be"),
    ("no messages", CHAT, {"model": "a"}, "`messages` must be"),
    ("empty messages", CHAT, {"model": "a", "messages": []}, "`messages` must be"),
    ("messages that are a text", CHAT, {"model": "a", "messages": "hi"}, "`messages` must be"),
    ("a message that is a text", CHAT, chat("hi"), "`messages[0]` must be an object, but is 'hi'"),
    ("a sound", CHAT, chat(parts({"type": "input_audio", "input_audio": {}})), "'input_audio'"),
    ("a file of its own", CHAT, chat(parts({"type": "file", "file": {"file_id": "f"}})), "'file'"),
    ("no parts", CHAT, chat(parts()), "`messages[0].content` must not be empty"),
    ("the most likely tokens", CHAT, chat(top_k=5), "`top_k` is not supported"),
    ("instructions alone", CHAT, chat(system("Be brief.")), "more than instructions"),
    ("a role that is unknown", CHAT, chat({"role": "king", "content": "x"}), "role"),
    ("no content", CHAT, chat({"role": "user"}), "content"),
    ("content that is a number", CHAT, chat({"role": "user", "content": 3}), "content"),
    ("a part that is unknown", CHAT, chat(parts({"type": "smell"})), "smell"),
    ("a file as an image", CHAT, chat(parts(image("file:///etc/passwd"))), "must begin with"),
    ("an image that is a number", CHAT, chat(parts({"type": "image_url", "image_url": 3})), "url"),
    ("a key that is unknown", CHAT, chat(tempratur=1), "tempratur"),
    ("too hot", CHAT, chat(temperature=3), "temperature"),
    ("a temperature that is a text", CHAT, chat(temperature="hot"), "temperature"),
    ("no tokens", CHAT, chat(max_tokens=0), "max_tokens"),
    ("no answers", CHAT, chat(n=0), "`n` must be"),
    ("too many answers", CHAT, chat(n=1000), "`n` must be"),
    ("log probabilities", CHAT, chat(logprobs=True), "logprobs"),
    ("audio", CHAT, chat(modalities=["text", "audio"]), "modalities"),
    ("options without a stream", CHAT, chat(stream_options={"include_usage": True}), "needs"),
    ("a stream that is a text", CHAT, chat(stream="yes"), "stream"),
    ("a tool that is hosted", CHAT, chat(tools=[{"type": "web_search"}]), "web_search"),
    (
        "a choice without tools",
        CHAT,
        chat(tool_choice={"type": "function", "function": {"name": "x"}}),
        "x",
    ),
    ("a format that is unknown", CHAT, chat(response_format={"type": "xml"}), "response_format"),
    ("a schema without a schema", CHAT, chat(response_format={"type": "json_schema"}), "schema"),
    ("a search", CHAT, chat(web_search_options={"x": 1}), "web_search_options"),
    ("no prompt", TEXT, {"model": "a"}, "`prompt` must be"),
    ("tokens as a prompt", TEXT, text([1, 2, 3]), "`prompt` must be"),
    ("the best of several", TEXT, text(best_of=3), "best_of"),
    ("an echo", TEXT, text(echo=True), "echo"),
    ("a suffix", TEXT, text(suffix="x"), "suffix"),
    ("no input", RESPONSES, {"model": "a"}, "`input` must be"),
    ("an earlier response", RESPONSES, response(previous_response_id="r"), "previous_response_id"),
    ("a response in the background", RESPONSES, response(background=True), "background"),
    ("an item that is unknown", RESPONSES, response([{"type": "reasoning"}]), "reasoning"),
    ("a tool of OpenAI's", RESPONSES, response(tools=[{"type": "web_search"}]), "web_search"),
    ("a file", RESPONSES, response([parts({"type": "input_file", "file_id": "f"})]), "input_file"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    pool = server_pool({"a": "In France.", "b": "Far away.", "c": "Paris is in France."})
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(app_of(pool)) as url, httpx.Client(base_url=url, headers=headers) as made:
        yield made


def test_there_are_enough_shapes() -> None:
    assert len(GOOD) + len(BAD) >= 60


@pytest.mark.parametrize(("path", "body"), [case[1:] for case in GOOD], ids=[o[0] for o in GOOD])
def test_a_good_request_is_answered_by_the_schema(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answered = client.post(path, json=body)
    assert answered.status_code == 200, answered.text
    n = body.get("n") or 1
    if body.get("stream"):
        assert answered.headers["content-type"].startswith("text/event-stream")
        assert streamed_text(path, answered.text) == n * "Paris is in France."
    elif path == CHAT:
        made = ChatCompletion.model_validate(answered.json(), strict=True)
        assert [c.message.content for c in made.choices] == n * ["Paris is in France."]
        assert made.usage is not None
        assert made.usage.total_tokens > 0
    elif path == TEXT:
        texts = Completion.model_validate(answered.json(), strict=True).choices
        count = n * (len(body["prompt"]) if isinstance(body["prompt"], list) else 1)
        assert [c.text for c in texts] == count * ["Paris is in France."]
    else:
        whole = Response.model_validate(answered.json())
        assert (whole.status, whole.output_text) == ("completed", "Paris is in France.")


def streamed_text(path: str, content: str) -> str:
    """Return the text of a stream, every event of which fits OpenAI's schema."""
    lines = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
    if path == RESPONSES:
        kind: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
        events = [kind.validate_json(line) for line in lines]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        return str(events[-1].response.output_text)
    assert lines.pop() == "[DONE]"
    if path == TEXT:
        # OpenAI sends null before the end, which its client's schema lacks.
        ended = [line.replace('"finish_reason": null', '"finish_reason": "stop"') for line in lines]
        pieces = [Completion.model_validate_json(line) for line in ended]
        return "".join(choice.text for piece in pieces for choice in piece.choices)
    chunks = [ChatCompletionChunk.model_validate_json(line) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert {choice.finish_reason for choice in choices} == {None, "stop"}
    choices.sort(key=lambda choice: choice.index)
    return "".join(choice.delta.content or "" for choice in choices)


@pytest.mark.parametrize(
    ("path", "body", "message"), [case[1:] for case in BAD], ids=[o[0] for o in BAD]
)
def test_a_bad_request_is_refused_in_openais_shape(
    client: httpx.Client, path: str, body: Any, message: str
) -> None:
    answered = client.post(path, json=body)
    assert answered.status_code == 400, answered.text
    error = answered.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        (CHAT, chat(stop=5), "`stop` must be a text or a list of texts, none of them", "stop"),
        (CHAT, chat(temperature="hot"), "be a number from 0 to 2, but is 'hot'.", "temperature"),
        (CHAT, chat(max_tokens=0), "be a whole number of at least 1, but is 0.", "max_tokens"),
        (CHAT, chat(logit_bias=5), "`logit_bias` must be an object, but is 5.", "logit_bias"),
        (CHAT, chat(tempratur=1), "Unknown parameter `tempratur`; known are freq", "tempratur"),
        (CHAT, chat(1), "`messages[0]` must be an object, but is 1.", "messages"),
        (CHAT, chat({"role": "king", "content": "x"}), "messages[0].role must be one", "messages"),
        (CHAT, chat(tools=[1]), "tools[0] must be a JSON object", "tools"),
        (CHAT, chat(tools=[{"type": "custom"}]), "of type 'custom' is not supported", "tools"),
        (CHAT, chat(stream=True, stream_options={"x": 1}), "unknown x", "stream_options"),
        (TEXT, text(stop=[""]), "none of them empty, but is [''].", "stop"),
        (TEXT, text(zzz=1), "Unknown parameter `zzz`; known are frequency_penalty", "zzz"),
        (RESPONSES, response(max_output_tokens="x"), "but is 'x'.", "max_output_tokens"),
        (RESPONSES, response([{"role": "king"}]), "`role` of an item of `input` must", "input"),
        (RESPONSES, response(text={"format": {"type": "xml"}}), "text.format.type", "text.format"),
        (RESPONSES, response(reasoning={"effort": "x"}), "reasoning.effort", "reasoning.effort"),
    ],
)
def test_a_refusal_names_the_key_its_value_and_what_is_right(
    client: httpx.Client, path: str, body: dict[str, Any], message: str, param: str
) -> None:
    answered = client.post(path, json=body)
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


OPTIONS: dict[str, Any] = {
    "audio": {"voice": "x", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [FUNCTION],
    "logit_bias": {"5": 1},
    "logprobs": True,
    "max_completion_tokens": 20,
    "max_tokens": 20,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "x"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 7,
    "service_tier": "flex",
    "stop": ["END"],
    "store": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.25,
    "tool_choice": "required",
    "tools": [TOOL],
    "top_k": 5,
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}


def test_no_parameter_of_openais_is_dropped_without_a_word() -> None:
    documented = set(CompletionCreateParamsBase.__annotations__) - {"model", "messages"}
    assert documented <= set(OPTIONS)
    with one_agent(Reply()) as (server, client):
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=client.base_url, headers=headers) as plain:
            plain.post(CHAT, json={**chat(), "model": "a"})
            for key, value in OPTIONS.items():
                before = len(server.bodies)
                answered = plain.post(CHAT, json={**chat(**{key: value}), "model": "a"})
                if answered.status_code == 400:
                    assert answered.json()["error"]["param"] == key
                    continue
                named = answered.headers.get("x-moa-not-passed-on", "").split(", ")
                sent = [sorted(body.items(), key=str) for body in server.bodies[before:]]
                is_sent = len(sent) == 2 or sent[0] != sorted(server.bodies[0].items(), key=str)
                assert (key in named) != is_sent, key


def test_what_a_response_asks_of_vendors_alone_is_said(client: httpx.Client) -> None:
    asked = response(text={"verbosity": "low"}, reasoning={"effort": "low", "summary": "auto"})
    named = client.post(RESPONSES, json=asked).headers["x-moa-not-passed-on"]
    assert named == "text.verbosity, reasoning.summary"


def test_what_is_not_passed_on_is_said(client: httpx.Client) -> None:
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    answered = client.post(CHAT, json=chat(user="u", tools=[strict]))
    assert answered.headers["x-moa-not-passed-on"] == "user, tools.function.strict"


def test_models_are_listed(client: httpx.Client) -> None:
    listed = client.get("models").json()
    found = [Model.model_validate(model) for model in listed["data"]]
    assert [model.id for model in found] == ["a", "b", "c"]
    entry = client.get("models/a + b > vote").json()
    assert entry["moa"] == {"kind": "architecture", "architecture": "a + b > vote"}
    assert client.get("models/absent").status_code == 404


def test_usage_comes_in_the_last_chunk_alone(client: httpx.Client) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    lines = client.post(CHAT, json=body).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0


def test_details_are_there_when_asked_for(client: httpx.Client) -> None:
    by_flag = client.post(CHAT, json=chat(moa_details=True)).json()["moa"]
    by_header = client.post(CHAT, json=chat(), headers={"X-Moa-Details": "true"}).json()["moa"]
    for (facts,) in (by_flag, by_header):
        assert [(r["agent"], r["text"]) for r in facts["responses"]] == [
            ("a", "In France."),
            ("b", "Far away."),
            ("c", "Paris is in France."),
        ]
    assert "moa" not in client.post(CHAT, json=chat()).json()

"""Tool calls of a model in each form of answer, read by OpenAI's own client."""

from __future__ import annotations

from typing import Any

from tests.serve.running import one_agent
from tests.serve.test_conformance import FUNCTION, TOOL, USER
from tests.servers.chat import Reply


def calls(*arguments: str) -> dict[str, Any]:
    """Return the fields of a message that calls the tool with these arguments."""
    functions = [{"name": "look", "arguments": text} for text in arguments]
    return {
        "tool_calls": [
            {"index": n, "id": f"c{n}", "type": "function", "function": function}
            for n, function in enumerate(functions)
        ]
    }


def test_tool_calls_come_in_a_streamed_response() -> None:
    tools: Any = [{"type": "function", "strict": False, **FUNCTION}]
    called = Reply(" ", message=calls('{"at": "Paris"}', "{}"), finish_reason="tool_calls")
    with (
        one_agent(called) as (_, client),
        client.responses.stream(model="a", input="Look.", tools=tools) as events,
    ):
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        final = events.get_final_response()
    items = [item for item in final.output if item.type == "function_call"]
    expected = [("look", '{"at": "Paris"}'), ("look", "{}")]
    assert [(event.name, event.arguments) for event in done] == expected
    assert [(call.name, call.arguments) for call in items] == expected
    assert [call.call_id for call in items] == ["c0", "c1"]


def test_broken_arguments_of_a_tool_call_stay_as_the_model_wrote_them() -> None:
    broken = "{x: 1"
    called = Reply(" ", message=calls(broken), finish_reason="tool_calls")
    tools: Any = [TOOL]
    own: Any = [{"type": "function", **FUNCTION}]
    # The vote answers with a whole reply, which is then sent as a stream.
    for model in ("a", "a*2 > vote"):
        with one_agent(called) as (_, client):
            asked: Any = {"model": model, "messages": [USER], "tools": tools}
            message = client.chat.completions.create(**asked).choices[0].message.model_dump()
            assert [call["function"]["arguments"] for call in message["tool_calls"]] == [broken]
            deltas = [
                part.function.arguments or ""
                for chunk in client.chat.completions.create(**asked, stream=True)
                for part in chunk.choices[0].delta.tool_calls or ()
                if part.function
            ]
            assert "".join(deltas) == broken
            items = client.responses.create(model=model, input="Look.", tools=own).output
            assert [i.arguments for i in items if i.type == "function_call"] == [broken]

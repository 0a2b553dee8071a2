"""OpenAI's Responses API: its bodies read as chat requests, and answers and streams in its form."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moa_dspy.calls.lm.stream import arguments_of
from moa_dspy.dspy_internals import lm15
from moa_dspy.serve.chat import ChatAnswer
from moa_dspy.serve.limits import DETAILS, ApiError, check_values
from moa_dspy.serve.protocol import (
    ChatCall,
    details_of,
    read_chat,
    reply_text,
    usage_of,
)

_SAME: Final = frozenset(
    {
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream",
        "temperature",
        "top_p",
        "user",
        DETAILS,
    }
)
"""Keys with the same meaning as in chat completions."""

_OWN: Final = frozenset(
    {"input", "instructions", "max_output_tokens", "reasoning", "text", "tool_choice", "tools"}
)
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "background": (False,),
    "include": ([],),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
_DROPPED: Final = (("text", "verbosity"), ("reasoning", "summary"))
_NAMES: Final = {
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Names of this API for keys of a chat request."""

_ECHOED: Final = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")


def read_response(body: Mapping[str, Any]) -> ChatCall:
    """Return the call that the body of ``/v1/responses`` describes.

    Raises:
        ApiError: If the body is malformed, or asks for something that a mixture cannot do.
    """
    fields = {key: value for key, value in body.items() if value is not None}
    check_values(fields)
    kept = ["store"] if fields.pop("store", False) else []
    for key in set(fields) - _SAME - _OWN:
        if key not in _HARMLESS or fields[key] not in _HARMLESS[key]:
            raise ApiError(
                f"`{key}` is not supported: responses are not kept, and agents have no tools of "
                "their own.",
                param=key,
                code="unsupported_parameter",
            )
    chat = {key: value for key, value in fields.items() if key in _SAME}
    chat["messages"] = [*_instructions(fields), *_messages(fields.get("input"))]
    if "max_output_tokens" in fields:
        chat["max_tokens"] = fields["max_output_tokens"]
    chat.update(_tools(fields))
    chat.update(_format(fields))
    kept += [f"{name}.{key}" for name, key in _DROPPED if key in fields.get(name, {})]
    try:
        call = read_chat(chat)
    except ApiError as error:
        raise _renamed(error) from error
    return replace(call, not_passed_on=(*kept, *call.not_passed_on))


def _renamed(error: ApiError) -> ApiError:
    """Return an error of a chat request with the names of this API."""
    param = str(error.error["param"])
    if param not in _NAMES:
        return error
    # Without the number of the message, as an item may be only a part of one.
    text = re.sub(
        r"`?messages\[\d+\]\.?([\w.\[\]]*)`?",
        lambda found: f"`{found[1]}` of an item of `input`" if found[1] else "An item of `input`",
        str(error),
    )
    text = text.replace(param, _NAMES[param])
    return ApiError(text, param=_NAMES[param], code=error.error["code"])


def _instructions(fields: dict[str, Any]) -> list[dict[str, Any]]:
    text = fields.get("instructions", "")
    if not isinstance(text, str):
        raise ApiError("`instructions` must be a text.", param="instructions")
    return [{"role": "system", "content": text}] if text else []


def _messages(items: Any) -> list[dict[str, Any]]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise ApiError("`input` must be a text or a list of items.", param="input")
    messages: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, dict):
            raise ApiError("Each item of `input` must be an object.", param="input")
        message = _message(item)
        calls = message.get("tool_calls")
        if calls and messages and messages[-1]["role"] == "assistant":
            # Tool calls of one turn are separate items here, but one message in chat completions.
            last = messages[-1]
            messages[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), *calls]}
        else:
            messages.append(message)
    return messages


def _message(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": _content(item.get("content"))}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        content = _content(item.get("output"))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    raise ApiError(f"Items of type {kind!r:.100} are not supported.", param="input")


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [_block(block) for block in content]


def _block(block: Any) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": block.get("text")}
    if kind == "input_image" and block.get("image_url"):
        image = {"url": block["image_url"], "detail": block.get("detail")}
        details = {key: value for key, value in image.items() if value is not None}
        return {"type": "image_url", "image_url": details}
    raise ApiError(f"Content of type {kind!r:.100} is not supported.", param="input")


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "tools" in fields:
        if not isinstance(fields["tools"], list):
            raise ApiError("`tools` must be a list.", param="tools")
        options["tools"] = [_tool(tool) for tool in fields["tools"]]
    choice = fields.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return options if choice is None else {**options, "tool_choice": choice}


def _tool(tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise ApiError(f"Tools of type {kind!r:.100} are not supported.", param="tools")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _format(fields: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, keys in (("text", {"format", "verbosity"}), ("reasoning", {"effort", "summary"})):
        value = fields.get(name, {})
        if not isinstance(value, dict) or set(value) - keys:
            raise ApiError(f"`{name}` must have only {', '.join(sorted(keys))}.", param=name)
    format_ = fields.get("text", {}).get("format")
    if isinstance(format_, dict) and format_.get("type") == "json_schema":
        inner = {key: value for key, value in format_.items() if key != "type"}
        format_ = {"type": "json_schema", "json_schema": inner}
    if format_ is not None:
        options["response_format"] = format_
    if (effort := fields.get("reasoning", {}).get("effort")) is not None:
        options["reasoning_effort"] = effort
    return options


class ResponseWriter:
    """Writes one answer as a response, or as the events of its stream.

    Args:
        body: Body of the request, whose settings a response repeats.
        call: The request as it was read.
    """

    def __init__(self, body: Mapping[str, Any], call: ChatCall) -> None:
        self._body, self._call = body, call
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._n_events = 0
        self._open: dict[str, Any] | None = None
        self._written: list[dict[str, Any]] = []

    def whole(self, answer: ChatAnswer) -> dict[str, Any]:
        """Return the object ``response``."""
        return self._response(answer, _items(answer.reply))

    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the first events of a stream."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response(None, []))

    def delta(self, index: int, delta: Any) -> Iterator[dict[str, Any]]:
        """Yield the event of a piece of the answer; thoughts are not sent."""
        if isinstance(delta, lm15.TextDelta):
            if self._open is None or self._open["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            item = self._open or {}
            item["content"][0]["text"] += delta.text
            where = self._where(content_index=0)
            yield self._event("response.output_text.delta", delta=delta.text, logprobs=[], **where)
        elif isinstance(delta, lm15.ToolCallDelta):
            item = self._open or {}
            is_same = item.get("type") == "function_call" and delta.id in (None, item["call_id"])
            if not is_same:
                yield from self._close()
                yield from self._opened(_call_item(delta.id or "", delta.name or "", ""))
                item = self._open or {}
            item["arguments"] += delta.input
            name = "response.function_call_arguments.delta"
            yield self._event(name, delta=delta.input, **self._where())

    def end(self, index: int, answer: ChatAnswer) -> Iterator[dict[str, Any]]:
        """Yield the events that end the last item."""
        yield from self._close()

    def last(self, answers: Sequence[ChatAnswer]) -> Iterator[dict[str, Any]]:
        """Yield the event with the whole response."""
        response = self._response(answers[0], self._written)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the event of a stream that breaks off."""
        code = error.error["code"] or "server_error"
        response = self._response(None, self._written)
        response |= {"status": "failed", "error": {"code": code, "message": str(error)}}
        return self._event("response.failed", response=response)

    def _open_message(self) -> Iterator[dict[str, Any]]:
        item = _message_item("", status="in_progress")
        part = item["content"][0]
        yield from self._opened({**item, "content": []})
        self._open = item = {**(self._open or {}), "content": [part]}
        where = self._where(content_index=0)
        yield self._event("response.content_part.added", part=dict(part), **where)

    def _opened(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._open = {**item, "status": "in_progress"}
        where = {"output_index": len(self._written)}
        yield self._event("response.output_item.added", item=dict(self._open), **where)

    def _close(self) -> Iterator[dict[str, Any]]:
        item = self._open
        if item is None:
            return
        if item["type"] == "message":
            part, where = item["content"][0], self._where(content_index=0)
            text = {"text": part["text"], "logprobs": []}
            yield self._event("response.output_text.done", **text, **where)
            yield self._event("response.content_part.done", part=part, **where)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **done, **self._where())
        item = {**item, "status": "completed"}
        yield self._event("response.output_item.done", item=item, output_index=len(self._written))
        self._written.append(item)
        self._open = None

    def _where(self, **rest: int) -> dict[str, Any]:
        item = self._open or {}
        return {"item_id": item["id"], "output_index": len(self._written), **rest}

    def _event(self, kind: str, /, **rest: Any) -> dict[str, Any]:
        number, self._n_events = self._n_events, self._n_events + 1
        return {"type": kind, "sequence_number": number, **rest}

    def _response(self, answer: ChatAnswer | None, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        is_cut = answer is not None and answer.reply.finish_reason in ("length", "content_filter")
        reason = "max_output_tokens" if answer and answer.reply.finish_reason == "length" else None
        status = "in_progress" if answer is None else "incomplete" if is_cut else "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": body.get("model"),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason or "content_filter"} if is_cut else None,
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "store": False,
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            **{name: body.get(name) for name in _ECHOED},
            **({} if answer is None else details_of(self._call, [answer])),
        }


def _items(reply: Any) -> list[dict[str, Any]]:
    text = reply_text(reply, lm15.TextPart) or reply_text(reply, lm15.RefusalPart)
    items = [_message_item(text or "")] if text or not reply.tool_calls else []
    return [*items, *(_call_item(c.id, c.name, arguments_of(c)) for c in reply.tool_calls)]


def _message_item(text: str, *, status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
    return {**item, "status": status, "content": [part]}


def _call_item(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": call_id}
    return {**item, "name": name, "arguments": arguments, "status": "completed"}


def _usage(answer: ChatAnswer) -> dict[str, Any]:
    counted = usage_of([answer])
    # OpenAI's clients need these details as numbers; cached tokens are not known here.
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }

"""OpenAI's chat completions and completions: bodies read as requests, answers written as theirs.

What a mixture cannot honour is an ``ApiError``, or a name in ``not_passed_on``; nothing is dropped
without a word.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moa_dspy.calls.lm.stream import arguments_of
from moa_dspy.dspy_internals import lm15
from moa_dspy.serve.chat import ChatAnswer
from moa_dspy.serve.limits import (
    DETAILS,
    MOST_COMPLETIONS,
    ApiError,
    check_values,
    unknown_key,
)

_NOT_PASSED_ON: Final = (
    "metadata",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
"""Keys that do not affect the answer, or that only one vendor knows."""

_REFUSED: Final = {
    "audio": "an answer of a mixture is text",
    "logprobs": "an answer of several models has no log probabilities",
    "top_logprobs": "an answer of several models has no log probabilities",
    "top_k": "many endpoints of agents do not accept it",
    "web_search_options": "agents cannot search; give a tool",
    "provider": "the pool sets the endpoints of the agents",
}
_SAMPLING: Final = (
    "frequency_penalty",
    "logit_bias",
    "max_tokens",
    "presence_penalty",
    "seed",
    "stop",
    "temperature",
    "top_p",
)
_PASSED_ON: Final = (
    *_SAMPLING,
    "function_call",
    "functions",
    "max_completion_tokens",
    "messages",
    "model",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
)
_OWN_KEYS: Final = (DETAILS, "modalities", "n", "stream", "stream_options")
_PARTS: Final = ("text", "image_url", "refusal")
_URLS: Final = ("https://", "http://", "data:")
_FINISH: Final = {"tool_call": "tool_calls", "error": "stop"}


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request of a client.

    Attributes:
        requests: One ``dspy.lm15.Request`` per answer.
        is_streamed: Whether the client wants chunks.
        has_usage_chunk: Whether the last chunk has the number of tokens.
        has_details: Whether the client wants each agent's response.
        not_passed_on: Keys of the body that are not sent to agents.
    """

    requests: tuple[Any, ...]
    is_streamed: bool = False
    has_usage_chunk: bool = False
    has_details: bool = False
    not_passed_on: tuple[str, ...] = ()


def read_chat(body: Mapping[str, Any]) -> ChatCall:
    """Return the call that the body of ``/v1/chat/completions`` describes.

    Raises:
        ApiError: If the body is malformed, or asks for something that a mixture cannot do.
    """
    fields = {key: value for key, value in body.items() if value is not None}
    check_values(fields)
    options = _stream_options(fields)
    has_details, is_streamed = fields.pop(DETAILS, False), fields.pop("stream", False)
    n = fields.pop("n", 1)
    fields.pop("modalities", None)
    ignored = [key for key in _NOT_PASSED_ON if key in fields]
    fields = {key: value for key, value in fields.items() if key not in ignored}
    _refuse(fields)
    _check_messages(fields.get("messages"))
    fields, loosened = _without_strict_tools(fields)
    try:
        request = lm15.request_from_openai_chat(fields)
    except (lm15.UnsupportedFeatureError, TypeError, ValueError, OverflowError) as error:
        raise _readable(error, fields) from error
    return ChatCall(
        (request,) * n,
        is_streamed,
        bool(options.get("include_usage")),
        has_details,
        (*ignored, *loosened),
    )


def _readable(error: Exception, fields: Mapping[str, Any]) -> ApiError:
    """Return an error of DSPy's reader, which begins with the place of what is wrong."""
    text = str(error).partition(" — ")[0].removeprefix("openai-chat: ") or type(error).__name__
    place = re.match(r"\w+", text)
    is_unsupported = isinstance(error, lm15.UnsupportedFeatureError)
    return ApiError(
        text.replace("cannot be carried by a canonical Request", "is not supported"),
        param=place[0] if place and place[0] in fields else None,
        code="unsupported_parameter" if is_unsupported else None,
    )


def _stream_options(fields: dict[str, Any]) -> dict[str, Any]:
    options = fields.pop("stream_options", {})
    if not isinstance(options, dict):
        raise ApiError("`stream_options` must be an object.", param="stream_options")
    if options and fields.get("stream") is not True:
        raise ApiError("`stream_options` needs `stream`.", param="stream_options")
    if unknown := set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(
            f"`stream_options` has unknown {', '.join(sorted(unknown))}.", param="stream_options"
        )
    return options


def _refuse(fields: dict[str, Any]) -> None:
    for key, reason in _REFUSED.items():
        if fields.pop(key, False):
            raise ApiError(
                f"`{key}` is not supported: {reason}.", param=key, code="unsupported_parameter"
            )
    if unknown := [key for key in fields if key not in _PASSED_ON]:
        raise unknown_key(unknown[0], (*_PASSED_ON, *_OWN_KEYS, *_NOT_PASSED_ON))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ApiError("`messages` must be a list with at least one message.", param="messages")
    for n, row in enumerate(messages):
        if not isinstance(row, dict):
            raise ApiError(
                f"`messages[{n}]` must be an object, but is {row!r:.100}.", param="messages"
            )
        content = row.get("content")
        if content == []:
            raise ApiError(f"`messages[{n}].content` must not be empty.", param="messages")
        for block in content if isinstance(content, list) else ():
            _check_part(block, f"messages[{n}].content")
    if all(row.get("role") in ("system", "developer") for row in messages):
        raise ApiError("`messages` must hold more than instructions.", param="messages")


def _check_part(block: Any, place: str) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in _PARTS:
        raise ApiError(
            f"`{place}` has a part of type {kind!r:.100}, which is not supported; it can have "
            "text and image_url.",
            param="messages",
            code="unsupported_parameter",
        )
    image = block.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if kind == "image_url" and not (isinstance(url, str) and url.lower().startswith(_URLS)):
        raise ApiError(
            f"An image's `url` must begin with {', '.join(_URLS)}, but is {url!r:.100}.",
            param="messages",
        )


def _without_strict_tools(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the body without ``strict`` in its functions, which endpoints of agents may lack."""
    tools, is_strict = fields.get("tools"), False
    if not isinstance(tools, list):
        return fields, []
    plain_tools = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and "strict" in function:
            is_strict = is_strict or bool(function["strict"])
            tool = {**tool, "function": {k: v for k, v in function.items() if k != "strict"}}
        plain_tools.append(tool)
    return {**fields, "tools": plain_tools}, ["tools.function.strict"] if is_strict else []


_PLAIN_COMPLETION: Final = frozenset(
    {*_SAMPLING, DETAILS, "model", "n", "prompt", "stream", "stream_options", "user"}
)
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (),
}


def read_completion(body: Mapping[str, Any]) -> ChatCall:
    """Return the call that the body of ``/v1/completions`` describes; prompts are user messages.

    Raises:
        ApiError: As in ``read_chat``.
    """
    fields = {key: value for key, value in body.items() if value is not None}
    for key in set(fields) - _PLAIN_COMPLETION:
        if key not in _HARMLESS:
            raise unknown_key(key, _PLAIN_COMPLETION)
        if fields.pop(key) not in _HARMLESS[key]:
            raise ApiError(f"`{key}` is not supported.", param=key, code="unsupported_parameter")
    prompts = fields.pop("prompt", None)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError("`prompt` must be a text or a list of texts.", param="prompt")
    if not 1 <= len(prompts) <= MOST_COMPLETIONS:
        raise ApiError(f"`prompt` must hold 1 to {MOST_COMPLETIONS} texts.", param="prompt")
    calls = [
        read_chat({**fields, "messages": [{"role": "user", "content": prompt}]})
        for prompt in prompts
    ]
    first, requests = calls[0], tuple(request for call in calls for request in call.requests)
    if len(requests) > MOST_COMPLETIONS:
        raise ApiError(f"`prompt` times `n` must be at most {MOST_COMPLETIONS}.", param="n")
    return replace(first, requests=requests)


@dataclass(frozen=True, slots=True)
class Head:
    """The id, time and model's name that every object of one response has."""

    model: str
    prefix: str = "chatcmpl"
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def of(self, kind: str, **rest: Any) -> dict[str, Any]:
        """Return an object of this response."""
        head = {"id": f"{self.prefix}-{self.number}", "object": kind, "created": self.created}
        return {**head, "model": self.model, **rest}


def usage_of(answers: Iterable[ChatAnswer]) -> dict[str, int]:
    """Return the tokens of all calls of all answers."""
    counted = [answer.usage for answer in answers]
    prompt = sum(usage.input_tokens or 0 for usage in counted)
    completion = sum(usage.output_tokens or 0 for usage in counted)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def details_of(call: ChatCall, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Return ``moa``, each agent's response, if the client wants it."""
    if not call.has_details:
        return {}
    return {
        "moa": [{**answer.facts, "not_passed_on": list(call.not_passed_on)} for answer in answers]
    }


def finish_reason(reply: Any) -> str:
    """Return why a reply ended, in OpenAI's words."""
    reason: str = reply.finish_reason
    return _FINISH.get(reason, reason)


def reply_text(reply: Any, kind: Any) -> str | None:
    """Return the joined texts of one kind of parts in the reply; None if there are none."""
    return "".join(part.text for part in reply.message.parts_of(kind)) or None


def chat_completion(head: Head, call: ChatCall, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Return the object ``chat.completion``."""
    choices = [
        {
            "index": n,
            "message": _message(answer.reply),
            "finish_reason": finish_reason(answer.reply),
            "logprobs": None,
        }
        for n, answer in enumerate(answers)
    ]
    rest = details_of(call, answers)
    return head.of("chat.completion", choices=choices, usage=usage_of(answers), **rest)


def _message(reply: Any) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": arguments_of(call)},
        }
        for call in reply.tool_calls
    ]
    text, refusal = reply_text(reply, lm15.TextPart), reply_text(reply, lm15.RefusalPart)
    content = text if text or calls or refusal else ""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {**message, "tool_calls": calls} if calls else message


def text_completion(head: Head, call: ChatCall, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Return the object ``text_completion``."""
    choices = [
        {
            "index": n,
            "text": reply_text(answer.reply, lm15.TextPart) or "",
            "finish_reason": finish_reason(answer.reply),
            "logprobs": None,
        }
        for n, answer in enumerate(answers)
    ]
    rest = details_of(call, answers)
    return head.of("text_completion", choices=choices, usage=usage_of(answers), **rest)


class ChatChunks:
    """Writes the events of answers as objects ``chat.completion.chunk``."""

    kind = "chat.completion.chunk"

    def __init__(self, head: Head, call: ChatCall) -> None:
        self._head, self._call = head, call
        self._tools: dict[tuple[int, int], int] = {}

    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the first chunk of an answer."""
        yield self._chunk(self._choice(index, {"role": "assistant", "content": ""}))

    def delta(self, index: int, delta: Any) -> Iterator[dict[str, Any]]:
        """Yield the chunk of a piece of the answer; thoughts are not sent."""
        if isinstance(delta, lm15.TextDelta):
            yield self._chunk(self._choice(index, {"content": delta.text}))
        elif isinstance(delta, lm15.ToolCallDelta):
            yield self._chunk(self._choice(index, {"tool_calls": [self._tool(index, delta)]}))

    def end(self, index: int, answer: ChatAnswer) -> Iterator[dict[str, Any]]:
        """Yield the last chunk of an answer."""
        yield self._chunk(self._choice(index, {}, finish_reason(answer.reply)))

    def last(self, answers: Sequence[ChatAnswer]) -> Iterator[dict[str, Any]]:
        """Yield the chunk after all answers: usage and details, if the client wants them."""
        rest = details_of(self._call, answers)
        if self._call.has_usage_chunk:
            yield self._head.of(self.kind, choices=[], usage=usage_of(answers), **rest)
        elif rest:
            yield self._head.of(self.kind, choices=[], **rest)

    def _tool(self, index: int, delta: Any) -> dict[str, Any]:
        key = (index, delta.part_index)
        is_new = key not in self._tools
        number = self._tools.setdefault(key, sum(1 for choice, _ in self._tools if choice == index))
        function = {"arguments": delta.input}
        if not is_new:
            return {"index": number, "function": function}
        named = {"name": delta.name or "", **function}
        return {"index": number, "id": delta.id, "type": "function", "function": named}

    def _choice(
        self, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self._call.has_usage_chunk else {}
        return self._head.of(self.kind, choices=[choice], **usage)


class TextChunks(ChatChunks):
    """Writes the events of answers as pieces of a ``text_completion``."""

    kind = "text_completion"

    def begin(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield nothing, as a text completion has no first chunk."""
        yield from ()

    def delta(self, index: int, delta: Any) -> Iterator[dict[str, Any]]:
        """Yield a piece of the text."""
        if isinstance(delta, lm15.TextDelta):
            yield self._chunk(self._choice(index, {"text": delta.text}))

    def _choice(
        self, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        return {"text": "", **delta, "index": index, "finish_reason": reason, "logprobs": None}

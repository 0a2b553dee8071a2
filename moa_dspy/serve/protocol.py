"""OpenAI's chat completions and completions: bodies read as requests, answers written as theirs.

What a mixture cannot honour is an ``ApiError``, or a name in ``not_passed_on``; nothing is dropped
without a word.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moa_dspy.dspy_internals import lm15
from moa_dspy.serve.chat import ChatAnswer

MOST_COMPLETIONS: Final = 16
"""Answers to one request, ``n``."""

DETAILS: Final = "moa_details"
"""Body flag, and ``X-Moa-Details`` the header, that asks for each agent's response."""

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
    "web_search_options": "agents cannot search; give a tool",
    "provider": "the pool sets the endpoints of the agents",
}
_URLS: Final = ("https://", "http://", "data:")
_FINISH: Final = {"tool_call": "tool_calls", "error": "stop"}


class ApiError(Exception):
    """An error in OpenAI's shape.

    Args:
        message: For people.
        status: HTTP status.
        param: The key of the body that is wrong.
        code: Identifies the error, for programs.
        kind: OpenAI's ``type``; default: by the status.
        headers: Headers of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {"error": self.error}


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
    has_details = _flag(fields, DETAILS)
    n = _count(fields)
    options = _stream_options(fields)
    ignored = [key for key in _NOT_PASSED_ON if key in fields]
    fields = {key: value for key, value in fields.items() if key not in ignored}
    _refuse(fields)
    if fields.pop("modalities", ["text"]) != ["text"]:
        raise ApiError("`modalities` must be ['text'].", param="modalities")
    _check_messages(fields.get("messages"))
    fields, loosened = _without_strict_tools(fields)
    try:
        request = lm15.request_from_openai_chat(fields)
    except lm15.UnsupportedFeatureError as error:
        raise ApiError(_readable(error), code="unsupported_parameter") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ApiError(_readable(error)) from error
    return ChatCall(
        (request,) * n,
        _flag(fields, "stream"),
        bool(options.get("include_usage")),
        has_details,
        (*ignored, *loosened),
    )


def _readable(error: Exception) -> str:
    return str(error).partition(" — ")[0].removeprefix("openai-chat: ") or type(error).__name__


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"`{name}` must be true or false, but is {value!r:.100}.", param=name)
    return value


def _count(fields: dict[str, Any]) -> int:
    n = fields.pop("n", 1)
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_COMPLETIONS:
        raise ApiError(
            f"`n` must be a number from 1 to {MOST_COMPLETIONS}, but is {n!r:.100}.", param="n"
        )
    return n


def _stream_options(fields: dict[str, Any]) -> dict[str, Any]:
    options = fields.pop("stream_options", {})
    if not isinstance(options, dict):
        raise ApiError("`stream_options` must be an object.", param="stream_options")
    if options and fields.get("stream") is not True:
        raise ApiError("`stream_options` needs `stream`.", param="stream_options")
    if unknown := set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(f"`stream_options` has unknown {', '.join(sorted(unknown))}.")
    return options


def _refuse(fields: dict[str, Any]) -> None:
    for key, reason in _REFUSED.items():
        if fields.pop(key, False):
            raise ApiError(
                f"`{key}` is not supported: {reason}.", param=key, code="unsupported_parameter"
            )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ApiError("`messages` must be a list with at least one message.", param="messages")
    roles = [row.get("role") for row in messages if isinstance(row, dict)]
    if all(role in ("system", "developer") for role in roles):
        raise ApiError("`messages` must hold more than instructions.", param="messages")
    for url in _urls(messages):
        if not isinstance(url, str) or not url.lower().startswith(_URLS):
            raise ApiError(
                f"An image's `url` must begin with {', '.join(_URLS)}.", param="messages"
            )


def _urls(messages: list[Any]) -> Iterator[Any]:
    contents = [row.get("content") for row in messages if isinstance(row, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    for block in blocks:
        image = block.get("image_url") if isinstance(block, dict) else None
        if image is not None:
            yield image.get("url") if isinstance(image, dict) else image


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
    {
        "frequency_penalty",
        "logit_bias",
        "max_tokens",
        "model",
        "n",
        "presence_penalty",
        "prompt",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
        DETAILS,
    }
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
            raise ApiError(f"Unknown parameter `{key}`.", param=key, code="unknown_parameter")
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
            "function": {"name": call.name, "arguments": json.dumps(call.input)},
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

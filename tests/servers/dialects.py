"""Replies in the protocols of Anthropic, Gemini and Ollama, for the chat server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dialect:
    """A protocol.

    Attributes:
        whole: Makes a reply of the server's its content.
        frames: Makes it a stream, the text in two halves.
    """

    whole: Callable[[Any], dict[str, Any]]
    frames: Callable[[Any], Sequence[bytes]]


def dialect_of(path: str) -> Dialect | None:
    """Return the protocol that is spoken at ``path``; None is OpenAI's chat completions."""
    if path.endswith("/messages"):
        return Dialect(_anthropic, _anthropic_frames)
    if "enerateContent" in path:
        return Dialect(_gemini, _gemini_frames)
    if path.endswith("/api/chat"):
        return Dialect(_ollama, _ollama_lines)
    return None


def _event(data: dict[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _halves(reply: Any) -> list[str]:
    middle = len(reply.text) // 2
    return [reply.text[:middle], reply.text[middle:]]


_STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}


def _anthropic_usage(reply: Any) -> dict[str, Any]:
    if reply.usage is ... or reply.usage is None:
        return {}
    usage = dict(reply.usage)
    return {
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        **{name: n for name, n in usage.items() if name.startswith("cache_")},
    }


def _anthropic(reply: Any) -> dict[str, Any]:
    thought = {"type": "thinking", "thinking": reply.thinking, "signature": "s"}
    content = [*([thought] if reply.thinking else []), {"type": "text", "text": reply.text}]
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "x",
        "content": content,
        "stop_reason": _STOPS[reply.finish_reason],
        "stop_sequence": None,
        "usage": _anthropic_usage(reply),
    }


def _anthropic_frames(reply: Any) -> list[bytes]:
    usage = _anthropic_usage(reply)
    start = {**_anthropic(reply), "content": [], "stop_reason": None, "usage": usage}
    frames = [_event({"type": "message_start", "message": start}, "message_start")]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.thinking:
        thought = {"type": "thinking_delta", "thinking": reply.thinking}
        signed = {"type": "signature_delta", "signature": "s"}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [thought, signed]))
    pieces = [{"type": "text_delta", "text": half} for half in _halves(reply)]
    blocks.append(({"type": "text", "text": ""}, pieces))
    for index, (block, deltas) in enumerate(blocks):
        begun = {"type": "content_block_start", "index": index, "content_block": block}
        frames.append(_event(begun, "content_block_start"))
        for delta in deltas:
            piece = {"type": "content_block_delta", "index": index, "delta": delta}
            frames.append(_event(piece, "content_block_delta"))
        frames.append(_event({"type": "content_block_stop", "index": index}, "content_block_stop"))
    ended = {"stop_reason": _STOPS[reply.finish_reason], "stop_sequence": None}
    last = {"type": "message_delta", "delta": ended, "usage": usage}
    return [
        *frames,
        _event(last, "message_delta"),
        _event({"type": "message_stop"}, "message_stop"),
    ]


_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _gemini(reply: Any, text: str | None = None, *, has_ended: bool = True) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": reply.text if text is None else text}]
    if reply.thinking and (text is None or not has_ended):
        parts.insert(0, {"text": reply.thinking, "thought": True})
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if has_ended:
        candidate["finishReason"] = _REASONS[reply.finish_reason]
    found: dict[str, Any] = {"candidates": [candidate], "modelVersion": "x", "responseId": "r1"}
    if reply.usage is ... or reply.usage is None:
        return found
    names = ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    given = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: dict(reply.usage).get(key) for name, key in zip(names, given, strict=True)}
    return {**found, "usageMetadata": usage}


def _gemini_frames(reply: Any) -> list[bytes]:
    first, second = _halves(reply)
    return [_event(_gemini(reply, first, has_ended=False)), _event(_gemini(reply, second))]


def _ollama(reply: Any) -> dict[str, Any]:
    usage = {} if reply.usage is ... else dict(reply.usage or {})
    counts = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
    thought = {"thinking": reply.thinking} if reply.thinking else {}
    return {
        "model": "x",
        "created_at": "2025-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": reply.text, **thought},
        "done": True,
        "done_reason": reply.finish_reason,
        **{name: usage[key] for name, key in counts.items() if key in usage},
    }


def _ollama_lines(reply: Any) -> list[bytes]:
    first, second = _halves(reply)
    message = {**_ollama(reply)["message"], "content": first}
    begun = {**_ollama(reply), "message": message, "done": False}
    ended = {**_ollama(reply), "message": {"role": "assistant", "content": second}}
    return [json.dumps(line).encode() + b"\n" for line in (begun, ended)]

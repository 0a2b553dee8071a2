"""Responses of DSPy's clients: as plain data to be stored, and with thoughts set apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from moa_dspy.calls.reply import BROKEN_OFF, SplitReply, split_reply
from moa_dspy.dspy_internals import lm15, response_from_dict, response_to_dict

_ANSWERS: Final = ("candidates", "choices", "content", "output")
"""Where the vendors' replies hold the answer."""


def readable(response: Any) -> dict[str, Any]:
    """Return a response as plain data, without its id.

    Raises:
        ServerError: The endpoint broke off; it is worth another attempt.
        ProviderError: The reply held no answer; lm15 would make an empty one of it.
    """
    check_ended(response.provider_data, response.finish_reason)
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    is_empty = not text and all(isinstance(p, lm15.TextPart) for p in response.message.parts)
    if is_empty and response.provider_data is not None and not _holds(response.provider_data):
        raise lm15.ProviderError(_no_answer(response.provider_data))
    # The endpoint's request id changes from run to run and says nothing; equal runs, equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def check_ended(reply: Any, finish_reason: str | None = None) -> None:
    """Raise if the endpoint says, in a reply of status 200, that it broke off.

    Args:
        reply: What the endpoint sent, or one frame of a stream.
        finish_reason: As the client reads it.

    Raises:
        ServerError: With the endpoint's own words.
    """
    choice = _first_choice(reply)
    given = choice.get("finish_reason")
    reason = given if given in BROKEN_OFF else finish_reason
    if reason not in BROKEN_OFF and not choice.get("error"):
        return
    said = choice.get("error")
    words = (said.get("message") if isinstance(said, Mapping) else said) or "no reason given"
    raise lm15.ServerError(
        f"The endpoint broke off its answer (finish_reason {reason or given!r}): {words}"
    )


def _first_choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _no_answer(reply: Mapping[str, Any]) -> str:
    said = reply.get("error")
    return f"The endpoint's reply holds no answer{f': {said}' if said else '.'}"


def _holds(reply: Mapping[str, Any]) -> bool:
    """Whether there is an answer in a reply whose text is empty: an empty one is one as well."""
    choices = reply.get("choices")
    if choices:
        (first, *_) = choices
        message = first.get("message", first.get("delta")) if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else 0
        return content is None or isinstance(content, str | list)
    return any(reply.get(name) for name in _ANSWERS)


def stored_response(text: str, *, request: str) -> tuple[Any, bool]:
    """Return the response of a stored reply, thoughts set apart.

    Args:
        text: Canonical JSON of the response.
        request: Canonical JSON of the request.

    Returns:
        The response, and whether its thought had a closing tag only.
    """
    response, split = with_thought(response_from_dict(json.loads(text)), request=request)
    return response, split is not None and split.is_unopened


def with_thought(response: Any, *, request: str = "") -> tuple[Any, SplitReply | None]:
    """Return ``response`` with the thought in its text as a part of its own, if there is one.

    Args:
        response: As a client made it.
        request: As of ``split_reply``.

    Returns:
        The response, and how its text was split; None where it has no text.
    """
    parts = list(response.message.parts)
    at = next((n for n, part in enumerate(parts) if isinstance(part, lm15.TextPart)), None)
    if at is None:
        return response, None
    split = split_reply(parts[at].text, request=request)
    if not split.thought and split.answer == parts[at].text:
        return response, split
    thought = [lm15.ThinkingPart(text=split.thought)] if split.thought else []
    answer = [replace(parts[at], text=split.answer)] if split.answer else []
    kept = [*parts[:at], *thought, *answer, *parts[at + 1 :]] or [lm15.TextPart(text="")]
    return replace(response, message=replace(response.message, parts=tuple(kept))), split

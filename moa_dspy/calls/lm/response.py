"""Replies in a regular form for clients: repaired bytes, separated thoughts, masked keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from moa_dspy.calls.call import regular_choices, without_odd_usage
from moa_dspy.calls.reply import (
    REFUSAL,
    SplitReply,
    split_reply,
    why_broken_off,
)
from moa_dspy.calls.request import AgentCalls, out_of_files
from moa_dspy.dspy_internals import lm15, response_from_dict, response_to_dict
from moa_dspy.errors import MoaError, all_links
from moa_dspy.vendors import (
    decoded,
    opens_thought,
    regular_ending,
    server_words,
    shown_body,
)

_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""Errors that a client's parser raises at JSON of an unexpected shape."""


@contextmanager
def mask_keys(caller: AgentCalls) -> Iterator[None]:
    """Make the errors of an endpoint safe and readable for display.

    Keys are masked, as a server may quote the request's header; an error of a client's parser
    becomes a ProviderError that says that the reply could not be read.

    Raises:
        CallError: This process may open no more files, which is not a failure of the model.
    """
    try:
        yield
    except Exception as error:
        for link in all_links(error):
            _mask(link, caller.without_secrets)
        if full := out_of_files(error):
            raise full from error
        _name_endpoint(error, caller.endpoint)
        if isinstance(error, _UNREADABLE) and not isinstance(error, MoaError):
            reason = f"{type(error).__name__}: {error}"
            raise lm15.ProviderError(f"The endpoint's reply cannot be read: {reason}") from error
        raise


def _mask(error: BaseException, mask: Callable[[str], str]) -> None:
    def shown(text: str) -> str:
        return mask(_GUIDANCE.sub("", text))

    error.args = tuple(shown(a) if isinstance(a, str) else a for a in error.args)
    for name, value in list(vars(error).items()):
        if isinstance(value, str):
            setattr(error, name, shown(value))


def _name_endpoint(error: Exception, url: str) -> None:
    """Add the requested address to an error that lacks it, such as a timeout.

    For a failed connection, the operating system's message is added too if the client dropped it.
    """
    if not isinstance(error, lm15.LM15Error) or "://" not in url or "://" in str(error.message):
        return
    causes = [str(link) for link in all_links(error) if isinstance(link, OSError)]
    lost = causes[-1] if causes and "onnection error" in str(error.message) else ""
    error.message = " ".join(filter(None, (str(error.message), lost, f"(asked: {url})")))
    error.args = (error.message,)


_GUIDANCE: Final = re.compile(r"\n\n  (?:credential came from|To fix):.*", re.DOTALL)
"""Advice that clients append to a server's message; it names the clients' own settings."""


_ANSWERS: Final = ("candidates", "choices", "content", "output")
"""Keys of the answer in the vendors' replies."""


def readable(response: Any, *, has_ended: bool = False) -> dict[str, Any]:
    """Return a response as plain data, without its id.

    Args:
        response: The response of a client.
        has_ended: Whether it was a stream that ended, so that an empty text is a valid answer.

    Raises:
        ServerError: The endpoint failed during the reply; another attempt may succeed.
        ProviderError: The reply held no answer; lm15 would turn it into an empty answer.
    """
    check_ended(response.provider_data, response.finish_reason)
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    is_empty = not text and all(isinstance(p, lm15.TextPart) for p in response.message.parts)
    reply = None if has_ended else response.provider_data
    if is_empty and reply is not None and not _holds(reply):
        raise lm15.ProviderError(_no_answer(reply))
    # The endpoint's request id changes from run to run; without it equal runs give equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def check_ended(reply: Any, finish_reason: str | None = None) -> None:
    """Raise if a reply of status 200 says that the endpoint failed during it.

    Args:
        reply: The endpoint's reply.
        finish_reason: The reason to end as read by the client.

    Raises:
        ServerError: With the endpoint's message.
    """
    if (reason := why_broken_off(reply, finish_reason)) is not None:
        raise lm15.ServerError(reason)


def _no_answer(reply: Mapping[str, Any]) -> str:
    error = reply.get("error")
    return f"The endpoint's reply holds no answer{f': {error}' if error else '.'}"


def _holds(reply: Mapping[str, Any]) -> bool:
    """Return whether a reply with an empty text holds an answer; an empty answer is valid."""
    choices = reply.get("choices")
    if choices:
        (first, *_) = choices
        message = first.get("message", first.get("delta")) if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else 0
        return content is None or isinstance(content, str | list)
    # Anthropic's refusal may have no content, but has a stop reason.
    return bool(reply.get("stop_reason")) or any(reply.get(name) for name in _ANSWERS)


_ODD: Final = re.compile(
    rb'sage|error|"content":\s*\[|logprob|refusal"|finish_reason":\s*"(?!stop|length|tool)'
    rb'|finishReason":\s*"(?!STOP|MAX)|blockReason|_window_exceeded"'
)
"""Strings of which an event must contain at least one to need parsing."""


_ENDS: Final = re.compile(rb'finish_reason":\s*"|\[DONE\]')


class RegularReply:
    """Converts the body of one reply, as it arrives, into a form that clients can read.

    JSON is held back until it is complete; a stream of events is passed on line by line. If a
    stream was requested and the server sent JSON, the JSON is converted to events.

    Args:
        status: HTTP status.
        url: Requested address; a query in it is not shown.
        location: Target of a redirect.
        wants_events: Whether a stream was requested.
        tells_errors: Whether ``status`` also becomes an error status for errors that arrived with
            status 200, for a client that recognises errors by status only.
        is_for_litellm: Whether LiteLLM reads the reply, instead of DSPy's own client.

    Attributes:
        status: Status of the converted reply; known when the body has ended.
    """

    def __init__(
        self,
        status: int,
        url: str,
        *,
        location: str | None = None,
        wants_events: bool = False,
        tells_errors: bool = False,
        is_for_litellm: bool = False,
    ) -> None:
        self.status = 400 if 300 <= status < 400 else status
        self._given, self._url, self._location = status, url.partition("?")[0], location
        self.wants_events, self._tells_errors = wants_events, tells_errors
        self._is_for_litellm = is_for_litellm
        self._begun_usage: Any = None
        self._held, self._event, self._refusal = b"", b"", ""
        self._is_chat = self._url.endswith("/chat/completions")
        self._has_ended = not (wants_events and self._is_chat)

    @property
    def is_error(self) -> bool:
        """True if the status is that of an error."""
        return self.status >= 400

    def take(self, chunk: bytes) -> bytes:
        """Return the bytes that can be passed on after ``chunk``."""
        self._held += chunk
        if self.is_error or self._held.lstrip()[:1] in (b"", b"{", b"[", b"<"):
            return b""
        lines, newline, self._held = self._held.rpartition(b"\n")
        return b"\n".join(map(self._line, lines.split(b"\n"))) + newline if newline else b""

    def rest(self) -> bytes:
        """Return the bytes that were held back, at the end of the body."""
        held, self._held = self._held, b""
        if self.is_error:
            return self._refused(held)
        if held.lstrip()[:1] in (b"{", b"[", b"<"):
            return self._whole(held)
        last = self._line(held)
        if self._has_ended:
            return last
        words = f"The stream broke off before the answer had ended (from {self._url})"
        return last + b"\n\n" + _event({"error": {"message": words, "type": "server_error"}})

    def _refused(self, body: bytes) -> bytes:
        data, text = _json(body), decoded(body)
        details = server_words(text)
        words = details["message"] or shown_body(text) or "The server gives no reason"
        if self._given != self.status:
            words = (
                f"The server redirects to {self._location or 'an address that it does not name'}"
            )
        message = f"{words} ({self._where()})"
        if isinstance(data, dict) and isinstance(error := data.get("error"), Mapping):
            return _dumped({**data, "error": {**error, **details, "message": message}})
        return _dumped({"error": {**details, "message": message}})

    def _where(self) -> str:
        # LiteLLM recognises Gemini's errors by digits in their text, and a port may look like a
        # status.
        is_told = self._is_chat or not self._is_for_litellm
        where = f" from {self._url}" if is_told else ""
        return f"HTTP {self._given}{where}{_hint(self._given, self._url)}"

    def _whole(self, body: bytes) -> bytes:
        data = _json(body)
        broken = why_broken_off(data) if self._tells_errors else None
        tells = self.wants_events or self._tells_errors
        if broken or (tells and self._lacks_answer(data)):
            details = {"type": "server_error", "message": broken} if broken else self._words(body)
            if self._tells_errors:
                self.status = 502
            error = {"error": details}
            return _event(error) if self.wants_events else _dumped(error)
        if not isinstance(data, dict):
            return body
        if self.wants_events and "choices" in data:
            choices = [{**item, "delta": item.get("message")} for item in data["choices"] if item]
            return _event(self._frame({**data, "choices": choices})) + b"data: [DONE]\n\n"
        regular = without_odd_usage(self._regular(data, "message"))
        return body if regular == data else _dumped(regular)

    def _lacks_answer(self, data: Any) -> bool:
        if self._is_chat:
            return not (isinstance(data, dict) and isinstance(data.get("choices"), list))
        return isinstance(data, dict) and bool(data.get("error"))

    def _words(self, body: bytes) -> dict[str, Any]:
        text = decoded(body)
        details, shown = server_words(text), shown_body(text)
        words = details["message"] or f"The reply holds no answer{f': {shown}' if shown else ''}"
        return {**details, "message": f"{words} (from {self._url})"}

    def _line(self, line: bytes) -> bytes:
        name, _, rest = line.partition(b":")
        if name == b"event":
            self._event = rest.strip()
        self._has_ended = self._has_ended or bool(_ENDS.search(rest))
        is_looked_at = self._event == b"error" or self._refusal or _ODD.search(rest)
        if name != b"data" or not is_looked_at:
            return line
        data = _json(rest)
        if not isinstance(data, dict):
            return line
        regular = self._frame(data)
        return line if regular == data else b"data: " + _dumped(regular)

    def _frame(self, data: dict[str, Any]) -> dict[str, Any]:
        error = data.get("error")
        # Events of OpenAI's Responses API have a `type` and their own form of error.
        if error or (self._event == b"error" and "type" not in data):
            self._has_ended = True
            kept = data if isinstance(error, Mapping) else {}
            return {**kept, "error": self._words(_dumped(data))}
        if (broken := why_broken_off(data)) is not None:
            return {"error": {"message": broken, "type": "server_error"}}
        return self._with_refusal(without_odd_usage(self._regular(data, "delta")))

    def _regular(self, data: dict[str, Any], kind: str) -> dict[str, Any]:
        if "choices" in data:
            return regular_choices(data, kind)
        usage = data.get("usage")
        if isinstance(begun := data.get("message"), Mapping) and "usage" in begun:
            self._begun_usage = begun["usage"]
        elif isinstance(usage, Mapping) and isinstance(self._begun_usage, Mapping):
            # Anthropic's last event need not repeat the counts of the first.
            counted = {name: value for name, value in usage.items() if value is not None}
            data = {**data, "usage": {**self._begun_usage, **counted}}
        return regular_ending(data, is_for_litellm=self._is_for_litellm)

    def _with_refusal(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a stream's last event with the refusal, which is not sent in deltas."""
        for choice in data.get("choices") or ():
            delta = choice.get("delta") if isinstance(choice, Mapping) else None
            if isinstance(delta, dict) and isinstance(delta.get(REFUSAL), str):
                self._refusal += delta[REFUSAL]
                if self._is_for_litellm:
                    # LiteLLM passes no other field on.
                    delta["provider_specific_fields"] = {REFUSAL: delta[REFUSAL]}
        return {**data, REFUSAL: self._refusal} if self._refusal else data


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + _dumped(data) + b"\n\n"


def _dumped(data: Any) -> bytes:
    return json.dumps(data).encode()


def _hint(status: int, url: str) -> str:
    path = urlsplit(url).path.rstrip("/")
    if status not in (301, 302, 303, 307, 308, 404, 405):
        return ""
    if path.endswith("/chat/completions/chat/completions"):
        return "; `api_base` must end before /chat/completions"
    if path.endswith("/chat/completions") and "/v1" not in path:
        return "; does `api_base` lack /v1?"
    return "; set `api_base` to the address to which the server redirects" if status < 400 else ""


def stored_response(text: str, *, request: str) -> tuple[Any, bool | None]:
    """Return the response of a stored reply, with thoughts separated.

    Args:
        text: Canonical JSON of the response.
        request: Canonical JSON of the request.

    Returns:
        The response, and its evidence on the chat template; see ``tells_opening``.
    """
    stored = response_from_dict(json.loads(text))
    response, split = with_thought(stored, request=request)
    return response, tells_opening(stored, split)


def tells_opening(response: Any, split: SplitReply | None) -> bool | None:
    """Return whether one reply shows that the chat template opens the thought.

    Args:
        response: The response of a client.
        split: The parts of its text; None if it has no text.

    Returns:
        True if the thought has a closing tag only; False if the model or the server separates it,
        or if a complete reply has no thought; else None.
    """
    if split is not None and split.is_unopened:
        return True
    if any(isinstance(part, lm15.ThinkingPart) for part in response.message.parts):
        return False
    if split is None or not (split.thought or split.answer.strip()):
        return None
    return False if split.thought or response.finish_reason == "stop" else None


def with_thought(response: Any, *, request: str = "") -> tuple[Any, SplitReply | None]:
    """Return ``response`` with any thought in its text as a separate part.

    Args:
        response: The response of a client.
        request: As for ``split_reply``.

    Returns:
        The response, and the parts of its text; None if it has no text.
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


_N_LOOKED_AT: Final = 20


class ThoughtOpening:
    """Knowledge whether a model's chat template opens the thought, from its name and replies.

    A stream needs this before the thought has ended. The evidence is the model's name and every
    complete reply, of this process or in the store, streamed or not; see ``tells_opening``.

    Args:
        identity: Identity of the caller.
        store: Store that may hold its earlier replies.
        extra_body: Further fields of its requests, which may include switches of the template.
    """

    def __init__(
        self, identity: str, store: Any = None, extra_body: Mapping[str, Any] | None = None
    ) -> None:
        self._identity, self._store = identity, store
        self._extra_body = dict(extra_body or {})
        self._known = opens_thought(identity)
        self._has_looked = self._known is not None

    @property
    def is_opened(self) -> bool | None:
        """True if the template opens the thought, False if not, None if unknown."""
        if self._known is None and not self._has_looked:
            self._has_looked = True
            self._look()
        return self._known

    def learn(self, is_opened: bool | None) -> None:
        """Record the evidence of one reply.

        A template that opened one thought opens all. The evidence of a name outweighs a reply
        without a thought, as some models omit the tag now and then.
        """
        if is_opened or (is_opened is False and self._known is None):
            self._known = is_opened

    def _look(self) -> None:
        # A third-party backend may lack this method.
        answered_by = getattr(self._store, "answered_by", None)
        for call in answered_by(self._identity, limit=_N_LOOKED_AT) if answered_by else ():
            config = json.loads(call.request).get("config") or {}
            if (config.get("extensions") or {}) == self._extra_body:
                self.learn(stored_response(call.response, request=call.request)[1])

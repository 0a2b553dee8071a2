"""Replies as plain data: regular for the clients that read them, and failures without keys."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from moa_dspy.calls.call import without_odd_usage
from moa_dspy.calls.reply import (
    REFUSAL,
    why_broken_off,
)
from moa_dspy.calls.request import AgentCalls, out_of_files
from moa_dspy.calls.scope import DeadlineError
from moa_dspy.dspy_internals import LiteLLMChunks, lm15, response_to_dict
from moa_dspy.errors import MoaError, all_links, masked
from moa_dspy.vendors import decoded, regular_choices, regular_ending, server_words, shown_body

_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""Errors that a client's parser raises at JSON of an unexpected shape."""


@contextmanager
def mask_keys(caller: AgentCalls) -> Iterator[None]:
    """Make what an endpoint raises fit to be shown.

    Keys are masked, for a server may quote the request's own header; what a parser
    raised at a reply becomes a ProviderError that says so.

    Raises:
        CallError: This process may open no more files: that is no failure of a model.
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
            what = f"{type(error).__name__}: {error}"
            raise lm15.ProviderError(f"The endpoint's reply cannot be read: {what}") from error
        raise


class LoggedKeys(logging.Filter):
    """Masks keys in what LiteLLM and its clients log: at DEBUG they write headers and addresses.

    LiteLLM finds keys in the environment by itself, so all that a caller knows are masked. What
    it prints to the console (``litellm.set_verbose``) passes no logger and cannot be masked.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: tuple[str, ...] = ()

    def add(self, keys: Iterable[str]) -> None:
        """Mask ``keys`` from now on; a short one, which would mask ordinary text, is left."""
        known = {*self._keys, *(key for key in keys if len(key) >= _SHORTEST_KEY)}
        if len(known) == len(self._keys):
            return
        # The longest first: one key may be a part of another.
        self._keys = tuple(sorted(known, key=len, reverse=True))
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)  # without effect the second time

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the keys in ``record`` and let it pass."""
        text = record.getMessage()
        if (masked := self._masked(text)) != text:
            record.msg, record.args = masked, ()
        if record.exc_info and not record.exc_text:
            # Formatters take this text where there is one.
            record.exc_text = self._masked(logging.Formatter().formatException(record.exc_info))
        return True

    def _masked(self, text: str) -> str:
        return masked(text, self._keys)


_LOGGERS: Final = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai._base_client")
_SHORTEST_KEY: Final = 6
LOGGED_KEYS: Final = LoggedKeys()
"""The keys of all callers of this process."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise the end of the asker's time as DSPy's clients raise a timeout."""
    try:
        yield
    except DeadlineError as error:
        raise lm15.TimeoutError(str(error)) from error


def _mask(error: BaseException, mask: Callable[[str], str]) -> None:
    def shown(text: str) -> str:
        return mask(_GUIDANCE.sub("", text))

    error.args = tuple(shown(a) if isinstance(a, str) else a for a in error.args)
    for name, value in list(vars(error).items()):
        if isinstance(value, str):
            setattr(error, name, shown(value))


def _name_endpoint(error: Exception, url: str) -> None:
    """Add the address that was asked to an error that has none, such as a timeout.

    Of a connection that failed, the system's own words are added too, where a client has lost them.
    """
    if not isinstance(error, lm15.LM15Error) or "://" not in url or "://" in str(error.message):
        return
    causes = [str(link) for link in all_links(error) if isinstance(link, OSError)]
    lost = causes[-1] if causes and "onnection error" in str(error.message) else ""
    error.message = " ".join(filter(None, (str(error.message), lost, f"(asked: {url})")))
    error.args = (error.message,)


_GUIDANCE: Final = re.compile(r"\n\n  (?:credential came from|To fix):.*", re.DOTALL)
"""Advice that clients put below a server's words; it names settings of theirs."""


_ANSWERS: Final = ("candidates", "choices", "content", "output")
"""Keys under which the vendors' replies hold the answer."""


def readable(response: Any, *, has_ended: bool = False) -> dict[str, Any]:
    """Return a response as plain data, without its id.

    Args:
        response: As a client made it.
        has_ended: Whether it came as a stream that ended, so that an empty text is its answer.

    Raises:
        ServerError: The endpoint broke off; it is worth another attempt.
        ProviderError: The reply held no answer; lm15 would make an empty one of it.
    """
    check_ended(response.provider_data, response.finish_reason)
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    is_empty = not text and all(isinstance(p, lm15.TextPart) for p in response.message.parts)
    reply = None if has_ended else response.provider_data
    if is_empty and reply is not None and not _holds(reply):
        raise lm15.ProviderError(_no_answer(reply))
    # The endpoint's request id changes from run to run and says nothing; equal runs, equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def check_ended(reply: Any, finish_reason: str | None = None) -> None:
    """Raise if the endpoint says, in a reply of status 200, that it broke off.

    Args:
        reply: What the endpoint sent.
        finish_reason: As the client reads it.

    Raises:
        ServerError: With the endpoint's own words.
    """
    if (why := why_broken_off(reply, finish_reason)) is not None:
        raise lm15.ServerError(why)


def _no_answer(reply: Mapping[str, Any]) -> str:
    said = reply.get("error")
    return f"The endpoint's reply holds no answer{f': {said}' if said else '.'}"


def _holds(reply: Mapping[str, Any]) -> bool:
    """True if there is an answer in a reply whose text is empty: an empty one is one as well."""
    choices = reply.get("choices")
    if choices:
        (first, *_) = choices
        message = first.get("message", first.get("delta")) if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else 0
        return content is None or isinstance(content, str | list)
    # Anthropic's refusal may have no content, and says so beside it.
    return bool(reply.get("stop_reason")) or any(reply.get(name) for name in _ANSWERS)


_ODD: Final = re.compile(
    rb'sage|error|"content":\s*\[|logprob|refusal"|finish_reason":\s*"(?!stop|length|tool)'
    rb'|finishReason":\s*"(?!STOP|MAX)|blockReason|_window_exceeded"'
)
"""Anything without which an event needs no look inside."""


_ENDS: Final = re.compile(rb'finish_reason":\s*"|\[DONE\]')


class RegularReply:
    """The body of one reply as clients can read it, made while it arrives.

    JSON is held until it is whole, and a stream of events is passed on line by line. A server
    that was asked for events and sent JSON gets it made events.

    Args:
        status: Of HTTP.
        url: That was asked; a query in it is not shown.
        location: Where a redirect leads.
        wants_events: Whether a stream was asked for.
        tells_errors: Whether ``status`` is to tell of errors that came with status 200, for a
            client that knows no others.
        is_for_litellm: Whether LiteLLM reads it, and not DSPy's own client.

    Attributes:
        status: Of the reply that clients read; known when the body has ended.
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
        """True if the status says that there is no answer."""
        return self.status >= 400

    def take(self, chunk: bytes) -> bytes:
        """Return what can be passed on after ``chunk``."""
        self._held += chunk
        if self.is_error or self._held.lstrip()[:1] in (b"", b"{", b"[", b"<"):
            return b""
        lines, newline, self._held = self._held.rpartition(b"\n")
        return b"\n".join(map(self._line, lines.split(b"\n"))) + newline if newline else b""

    def rest(self) -> bytes:
        """Return what was held back, at the end of the body."""
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
        said = server_words(text)
        words = said["message"] or shown_body(text) or "The server gives no reason"
        if self._given != self.status:
            words = f"It redirects to {self._location or 'an address that it does not name'}"
        message = f"{words} ({self._where()})"
        if isinstance(data, dict) and isinstance(error := data.get("error"), Mapping):
            return _dumped({**data, "error": {**error, **said, "message": message}})
        return _dumped({"error": {**said, "message": message}})

    def _where(self) -> str:
        # LiteLLM tells Gemini's errors by the digits in their text: a port may look like a status.
        is_told = self._is_chat or not self._is_for_litellm
        where = f" from {self._url}" if is_told else ""
        return f"HTTP {self._given}{where}{_hint(self._given, self._url)}"

    def _whole(self, body: bytes) -> bytes:
        data = _json(body)
        broken = why_broken_off(data) if self._tells_errors else None
        tells = self.wants_events or self._tells_errors
        if broken or (tells and self._lacks_answer(data)):
            said = {"type": "server_error", "message": broken} if broken else self._words(body)
            if self._tells_errors:
                self.status = 502
            error = {"error": said}
            return _event(error) if self.wants_events else _dumped(error)
        if not isinstance(data, dict):
            return body
        if self.wants_events and "choices" in data:
            choices = [{**one, "delta": one.get("message")} for one in data["choices"] if one]
            return _event(self._frame({**data, "choices": choices})) + b"data: [DONE]\n\n"
        regular = without_odd_usage(self._regular(data, "message"))
        return body if regular == data else _dumped(regular)

    def _lacks_answer(self, data: Any) -> bool:
        if self._is_chat:
            return not (isinstance(data, dict) and isinstance(data.get("choices"), list))
        return isinstance(data, dict) and bool(data.get("error"))

    def _words(self, body: bytes) -> dict[str, Any]:
        text = decoded(body)
        said, shown = server_words(text), shown_body(text)
        words = said["message"] or f"The reply holds no answer{f': {shown}' if shown else ''}"
        return {**said, "message": f"{words} (from {self._url})"}

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
        # Events of OpenAI's responses name their type; those have a form of their own.
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
            # Anthropic's last event need not repeat what the first one counted.
            counted = {name: value for name, value in usage.items() if value is not None}
            data = {**data, "usage": {**self._begun_usage, **counted}}
        return regular_ending(data, is_for_litellm=self._is_for_litellm)

    def _with_refusal(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return an event that ends a stream with the refusal, of which there are no deltas."""
        for choice in data.get("choices") or ():
            delta = choice.get("delta") if isinstance(choice, Mapping) else None
            if isinstance(delta, dict) and isinstance(delta.get(REFUSAL), str):
                self._refusal += delta[REFUSAL]
                if self._is_for_litellm:
                    # It passes nothing else on.
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
        return "; `api_base` ends before /chat/completions"
    if path.endswith("/chat/completions") and "/v1" not in path:
        return "; does `api_base` lack /v1?"
    return "; write the address that answers as `api_base`" if status < 400 else ""


_WITHOUT_EVENT: Final = ("annotations", "audio", "images", REFUSAL, "thinking_blocks")


class LiteLLMEvents(LiteLLMChunks):
    """Events of LiteLLM's chunks, without fields of which DSPy knows no event.

    DSPy gives a stream with such a field up, so that the answer would be paid for twice.
    """

    def __init__(self, request: Any) -> None:
        super().__init__(request)
        self._refusal = ""

    def feed(self, chunk: Any) -> Generator[Any, Any, None]:
        """Yield the events of ``chunk``, which loses such fields."""
        for choice in getattr(chunk, "choices", None) or ():
            delta: Any = getattr(choice, "delta", None)
            extras = getattr(delta, "provider_specific_fields", None)
            if isinstance(extras, Mapping):
                self._refusal += str(extras.get(REFUSAL) or "")
                kept = {name: value for name, value in extras.items() if name == "citation"}
                delta.provider_specific_fields = kept or None
            for name in _WITHOUT_EVENT:
                if hasattr(delta, name):
                    delattr(delta, name)
        yield from super().feed(chunk)

    def finish(self, litellm: Any) -> Any:
        """Return the event that ends the stream, with the refusal if there was one."""
        end = super().finish(litellm)
        if not self._refusal:
            return end
        return replace(end, provider_data={**(end.provider_data or {}), REFUSAL: self._refusal})

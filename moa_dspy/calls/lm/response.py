"""Responses of DSPy's clients as plain data, thoughts set apart, and failures without keys."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from moa_dspy.calls.reply import BROKEN_OFF, SplitReply, split_reply
from moa_dspy.calls.request import AgentCalls, most_open_files
from moa_dspy.calls.scope import DeadlineError
from moa_dspy.dspy_internals import lm15, response_from_dict, response_to_dict
from moa_dspy.errors import CallError, MoaError

_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""What a client's parser raises at JSON of an unexpected shape."""


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
        for link in _chain(error):
            _mask(link, caller.without_secrets)
        _check_open_files(error)
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
        for key in self._keys:
            text = text.replace(key, "***")
        return text


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


def _check_open_files(error: BaseException) -> None:
    numbers = {link.errno for link in _chain(error) if isinstance(link, OSError)}
    if numbers & {errno.EMFILE, errno.ENFILE}:
        raise CallError(
            "Too many open files: every request at a time needs a connection, and this process "
            f"may open {most_open_files() or 'no more'} files. Raise the limit (`ulimit -n 4096`), "
            "or lower `max_concurrent` of the agents or the number of threads."
        ) from error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error with all that led to it: a traceback prints them all."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _mask(error: BaseException, mask: Callable[[str], str]) -> None:
    error.args = tuple(mask(a) if isinstance(a, str) else a for a in error.args)
    for name, value in list(vars(error).items()):
        if isinstance(value, str):
            setattr(error, name, mask(value))


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

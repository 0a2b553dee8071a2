"""What may be wrong with a reply, and how it is told: clearly, and without keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from dspy import lm15
from dspy._vendor.lm15.serde import response_to_dict

from moa_dspy.calls._caller import Caller
from moa_dspy.calls._patience import DeadlineError
from moa_dspy.errors import MoaError

_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""What a client's parser raises at JSON of an unexpected shape."""
_ANSWERS: Final = ("candidates", "choices", "content", "output")
"""Where the vendors' replies hold the answer."""


def readable(response: Any) -> dict[str, Any]:
    """Return a response as plain data, without its id.

    Raises:
        ProviderError: The reply held no answer; lm15 would make an empty one of it.
    """
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    is_empty = not text and all(isinstance(p, lm15.TextPart) for p in response.message.parts)
    if is_empty and response.provider_data is not None and not _holds(response.provider_data):
        raise lm15.ProviderError("The endpoint's reply holds no answer.")
    # The endpoint's request id changes from run to run and says nothing; equal runs, equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def _holds(reply: Mapping[str, Any]) -> bool:
    """Whether there is an answer in a reply whose text is empty: an empty one is one as well."""
    choices = reply.get("choices")
    if choices:
        (first, *_) = choices
        message = first.get("message", first.get("delta")) if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else 0
        return content is None or isinstance(content, str | list)
    return any(reply.get(name) for name in _ANSWERS)


@contextmanager
def told(caller: Caller) -> Iterator[None]:
    """Make what an endpoint raises fit to be shown.

    Keys are masked, for a server may quote the request's own header; what a parser
    raised at a reply becomes a ProviderError that says so.
    """
    try:
        yield
    except Exception as error:
        for link in _chain(error):
            _mask(link, caller.without_secrets)
        if isinstance(error, _UNREADABLE) and not isinstance(error, MoaError):
            what = f"{type(error).__name__}: {error}"
            raise lm15.ProviderError(f"The endpoint's reply cannot be read: {what}") from error
        raise


@contextmanager
def in_time() -> Iterator[None]:
    """Raise the end of the asker's time as DSPy's clients raise a timeout."""
    try:
        yield
    except DeadlineError as error:
        raise lm15.TimeoutError(str(error)) from error


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

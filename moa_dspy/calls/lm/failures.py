"""Failures of an endpoint, fit to be shown: without keys, in the words of DSPy's clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from moa_dspy.calls.request import AgentCalls
from moa_dspy.calls.scope import DeadlineError
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import MoaError

_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""What a client's parser raises at JSON of an unexpected shape."""


@contextmanager
def mask_keys(caller: AgentCalls) -> Iterator[None]:
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

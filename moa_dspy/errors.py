"""All errors that this library raises on purpose.

* MoaError
  - ArchitectureError (also a ValueError): a mixture that cannot be built as described
  - PoolError (also a ValueError): an agent that is unknown, missing or described wrongly -
  DataError (also a ValueError): rows, splits or files that are not valid - MetricError (also a
  ValueError): a metric that raised or returned no finite number - StudyError (also a ValueError): a
  study file that is not valid, or a run that cannot continue - LayerFailedError: fewer proposers of
  a layer answered than the quorum - LocalModelError (also an OSError): weights or a runtime that
  this machine cannot provide - ChecksumError: a file whose sha256 differs from the catalogue's -
  CallError: a call that was not answered - UnknownCallError (also a LookupError): a replay needs
    a call that was not recorded - BudgetReachedError: the next call might exceed the user's budget
    - StoreError: the call store cannot be read or written - OutageError: an endpoint was down for
    longer than a study waits

A failure of a model is recorded as data and raises none of these unless no answer is left.

Also the masking of keys, in errors and in the logs of other libraries.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from html import escape
from typing import Any, Final


class MoaError(Exception):
    """Base class of all errors below: ``except MoaError`` catches all of them."""


class ArchitectureError(MoaError, ValueError):
    """A mixture of agents that cannot be built as described."""


class PoolError(MoaError, ValueError):
    """An agent that is unknown, missing or described wrongly."""


class DataError(MoaError, ValueError):
    """Rows, splits or files that are not valid."""


class MetricError(MoaError, ValueError):
    """A metric that raised or returned something other than a finite number."""


class StudyError(MoaError, ValueError):
    """A study file that is not valid, or a run that cannot continue."""


class LayerFailedError(MoaError):
    """Fewer proposers of a layer answered than the quorum; lists every cause.

    Attributes:
        responses: Every response up to there, those of earlier layers first, as far as known.
    """

    responses: tuple[Any, ...] = ()


class LocalModelError(MoaError, OSError):
    """Weights or a runtime that this machine cannot provide."""


class ChecksumError(LocalModelError):
    """A file whose sha256 differs from the catalogue's."""


class CallError(MoaError):
    """A call to a language model that was not answered."""


class UnknownCallError(CallError, LookupError):
    """A replay needs a call that was not recorded; names the agent and the example."""


class BudgetReachedError(CallError):
    """The next call might exceed the user's budget; names the limit.

    Attributes:
        may_fit_later: Whether the call would fit if the calls in flight cost nothing.
    """

    def __init__(self, message: str, *, may_fit_later: bool = False) -> None:
        super().__init__(message)
        self.may_fit_later = may_fit_later


class StoreError(CallError):
    """The call store cannot be read or written."""


class OutageError(CallError):
    """An endpoint was down for longer than a study waits; all answers so far are kept."""


def moa_error_of(error: BaseException) -> MoaError | None:
    """Return this library's error that is or caused ``error``, or None.

    DSPy wraps the errors of engines. A ``LayerFailedError`` does not count, as it is a failure of
    models.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoaError) and not isinstance(cause, LayerFailedError):
            return cause
        cause = cause.__cause__
    return None


def all_links(error: BaseException) -> list[BaseException]:
    """Return an error with all its causes, as a traceback prints them."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


_PREFIX: Final = 12
"""Shortest beginning of a key, in characters, that is masked where a text is cut."""


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with ``***`` for every secret, in any of several encodings.

    A server may quote a key, or its beginning, as encoded in an address, in JSON, in HTML, in
    hexadecimal, in another case, or in base64 after a user's name.
    """
    for secret in secrets:
        text = text.replace(secret, "***")
        if len(secret) >= _PREFIX:
            for pattern in _other_spellings(secret):
                text = pattern.sub("***", text)
            text = _without_spelled(text, secret)
    return text


def _without_spelled(text: str, secret: str) -> str:
    units, end = _spelled(secret), 0
    parts: list[str] = []
    for match in units[0].finditer(text):
        if match.start() < end:
            continue
        stop = match.end()
        for unit in units[1:]:
            if (more := unit.match(text, stop)) is None:
                break
            stop = more.end()
        parts += [text[end : match.start()], "***"]
        end = stop
    return "".join([*parts, text[end:]])


@lru_cache(maxsize=256)
def _spelled(secret: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns for the beginning of a secret, and for each character after it."""
    units = [_character(character) for character in secret]
    first = "".join(units[:_PREFIX])
    return tuple(re.compile(unit, re.IGNORECASE) for unit in (first, *units[_PREFIX:]))


def _character(character: str) -> str:
    code = ord(character)
    in_address = "".join(f"%(?:25)*{byte:02x}" for byte in character.encode("utf-8", "replace"))
    html = f"&#0*{code};|&#x0*{code:x};|{re.escape(escape(character))}"
    return rf"(?:{re.escape(character)}|{in_address}|\\u{code:04x}|\\{re.escape(character)}|{html})"


@lru_cache(maxsize=256)
def _other_spellings(secret: str) -> tuple[re.Pattern[str], ...]:
    data = secret.encode("utf-8", "replace")
    patterns: list[str] = []
    for n_before in range(3):
        # The part of the base64 text that is independent of the bytes before and after the secret.
        first, last = -(-8 * n_before // 6), 8 * (n_before + len(data)) // 6
        code = b64encode(b"0" * n_before + data).decode()[first:last][:_PREFIX]
        signs = "".join({"+": "[+-]", "/": "[/_]"}.get(sign, sign) for sign in code)
        patterns.append(rf"[\w+/-]*{signs}[\w+/=-]*")
    patterns.append(f"(?i:{data.hex()[: 2 * _PREFIX]}[0-9a-f]*)")
    return tuple(map(re.compile, patterns))


_LOGGERS: Final = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai._base_client")
SHORTEST_KEY: Final = 6
"""Masking shorter values, such as a local server's placeholder, would mask ordinary text."""


class LoggedKeys(logging.Filter):
    """Masks keys in the logs of LiteLLM and its clients, which at DEBUG hold headers and addresses.

    LiteLLM finds keys in the environment by itself, so all keys of a caller are masked. Its output
    to the console (``litellm.set_verbose``) passes no logger and cannot be masked.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: tuple[str, ...] = ()

    def add(self, keys: Iterable[str]) -> None:
        """Mask ``keys`` from now on, except short ones, which would mask ordinary text."""
        all_keys = {*self._keys, *(key for key in keys if len(key) >= SHORTEST_KEY)}
        if len(all_keys) == len(self._keys):
            return
        # The longest first, as one key may be a part of another.
        self._keys = tuple(sorted(all_keys, key=len, reverse=True))
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)  # has no effect the second time

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the keys in ``record`` and let it pass."""
        text = record.getMessage()
        if (masked := self._masked(text)) != text:
            record.msg, record.args = masked, ()
        if record.exc_info and not record.exc_text:
            # Formatters use this text if it is set.
            record.exc_text = self._masked(logging.Formatter().formatException(record.exc_info))
        return True

    def _masked(self, text: str) -> str:
        return masked(text, self._keys)


LOGGED_KEYS: Final = LoggedKeys()
"""The keys of all callers of this process."""

"""The adapter that will speak for a seat, and how it reads replies that end untidily or fail."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Final

import dspy
from dspy.utils.exceptions import AdapterParseError

_CLOSING: Final = re.compile(
    r"(?:(?<!\s)\s*(?:\[\[ ?## ?completed ?## ?\]\]"
    r"|<\|[^<>|\s]{1,60}\|>|<\uff5c[^<>\uff5c\s]{1,60}\uff5c>))+\s*\Z"
)
"""DSPy's closing marker and tokens of chat templates, at the end of a reply."""

_SHOWN: Final = 100
"""Characters of a reply in the reason why it is no answer."""


def speaking_adapter(adapter: Any = None) -> Any:
    """Return the adapter that will format a request: the given one, else as DSPy chooses.

    That is the one of ``dspy.settings``, and without one DSPy's default, chat.
    """
    return adapter or dspy.settings.adapter or dspy.ChatAdapter()


def reading_adapter(adapter: Any = None) -> Any:
    """Return a copy of the speaking adapter that reads a reply without what closes it.

    A closing marker in the answer's own line is then no part of the answer. DSPy's adapters
    read a marker only in a line of its own.
    """
    spoken = speaking_adapter(adapter)
    parse: Callable[..., Any] | None = getattr(spoken, "parse", None)
    if not isinstance(spoken, dspy.Adapter) or parse is None:
        return spoken
    read = copy.copy(spoken)

    def parse_tidy(signature: Any, completion: Any, *args: Any, **kwargs: Any) -> Any:
        return parse(signature, without_closing(completion), *args, **kwargs)

    read.parse = parse_tidy
    return read


def without_closing(completion: Any) -> Any:
    """Return a reply's text without closing markers and end tokens; all else as it is."""
    return _CLOSING.sub("", completion) if isinstance(completion, str) else completion


def reply_problem(error: Exception) -> str:
    """Return in one line why a reply is no answer: it is empty, or lacks a field, and what it says.

    Any other error is shown with its type.
    """
    if not isinstance(error, AdapterParseError):
        return f"{type(error).__name__}: {error}"
    said = " ".join(str(without_closing(error.lm_response) or "").split())
    if not said:
        return "The model answered with an empty text."
    shown = said if len(said) <= _SHOWN else f"{said[: _SHOWN - 3]}..."
    fields = getattr(error.signature, "output_fields", {})
    parsed = error.parsed_result if isinstance(error.parsed_result, dict) else {}
    missing = ", ".join(f"`{name}`" for name in fields if name not in parsed)
    problem = f"no readable {missing}" if missing else "no readable fields"
    return f"{type(error).__name__}: the reply has {problem}: {shown!r}"

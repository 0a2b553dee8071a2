"""Makes a model's text harmless as data: nothing in it ends early, forges a field or a turn."""

from __future__ import annotations

import json
import re
from typing import Final

_CONTROL: Final = re.compile(
    r"<(?=[|/]?[A-Za-z|\uff5c])"  # chat-template tokens and XML tags
    r"|\[(?=\[|/?INST|SYS)"  # DSPy's field markers, Llama's turns
    r"|[\u0085\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"  # hidden or turning
)


def quoted(text: str) -> str:
    """Return ``text`` as one line between double quotes, a JSON string that decodes to it.

    Line breaks, quotes, invisible characters and the openings of template tokens,
    tags and field markers are written as escapes.
    """
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub(_escape, json.dumps(safe, ensure_ascii=False))


def neutral(text: str) -> str:
    """Return ``text`` without anything that an adapter of DSPy could read as a field marker."""
    return text.replace("[[", "[ [").replace("]]", "] ]")


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"

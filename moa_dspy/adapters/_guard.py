"""Makes a model's text harmless as data: nothing in it ends early, forges a field or a turn."""

from __future__ import annotations

import json
import re
from typing import Final

_CONTROL: Final = re.compile(
    r"<(?=[|/]?[A-Za-z|\uff5c])"  # chat-template tokens and XML tags
    r"|\[(?=\[|/?INST|/?SYS)"  # DSPy's field markers, Llama's and Mistral's turns
    r"|[\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"  # hidden
    r"|[\U000e0000-\U000e007f]"  # hidden: a copy of ASCII that models read and people do not see
)

_DOUBLED: Final = re.compile(r"([\[\]])(?=\1)")
_TAG: Final = re.compile(r"<(?=/?\w)")


def quoted(text: str) -> str:
    """Return ``text`` as one line between double quotes, a JSON string that decodes to it.

    Line breaks, quotes, invisible characters and the openings of template tokens,
    tags and field markers are written as escapes.
    """
    return _CONTROL.sub(_escape, json.dumps(_encodable(text), ensure_ascii=False))


def neutral(text: str) -> str:
    """Return ``text`` without anything that DSPy's chat adapter could read as a field marker."""
    return _DOUBLED.sub(r"\1 ", _encodable(text))


def without_tags(text: str) -> str:
    """Return ``text`` without anything that DSPy's XML adapter could read as a tag."""
    return _TAG.sub("< ", text)


def _encodable(text: str) -> str:
    # Half of a surrogate pair ends a reply that was cut; DSPy refuses to send it on.
    return text.encode("utf-8", "replace").decode("utf-8")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

"""Makes a model's text harmless as data: nothing in it ends early, forges a field or a turn."""

from __future__ import annotations

import json
import re
from typing import Final

_HIDDEN: Final = (
    "\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    # The last holds a copy of ASCII, which models read and people do not see.
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_TOKEN: Final = (
    r"<(?=[|\uff5c]|/?[^\s<>]{1,80}>)"  # <|im_start|>, <s>, <start_of_turn>, tags, DSPy's images
    r"|\[(?=\||/?(?:INST|SYS|TOOL|AVAILABLE_|IMG|THINK|MODEL_|g?MASK|CLS|SEP|PAD|UNK|[BE]OS))"
)
"""Where a token of a chat template opens, of those that are texts in some model's vocabulary."""

_ESCAPED: Final = re.compile(rf"<(?=[|/]?[A-Za-z\uff5c])|\[(?=\[)|{_TOKEN}|[{_HIDDEN}\u200c\u200d]")

_LINE_BREAK: Final = re.compile("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029](?:(?<=\r)\n)?")
_UNSEEN: Final = re.compile(f"[\x00-\x08\x0e-\x1f{_HIDDEN}]")

_JOINERS: Final = "\u200c\u200d\ufe0e\ufe0f"
_JOINER: Final = re.compile(
    rf"[{_JOINERS}](?:(?<![^\x00-\x7f].)|(?<=[\u200c\u200d])(?![^\x00-\x7f])|(?<=[{_JOINERS}]{{3}}))"
)
"""Joiners that join nothing: outside of emoji, and of scripts that need them to be read."""

_MARKER: Final = re.compile(
    r"\[(?=\[\s*#)|\[\s*#(?=#)|#(?=#\s*\])|#\s*\](?=\])"  # [[ ## field ## ]], and halves of it
    rf"|{_TOKEN}"
)


def quoted(text: str) -> str:
    """Return ``text`` as one line between double quotes, a JSON string that decodes to it.

    Line breaks, quotes, invisible characters and the openings of template tokens,
    tags and field markers are written as escapes.
    """
    return _ESCAPED.sub(_escape, json.dumps(encodable(text), ensure_ascii=False))


def neutral(text: str) -> str:
    r"""Return ``text`` with nothing that could be a field marker of DSPy's or a template token.

    A space is put into each: ``[ [ # # answer``, ``< |im_end|>``. Invisible characters
    are left out, and every kind of line break is ``\n``, so no line starts unseen.
    """
    seen = _JOINER.sub("", _UNSEEN.sub("", _LINE_BREAK.sub("\n", encodable(text))))
    return _MARKER.sub(r"\g<0> ", seen)


def encodable(text: str) -> str:
    """Return ``text`` with "?" for each half of a surrogate pair."""
    # Half of one ends a reply that was cut; DSPy refuses to send it on.
    return text.encode("utf-8", "replace").decode("utf-8")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

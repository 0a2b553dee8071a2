"""Texts of models made harmless as data, and inputs as the content of a user message.

Nothing in a harmless text ends early, forges a field or opens a turn.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final, TypeAlias

import dspy
import pydantic
from dspy.adapters.types.base_type import Type, split_message_content_for_custom_types
from dspy.adapters.utils import format_field_value
from dspy.utils.exceptions import AdapterParseError

from moa_dspy.calls.reply import split_reply, without_half
from moa_dspy.signatures import REFERENCES

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
"""Openings of tokens of chat templates, of those that are texts in some model's vocabulary."""

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


Part: TypeAlias = dict[str, Any]
"""A part of a message's content, as chat endpoints take it: a text, an image ..."""


def is_history(field: Any, value: Any = None) -> bool:
    """Say whether an input is a conversation, which is no part of a message but messages."""
    return field.annotation is dspy.History or isinstance(value, dspy.History)


def user_content(signature: Any, values: Mapping[str, Any], *, below: str = "") -> str | list[Part]:
    """Return the inputs, in the signature's order, then ``below``.

    An input is named where it stands beside another of its kind, text or not. References
    and history are no part of it.
    """
    shown = {
        name: _shown(field, values[name])
        for name, field in signature.input_fields.items()
        if name in values and name != REFERENCES and not is_history(field, values[name])
    }
    parts: list[str | Part] = []
    for name, value in shown.items():
        is_text = isinstance(value, str)
        is_named = sum(isinstance(other, str) == is_text for other in shown.values()) > 1
        label = f"{name}: " if is_named else ""
        parts += [f"{label}{value}"] if isinstance(value, str) else [*filter(None, [label]), *value]
    return _joined([*parts, below] if below else parts)


def _shown(field: Any, value: Any) -> str | list[Part]:
    if not _has_own_form(value):
        return str(value)
    message = {"role": "user", "content": format_field_value(field, value)}
    content: str | list[Part] = split_message_content_for_custom_types([message])[0]["content"]
    return content


def _has_own_form(value: Any) -> bool:
    """Say whether a value holds one of DSPy's types, which has a form of its own."""
    if isinstance(value, Type):
        return True
    if isinstance(value, Mapping):
        return any(map(_has_own_form, value.values()))
    if isinstance(value, pydantic.BaseModel):
        return any(map(_has_own_form, vars(value).values()))
    return isinstance(value, list | tuple) and any(map(_has_own_form, value))


def _joined(parts: list[str | Part]) -> str | list[Part]:
    if all(isinstance(part, str) for part in parts):
        return "\n\n".join(map(str, parts))
    joined: list[Part] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
        members = list(run)
        if is_text:
            joined.append({"type": "text", "text": "\n\n".join(map(str, members))})
        joined += [part for part in members if isinstance(part, dict)]
    return joined


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


def reading_adapter(adapter: Any = None, *, sets_thoughts_apart: bool = False) -> Any:
    """Return a copy of the speaking adapter that reads a reply without what closes it.

    A closing marker in the answer's own line is then no part of the answer. DSPy's adapters
    read a marker only in a line of its own. An adapter that takes replies verbatim is returned
    as it is.

    Args:
        adapter: As of ``speaking_adapter``.
        sets_thoughts_apart: Whether a thought in the text is taken out before it is read, as
            the pool's own LMs do by themselves.
    """
    spoken = speaking_adapter(adapter)
    parse: Callable[..., Any] | None = getattr(spoken, "parse", None)
    is_read_as_it_is = is_verbatim(spoken) and not sets_thoughts_apart
    if not isinstance(spoken, dspy.Adapter) or parse is None or is_read_as_it_is:
        return spoken
    read = copy.copy(spoken)

    def parse_tidy(signature: Any, completion: Any, *args: Any, **kwargs: Any) -> Any:
        if sets_thoughts_apart:
            completion = without_thought(signature, completion)
        if not is_verbatim(spoken):
            completion = without_closing(completion)
        return parse(signature, completion, *args, **kwargs)

    read.parse = parse_tidy
    return read


def without_thought(signature: Any, completion: Any) -> Any:
    """Return a reply's text without the thought in it; all else as it is."""
    if not isinstance(completion, str):
        return completion
    # A tag that is an output field opens no thought.
    fields = "".join(f"<{name}>{{{name}}}" for name in signature.output_fields)
    return split_reply("".join(without_half(completion)), request=fields).answer


def is_streamed() -> bool:
    """Return whether replies are streamed to a reader here.

    Then a thought that no tag opened may stand in a reply of an LM of the pool's too: its first
    words were passed on before it was known.
    """
    return dspy.settings.send_stream is not None


def is_verbatim(adapter: Any) -> bool:
    """Return whether the adapter takes replies as they come, an empty one included."""
    return bool(getattr(adapter, "verbatim", False))


def without_closing(completion: Any) -> Any:
    """Return a reply's text without closing markers and end tokens; all else as it is."""
    return _CLOSING.sub("", completion) if isinstance(completion, str) else completion


def reply_problem(error: Exception) -> str:
    """Return in one line why a reply is no answer: it is empty, or lacks a field, and what it says.

    Any other error is shown with its type.
    """
    if not isinstance(error, AdapterParseError):
        return f"{type(error).__name__}: {error}"
    reply = " ".join(str(without_closing(error.lm_response) or "").split())
    if not reply:
        return "The model answered with an empty text."
    shown = reply if len(reply) <= _SHOWN else f"{reply[: _SHOWN - 3]}..."
    fields = getattr(error.signature, "output_fields", {})
    parsed = error.parsed_result if isinstance(error.parsed_result, dict) else {}
    missing = ", ".join(f"`{name}`" for name in fields if name not in parsed)
    problem = f"no readable {missing}" if missing else "no readable fields"
    return f"{type(error).__name__}: the reply has {problem}: {shown!r}"

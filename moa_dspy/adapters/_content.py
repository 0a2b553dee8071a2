"""Inputs as the content of a user message: a text, or parts where one is no text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, TypeAlias

import dspy
import pydantic
from dspy.adapters.types.base_type import Type, split_message_content_for_custom_types
from dspy.adapters.utils import format_field_value

from moa_dspy.signatures import REFERENCES

Part: TypeAlias = dict[str, Any]
"""A part of a message's content, as chat endpoints take it: a text, an image ..."""


def is_history(field: Any, value: Any = None) -> bool:
    """Whether an input is a conversation, which is no part of a message but messages."""
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
    """Whether one of DSPy's types is in it, which says itself how it is sent."""
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

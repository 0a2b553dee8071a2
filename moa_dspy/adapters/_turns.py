"""Demos and history as the turns of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import dspy

from moa_dspy.adapters._content import is_history
from moa_dspy.errors import ArchitectureError
from moa_dspy.signatures import REFERENCES

Message: TypeAlias = dict[str, Any]
Content: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Makes inputs the content of a user message."""


def only_output(signature: Any) -> str:
    """Return the name of the signature's one text output.

    Raises:
        ArchitectureError: If it has more than one output, or one that is not text.
    """
    fields = signature.output_fields
    if len(fields) != 1 or next(iter(fields.values())).annotation is not str:
        shown = ", ".join(f"{name}: {field.annotation}" for name, field in fields.items())
        raise ArchitectureError(
            f"Plain chat needs exactly one text output, but the signature has {shown}; "
            "choose the chat, json or xml adapter."
        )
    return str(next(iter(fields)))


def earlier_turns(
    signature: Any, demos: list[dict[str, Any]], inputs: Mapping[str, Any], *, content: Content
) -> Iterator[Message]:
    """Yield what stands before the question: demos, each after its own history, then history.

    A demo without an input or without the output is left out.

    Raises:
        ArchitectureError: If the signature has no single text output, or a history is not
            one or has a turn with none of the signature's fields.
    """
    output = only_output(signature)
    for demo in demos:
        turn = list(_turn(signature, demo, output, content))
        if len(turn) == 2:
            yield from _history(signature, demo, output, content)
            yield from turn
    yield from _history(signature, inputs, output, content)


def _turn(
    signature: Any, values: Mapping[str, Any], output: str, content: Content
) -> Iterator[Message]:
    asked = (n for n, f in signature.input_fields.items() if n != REFERENCES and not is_history(f))
    if any(name in values for name in asked):
        yield {"role": "user", "content": content(values)}
    if values.get(output) is not None:
        yield {"role": "assistant", "content": str(values[output])}


def _history(
    signature: Any, values: Mapping[str, Any], output: str, content: Content
) -> Iterator[Message]:
    for name, field in signature.input_fields.items():
        if name not in values or not is_history(field, values[name]):
            continue
        for values_then in _earlier(name, values[name]):
            turn = list(_turn(signature, values_then, output, content))
            if not turn:
                fields = ", ".join([*signature.input_fields, output])
                given = ", ".join(map(str, values_then)) or "nothing"
                raise ArchitectureError(
                    f"A turn of `{name}` must have some of the fields {fields}, but has {given}."
                )
            yield from turn


def _earlier(name: str, history: Any) -> list[dict[str, Any]]:
    if history is None:
        return []
    if not isinstance(history, dspy.History):
        raise ArchitectureError(f"`{name}` must be a dspy.History, but got {history!r:.100}.")
    return list(history.messages)

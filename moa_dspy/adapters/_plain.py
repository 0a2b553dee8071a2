"""Plain chat: no format to obey, so small models follow it and no tokens are spent on it."""

from __future__ import annotations

from typing import Any

import dspy

from moa_dspy.adapters._guard import quoted
from moa_dspy.errors import ArchitectureError
from moa_dspy.signatures import REFERENCES, REFERENCES_HEADING


class PlainChat(dspy.Adapter):
    """Sends instructions as system message and inputs as user message; the reply is the output.

    The layout is *guarded*: references stand below the question in the user
    message, numbered, each one quoted line that nothing inside can leave.
    For signatures with one text output; a reply is never asked for twice.

    Raises:
        ArchitectureError: If the signature has more than one output, or one that is not text.
    """

    def format(
        self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the chat messages for one request."""
        output = _only_output(signature)
        messages = [{"role": "system", "content": signature.instructions}]
        for demo in demos:
            messages.append({"role": "user", "content": _user_text(signature, demo)})
            messages.append({"role": "assistant", "content": str(demo[output])})
        messages.append({"role": "user", "content": _user_text(signature, inputs)})
        return messages

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the whole reply, stripped, as the one output field."""
        return {_only_output(signature): completion.strip()}


def _only_output(signature: Any) -> str:
    fields = signature.output_fields
    if len(fields) != 1 or next(iter(fields.values())).annotation is not str:
        shown = ", ".join(f"{name}: {field.annotation}" for name, field in fields.items())
        raise ArchitectureError(
            f"Plain chat needs exactly one text output, but the signature has {shown}; "
            "choose the chat, json or xml adapter."
        )
    return str(next(iter(fields)))


def _user_text(signature: Any, values: dict[str, Any]) -> str:
    names = [name for name in signature.input_fields if name != REFERENCES and name in values]
    if len(names) == 1:
        parts = [str(values[names[0]])]
    else:
        parts = [f"{name}: {values[name]}" for name in names]
    if references := values.get(REFERENCES):
        numbered = [f"{n}. {quoted(text)}" for n, text in enumerate(references, start=1)]
        parts.append("\n".join([REFERENCES_HEADING, *numbered]))
    return "\n\n".join(parts)

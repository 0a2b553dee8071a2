"""The guarded layout of plain chat: references below the question, each one quoted line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moa_dspy.adapters._content import user_content
from moa_dspy.adapters._guard import quoted
from moa_dspy.adapters._turns import Message, earlier_turns
from moa_dspy.signatures import REFERENCES, REFERENCES_HEADING


def guarded_messages(
    signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
) -> list[Message]:
    """Return instructions as system message, then demos, history and the question as turns."""

    def content(values: Mapping[str, Any]) -> Any:
        return user_content(signature, values, below=_references(values))

    return [
        {"role": "system", "content": signature.instructions},
        *earlier_turns(signature, demos, inputs, content=content),
        {"role": "user", "content": content(inputs)},
    ]


def _references(values: Mapping[str, Any]) -> str:
    references = values.get(REFERENCES)
    if not references:
        return ""
    numbered = [f"{n}. {quoted(text)}" for n, text in enumerate(references, start=1)]
    return "\n".join([REFERENCES_HEADING, *numbered])

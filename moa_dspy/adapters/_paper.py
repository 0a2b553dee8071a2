"""The paper's layout of plain chat: what its own program sends, byte for byte.

Unguarded: a response can address its reader as the system does, because that is where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moa_dspy.adapters._content import user_content
from moa_dspy.adapters._guard import encodable
from moa_dspy.adapters._turns import Message, earlier_turns
from moa_dspy.signatures import REFERENCES, REFERENCES_HEADING, separated


def paper_messages(
    signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
) -> list[Message]:
    """Return the caller's conversation, with the references at the end of its system message.

    There is a system message only if the caller has one of their own, or references are
    read. Demos are turns before the conversation; what they read is left out.
    """

    def content(values: Mapping[str, Any]) -> Any:
        return user_content(signature, values)

    own, prompt = separated(signature)
    references = inputs.get(REFERENCES) or ()
    system = "\n\n".join([*filter(None, [own]), *_aggregation(prompt, references)])
    return [
        *([{"role": "system", "content": system}] if system else []),
        *earlier_turns(signature, demos, inputs, content=content),
        {"role": "user", "content": content(inputs)},
    ]


def _aggregation(prompt: str, references: Sequence[str]) -> list[str]:
    if not references:
        return []
    numbered = [f"\n{n}. {encodable(text)}" for n, text in enumerate(references, start=1)]
    return [*filter(None, [prompt]), f"{REFERENCES_HEADING}{''.join(numbered)}"]

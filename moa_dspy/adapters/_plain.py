"""Plain chat: no format to obey, so small models follow it and no tokens are spent on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dspy

from moa_dspy.adapters._guarded import guarded_messages
from moa_dspy.adapters._paper import paper_messages
from moa_dspy.adapters._turns import Message, only_output
from moa_dspy.errors import ArchitectureError

LAYOUTS: Final[dict[str, Callable[[Any, list[dict[str, Any]], dict[str, Any]], list[Message]]]] = {
    "guarded": guarded_messages,
    "paper": paper_messages,
}
"""Layouts of plain chat by name."""


class PlainChat(dspy.Adapter):
    """Sends inputs as they are, as the user's message; the reply as it is is the output.

    A ``dspy.History`` becomes turns of user and assistant, an image or another of DSPy's
    own types the content parts that DSPy would send. An input is named where it stands
    beside another of its kind. For signatures with one text output; a reply is never
    asked for twice.

    Args:
        layout: ``guarded``: references stand below the question, numbered, each one
            quoted line that nothing inside can leave. ``paper``: byte for byte what the
            paper's own program sends, references unguarded in the system message.
        callbacks: As of any DSPy adapter.

    Raises:
        ArchitectureError: If there is no such layout. When called: if the signature has more
            than one output, or one that is not text, or a history does not fit it.
    """

    def __init__(self, layout: str = "guarded", *, callbacks: list[Any] | None = None) -> None:
        super().__init__(callbacks)
        if layout not in LAYOUTS:
            known = ", ".join(sorted(LAYOUTS))
            raise ArchitectureError(f"Unknown `layout` {layout!r}; known ones are {known}.")
        self.layout = layout

    def format(
        self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the chat messages for one request."""
        return LAYOUTS[self.layout](signature, demos, inputs)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the whole reply, stripped, as the one output field."""
        return {only_output(signature): completion.strip()}

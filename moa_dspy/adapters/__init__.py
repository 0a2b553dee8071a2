"""How a question and its references become chat messages."""

from collections.abc import Callable, Sequence
from typing import Any

import dspy

from moa_dspy.adapters._guard import neutral, quoted, without_tags
from moa_dspy.adapters._plain import PlainChat

ADAPTERS: dict[str, Callable[[], Any]] = {
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "plain": PlainChat,
    "xml": dspy.XMLAdapter,
}
"""Names that a study file or a saved program may use. Adding a line here is the registration."""


def guarded(texts: Sequence[str], *, adapter: Any) -> list[str]:
    """Return references as the adapter may safely read them; plain chat guards on its own."""
    if isinstance(adapter, PlainChat):
        return list(texts)
    harmless = [neutral(text) for text in texts]
    if isinstance(adapter, dspy.XMLAdapter):
        return [without_tags(text) for text in harmless]
    return harmless


__all__ = ["ADAPTERS", "PlainChat", "guarded", "neutral", "quoted", "without_tags"]

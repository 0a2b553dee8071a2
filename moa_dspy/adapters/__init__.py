"""Adapters: how a question and its references become chat messages, and replies values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import dspy

from moa_dspy.adapters.guard import (
    neutral,
    quoted,
    reading_adapter,
    reply_problem,
    speaking_adapter,
)
from moa_dspy.adapters.plain_chat import LAYOUTS, PlainChat, guarded_references

__all__ = [
    "ADAPTERS",
    "LAYOUTS",
    "PlainChat",
    "guarded_references",
    "neutral",
    "quoted",
    "reading_adapter",
    "reply_problem",
    "speaking_adapter",
]


ADAPTERS: dict[str, Callable[[], Any]] = {
    # DSPy's default. A reply without its markers is asked for again, as JSON: a second call.
    "chat": dspy.ChatAdapter,
    # The same without the second call: a reply without the markers is a failure.
    "chat_strict": partial(dspy.ChatAdapter, use_json_adapter_fallback=False),
    # Replies in JSON; never asks again.
    "json": dspy.JSONAdapter,
    # The reference implementation's own messages, unguarded.
    "paper": partial(PlainChat, layout="paper"),
    # The same, with replies as they come: blanks stay, an empty reply is an empty reference.
    "paper_verbatim": partial(PlainChat, layout="paper", verbatim=True),
    # No format: one text in, one text out, guarded.
    "plain": PlainChat,
    # Replies in XML; one that is not well-formed is asked for again, as JSON.
    "xml": dspy.XMLAdapter,
    # The same without the second call.
    "xml_strict": partial(dspy.XMLAdapter, use_json_adapter_fallback=False),
}
"""Names that a study file or a saved program may use. Adding a line here is the registration."""

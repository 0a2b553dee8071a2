from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import dspy

from moa_dspy.references._tokens import count_tokens

_PER_MESSAGE: Final = 8
"""Tokens of a chat template around a message."""

_PER_PROMPT: Final = 32
"""Tokens of a chat template around all: its start, its own system text, whose turn it is."""

_PER_IMAGE: Final = 1600
"""Tokens of a part that is no text; vendors take 85 to 1,600 for an image."""


def built_tokens(
    module: Any,
    adapter: Any,
    inputs: Mapping[str, Any],
    count: Callable[[str], int] = count_tokens,
) -> int:
    """Return about how many tokens the prompt of a module's first predictor takes.

    Args:
        module: A DSPy module. One without a predictor is measured by its inputs' texts.
        adapter: None is DSPy's own choice, as at the call.
        inputs: What the module is called with.
        count: Tokens of a text.
    """
    predictors = module.predictors() if isinstance(module, dspy.Module) else []
    chosen = adapter or dspy.settings.adapter or dspy.ChatAdapter()
    messages: list[dict[str, Any]] = []
    if predictors:
        first: Any = predictors[0]
        try:
            # Callbacks are told of calls; this is none.
            with dspy.context(callbacks=[]):
                messages = chosen.format(first.signature, first.demos, dict(inputs))
        except Exception:
            # What is wrong with the inputs is for the call itself to say.
            messages = []
    if not messages:
        messages = [{"content": str(value)} for value in inputs.values()]
    return _PER_PROMPT + sum(_PER_MESSAGE + _size(m.get("content"), count) for m in messages)


def _size(content: Any, count: Callable[[str], int]) -> int:
    if not isinstance(content, list):
        return count(str(content or ""))
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return sum(_PER_IMAGE if text is None else count(str(text)) for text in texts)

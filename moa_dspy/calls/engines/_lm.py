"""A ``dspy.LM`` whose calls go through ``Calls``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy

from moa_dspy.calls._caller import Caller
from moa_dspy.calls._calls import Calls
from moa_dspy.calls.engines._async_engine import AsyncStoredEngine
from moa_dspy.calls.engines._callbacks import NOTE_SAMPLES
from moa_dspy.calls.engines._engine import StoredEngine


def stored_lm(
    model: str,
    calls: Calls,
    caller: Caller,
    build: Callable[[bool], Any],
    *,
    is_seeded: bool = False,
    timeout_seconds: float | None = None,
    hints: Any = None,
    **settings: Any,
) -> dspy.LM:
    """Return an LM that answers from ``calls`` and asks the engine of ``build`` otherwise.

    DSPy's own cache is off: its key ignores the endpoint and it forgets usage on hits. So
    are its retries: those of ``caller`` count every attempt and know the asker's deadline.

    Args:
        model: The LM's name, for histories and usage.
        calls: Where answers come from and go to.
        caller: Who asks.
        build: Makes the engine that really asks; it is told whether for coroutines.
        is_seeded: Whether the endpoint's samples are drawn by the call's content.
        timeout_seconds: How long one attempt may take in all.
        hints: What the model can do, as adapters ask it; see ``StoredEngine``.
        settings: Of ``dspy.LM``: temperature, max_tokens, ...
    """
    shared = {"is_seeded": is_seeded, "timeout_seconds": timeout_seconds, "hints": hints}
    return dspy.LM(
        model,
        cache=False,
        num_retries=0,
        callbacks=[NOTE_SAMPLES],
        engine=StoredEngine(calls, caller, lambda: build(False), **shared),
        async_engine=AsyncStoredEngine(calls, caller, lambda: build(True), **shared),
        **settings,
    )

"""A ``dspy.LM`` whose calls go through ``Calls``, and the callbacks that note its calls.

DSPy does not tell its engines of the call that they are part of, so callbacks do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import dspy
from dspy.utils.callback import BaseCallback

from moa_dspy.calls.calls import Calls
from moa_dspy.calls.lm.engine import AsyncStoredEngine, StoredEngine, lm_call_begins, lm_call_ends
from moa_dspy.calls.request import AgentCalls
from moa_dspy.calls.scope import CallFacts, current_scope

_N_LATEST: Final = 200
"""Entries of a history that are looked through: about as many as calls can overlap."""


class NoteSamples(BaseCallback):
    """Notes ``rollout_id`` and ``n`` of a call for the engine that will be asked."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note the call."""
        given = {**instance.kwargs, **inputs.get("kwargs", {})}
        rollout, n = given.get("rollout_id"), given.get("n") or 1
        lm_call_begins(call_id, model=instance.model, rollout=rollout, n=n)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Forget it."""
        lm_call_ends(call_id)


NOTE_SAMPLES: Final = NoteSamples()


class CountCalls(BaseCallback):
    """Puts the calls of an LM that is not ours into the log of their scope.

    Tokens are those of the LM's history, 0 without one; a call that DSPy's cache
    answered counts as any other.

    Args:
        agent: The LM's name in the log.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self._begun: dict[str, tuple[Any, float]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note when it began."""
        self._begun[call_id] = (instance, time.monotonic())

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Log what it took."""
        instance, started = self._begun.pop(call_id)
        usage = {} if exception else _usage(instance, outputs)
        facts = CallFacts(
            agent=self.agent,
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            usd=0.0,
            seconds=time.monotonic() - started,
            is_reused=False,
            failure=f"{type(exception).__name__}: {exception}" if exception else None,
        )
        current_scope().note(facts)


def _usage(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return the usage of the call that had these very outputs; others may be under way."""
    latest = reversed(lm.history[-_N_LATEST:])
    return next((dict(e["usage"] or {}) for e in latest if e.get("outputs") is outputs), {})


def stored_lm(
    model: str,
    calls: Calls,
    caller: AgentCalls,
    build: Callable[[bool], Any],
    *,
    is_seeded: bool = False,
    timeout_seconds: float | None = None,
    hints: Any = None,
    extra_body: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dspy.LM:
    """Return an LM that answers from ``calls`` and asks the engine of ``build`` otherwise.

    DSPy's own cache is off: its key ignores the endpoint and it forgets usage on hits. So
    are its retries: those of ``caller`` count every attempt and know the asker's deadline.

    Args:
        model: The LM's name, for histories and usage.
        calls: Where answers come from and go to.
        caller: The agent's name, identity, price and limits.
        build: Makes the engine that really asks; it is told whether for coroutines.
        is_seeded: Whether the endpoint's samples are drawn by the call's content.
        timeout_seconds: How long one attempt may take in all.
        hints: What the model can do, as adapters ask it; see ``StoredEngine``.
        extra_body: Further fields of every request.
        settings: Of ``dspy.LM``: temperature, max_tokens, ...
    """
    shared: dict[str, Any] = {
        "is_seeded": is_seeded,
        "timeout_seconds": timeout_seconds,
        "hints": hints,
        "extra_body": extra_body,
    }
    return dspy.LM(
        model,
        cache=False,
        num_retries=0,
        callbacks=[NOTE_SAMPLES],
        engine=StoredEngine(calls, caller, lambda: build(False), **shared),
        async_engine=AsyncStoredEngine(calls, caller, lambda: build(True), **shared),
        **settings,
    )

"""What is noted when a call of an LM begins and ends: DSPy's engines are not told."""

from __future__ import annotations

import time
from typing import Any, Final, Self

from dspy.utils.callback import BaseCallback

from moa_dspy.calls._scope import CallFacts, current_scope
from moa_dspy.calls.engines._samples import lm_call_begins, lm_call_ends

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
        current_scope().log.append(facts)


def _usage(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return the usage of the call that had these very outputs; others may be under way."""
    latest = reversed(lm.history[-_N_LATEST:])
    return next((dict(e["usage"] or {}) for e in latest if e.get("outputs") is outputs), {})

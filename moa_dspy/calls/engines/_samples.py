"""Which independent sample a request is: by its seat, DSPy's ``rollout_id`` and its ``n``.

DSPy gives an engine neither ``rollout_id`` nor ``n``: it sends ``n`` equal requests, one
after the other. Both are noted here when a call of an LM begins (see ``_callbacks``).
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

_FIRST_DERIVED: Final = 2**20
_N_DERIVED: Final = 2**31 - _FIRST_DERIVED


@dataclass(slots=True)
class _LMCall:
    """A call of an LM that is under way, inside ``outer`` if an engine asks another LM."""

    call_id: str
    model: str
    rollout: int | None
    n: int
    outer: _LMCall | None
    n_asked: int = 0


_UNDER_WAY: ContextVar[_LMCall | None] = ContextVar("moa_dspy_lm_call", default=None)


def lm_call_begins(call_id: str, *, model: str, rollout: int | None, n: int) -> None:
    """Note the call of an LM in this context."""
    _UNDER_WAY.set(_LMCall(call_id, model, rollout, n, outer=_UNDER_WAY.get()))


def lm_call_ends(call_id: str) -> None:
    """Forget it; the one around it counts again."""
    call = _UNDER_WAY.get()
    if call is not None and call.call_id == call_id:
        _UNDER_WAY.set(call.outer)


def next_sample(slot: int, *, model: str) -> int:
    """Return the sample index of the next request of the LM call that is under way.

    Args:
        slot: Index of the sample as the seat counts it.
        model: The LM's name on the request: an LM inside another has no part in its call.
    """
    call = _UNDER_WAY.get()
    if call is None or call.model != model:
        return slot
    index, call.n_asked = call.n_asked, call.n_asked + 1
    return sample_index(slot, rollout=call.rollout, completion=index if call.n > 1 else 0)


def sample_index(slot: int, *, rollout: int | None = None, completion: int = 0) -> int:
    """Return one index for the three, below 2**31.

    It is the slot where there is nothing else, else a number from 2**20 on that depends on
    the three only. Rollout 0 is a rollout of its own, as it is for DSPy.
    """
    if rollout is None and completion == 0:
        return slot
    digest = hashlib.sha256(f"{slot}/{rollout}/{completion}".encode()).digest()
    return _FIRST_DERIVED + int.from_bytes(digest[:8]) % _N_DERIVED

"""Single flight among processes: whoever holds the claim of a key asks, the others look again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from moa_dspy.calls._call import Call
from moa_dspy.calls._patience import Patience
from moa_dspy.calls._shelf import SharedShelf
from moa_dspy.calls._steps import Plan, Sleep, Work
from moa_dspy.calls.store._claims import pauses


def take_turn(
    shelf: SharedShelf,
    key: str,
    patience: Patience,
    *,
    look: Callable[[], Call | None],
    make: Callable[[], Plan],
) -> Plan:
    """Say how to get the call of ``key``: made elsewhere meanwhile, or by ``make``, claimed."""
    claiming = Work(partial(shelf.claim, key))
    try:
        for pause in pauses():
            yield claiming
            if claiming.result:
                break
            yield Sleep(patience, pause)
            if (call := look()) is not None:
                return call
        # It may have been answered between the last look and the claim.
        return look() or (yield from make())
    finally:
        if claiming.result:
            shelf.release(key)

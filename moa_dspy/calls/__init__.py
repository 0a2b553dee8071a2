"""Every call to a language model, made once, stored, and never paid for again."""

from typing import TYPE_CHECKING, Any

from moa_dspy.calls._budget import Budget, Estimate, Ledger, Spending
from moa_dspy.calls._call import Call, call_key, canonical_json
from moa_dspy.calls._calls import Ask, Caller, Calls
from moa_dspy.calls._recording import Recording
from moa_dspy.calls._scope import CallFacts, CallScope, call_scope, current_scope
from moa_dspy.calls._store import CallStore

if TYPE_CHECKING:
    from moa_dspy.calls._engine import AsyncStoredEngine, StoredEngine

__all__ = [
    "Ask",
    "AsyncStoredEngine",
    "Budget",
    "Call",
    "CallFacts",
    "CallScope",
    "CallStore",
    "Caller",
    "Calls",
    "Estimate",
    "Ledger",
    "Recording",
    "Spending",
    "StoredEngine",
    "call_key",
    "call_scope",
    "canonical_json",
    "current_scope",
]


def __getattr__(name: str) -> Any:
    # The engines need DSPy, which takes a second to import; the command line's help does not.
    if name in ("AsyncStoredEngine", "StoredEngine"):
        from moa_dspy.calls import _engine

        return getattr(_engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

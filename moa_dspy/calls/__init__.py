"""Calls to language models, each made and paid for once, then stored, within a budget."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moa_dspy.calls.budget import Budget, Ledger, Spending, budget_share, spending_under
from moa_dspy.calls.call import Call, NoStore, call_key, canonical_json
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.request import AgentCalls, CallRequest, Limiter, OutagePolicy, RetryPolicy
from moa_dspy.calls.scope import (
    CallEstimate,
    CallFacts,
    CallScope,
    Clock,
    DeadlineError,
    call_scope,
    current_scope,
    entered,
    interruptible,
)
from moa_dspy.calls.store.database import database_url, shown_url
from moa_dspy.calls.store.leases import SharedLimits
from moa_dspy.calls.store.schema import Recording
from moa_dspy.calls.store.store import (
    AgentSummary,
    CallFilter,
    CallStore,
    PaidTwice,
    filtered_calls,
    prune,
    summaries,
)

if TYPE_CHECKING:
    from moa_dspy.calls.lm.engine import AsyncStoredEngine, StoredEngine
    from moa_dspy.calls.lm.lm import Adopted, CountCalls, adopted, refusal, stored_lm

__all__ = [
    "Adopted",
    "AgentCalls",
    "AgentSummary",
    "AsyncStoredEngine",
    "Budget",
    "Call",
    "CallEstimate",
    "CallFacts",
    "CallFilter",
    "CallRequest",
    "CallScope",
    "CallStore",
    "Calls",
    "Clock",
    "CountCalls",
    "DeadlineError",
    "Ledger",
    "Limiter",
    "NoStore",
    "OutagePolicy",
    "PaidTwice",
    "Recording",
    "RetryPolicy",
    "SharedLimits",
    "Spending",
    "StoredEngine",
    "adopted",
    "budget_share",
    "call_key",
    "call_scope",
    "canonical_json",
    "current_scope",
    "database_url",
    "entered",
    "filtered_calls",
    "interruptible",
    "prune",
    "refusal",
    "shown_url",
    "spending_under",
    "stored_lm",
    "summaries",
]


_NEED_DSPY = {
    "Adopted": "lm",
    "AsyncStoredEngine": "engine",
    "CountCalls": "lm",
    "StoredEngine": "engine",
    "adopted": "lm",
    "refusal": "lm",
    "stored_lm": "lm",
}
"""The engines need DSPy, which takes a second to import; the command line's help does not."""


def __getattr__(name: str) -> Any:
    if name in _NEED_DSPY:
        return getattr(import_module(f"{__name__}.lm.{_NEED_DSPY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

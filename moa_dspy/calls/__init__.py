"""Every call to a language model, made once, stored, and never paid for again."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moa_dspy.calls._call import Call, call_key, canonical_json
from moa_dspy.calls._caller import Ask, Caller
from moa_dspy.calls._calls import Calls
from moa_dspy.calls._clock import Clock
from moa_dspy.calls._endurance import Endurance
from moa_dspy.calls._limits import Limiter
from moa_dspy.calls._patience import DeadlineError
from moa_dspy.calls._recording import Recording
from moa_dspy.calls._retry import RetryPolicy
from moa_dspy.calls._scope import CallFacts, CallScope, call_scope, current_scope
from moa_dspy.calls._shelf import NoStore
from moa_dspy.calls.budgets._budget import Budget, Estimate, Spending
from moa_dspy.calls.budgets._ledger import Ledger
from moa_dspy.calls.store._chosen import AgentSummary, Chosen, chosen_calls, prune, summaries
from moa_dspy.calls.store._database_url import database_url
from moa_dspy.calls.store._database_url import shown as shown_url
from moa_dspy.calls.store._shared_limits import SharedLimits
from moa_dspy.calls.store._store import CallStore
from moa_dspy.calls.store._table import PaidTwice

if TYPE_CHECKING:
    from moa_dspy.calls.engines._adopt import Adopted, adopted, refusal
    from moa_dspy.calls.engines._async_engine import AsyncStoredEngine
    from moa_dspy.calls.engines._callbacks import CountCalls
    from moa_dspy.calls.engines._engine import StoredEngine
    from moa_dspy.calls.engines._lm import stored_lm

__all__ = [
    "Adopted",
    "AgentSummary",
    "Ask",
    "AsyncStoredEngine",
    "Budget",
    "Call",
    "CallFacts",
    "CallScope",
    "CallStore",
    "Caller",
    "Calls",
    "Chosen",
    "Clock",
    "CountCalls",
    "DeadlineError",
    "Endurance",
    "Estimate",
    "Ledger",
    "Limiter",
    "NoStore",
    "PaidTwice",
    "Recording",
    "RetryPolicy",
    "SharedLimits",
    "Spending",
    "StoredEngine",
    "adopted",
    "call_key",
    "call_scope",
    "canonical_json",
    "chosen_calls",
    "current_scope",
    "database_url",
    "prune",
    "refusal",
    "shown_url",
    "stored_lm",
    "summaries",
]

_NEED_DSPY = {
    "Adopted": "_adopt",
    "AsyncStoredEngine": "_async_engine",
    "CountCalls": "_callbacks",
    "StoredEngine": "_engine",
    "adopted": "_adopt",
    "refusal": "_adopt",
    "stored_lm": "_lm",
}
"""The engines need DSPy, which takes a second to import; the command line's help does not."""


def __getattr__(name: str) -> Any:
    if name in _NEED_DSPY:
        return getattr(import_module(f"{__name__}.engines.{_NEED_DSPY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

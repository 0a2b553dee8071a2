"""Mixture-of-Agents as DSPy modules, and a search for the best models in each layer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moa_dspy.agent import Agent
    from moa_dspy.architecture import Architecture
    from moa_dspy.calls import Budget
    from moa_dspy.errors import MoaError
    from moa_dspy.mixture import MixtureOfAgents
    from moa_dspy.optimize import ModelSearch, optimize_aggregator
    from moa_dspy.pool import Pool
    from moa_dspy.presets import moa, moa_lite, self_moa, self_moa_seq
    from moa_dspy.streaming import AnswerListener

__all__ = [
    "Agent",
    "AnswerListener",
    "Architecture",
    "Budget",
    "MixtureOfAgents",
    "MoaError",
    "ModelSearch",
    "Pool",
    "moa",
    "moa_lite",
    "optimize_aggregator",
    "self_moa",
    "self_moa_seq",
]

_ROOMS = {
    "Agent": "agent",
    "AnswerListener": "streaming",
    "Architecture": "architecture",
    "Budget": "calls",
    "MixtureOfAgents": "mixture",
    "ModelSearch": "optimize",
    "MoaError": "errors",
    "Pool": "pool",
    "moa": "presets",
    "moa_lite": "presets",
    "optimize_aggregator": "optimize",
    "self_moa": "presets",
    "self_moa_seq": "presets",
}


def __getattr__(name: str) -> Any:
    # DSPy takes one second to import, Optuna half a second: each is imported when it is needed.
    if name in _ROOMS:
        return getattr(import_module(f"moa_dspy.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

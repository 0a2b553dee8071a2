"""Small models on this machine: pinned weights, llama.cpp in the process, DSPy engines.

``pull`` fetches a catalogue entry, ``shared_server`` runs it, ``LocalEngine`` hands it to DSPy.
Importing this room loads neither DSPy nor the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moa_dspy.local._build import local_engine
from moa_dspy.local._catalogue import CATALOGUE, Weights
from moa_dspy.local._checksums import sha256_of, verify
from moa_dspy.local._pull import pull
from moa_dspy.local._server import LocalServer, shared_server, usable_cores
from moa_dspy.local._sources import HubSource, Source, WheelSource
from moa_dspy.local._weights import ModelStatus, check, find, models_table, weights_folder

if TYPE_CHECKING:
    from moa_dspy.local._engine import AsyncLocalEngine, LocalEngine

__all__ = [
    "CATALOGUE",
    "AsyncLocalEngine",
    "HubSource",
    "LocalEngine",
    "LocalServer",
    "ModelStatus",
    "Source",
    "Weights",
    "WheelSource",
    "check",
    "find",
    "local_engine",
    "models_table",
    "pull",
    "sha256_of",
    "shared_server",
    "usable_cores",
    "verify",
    "weights_folder",
]


def __getattr__(name: str) -> object:
    # DSPy takes seconds to import, and `moa-dspy models list` does not need it.
    if name in {"AsyncLocalEngine", "LocalEngine"}:
        from moa_dspy.local import _engine

        return getattr(_engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

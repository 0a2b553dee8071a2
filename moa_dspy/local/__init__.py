"""Small models on this machine: pinned weights, llama.cpp in this process, DSPy engines.

``pull`` downloads the weights of a catalogue entry, ``shared_server`` runs them, ``LocalEngine``
connects them to DSPy. Importing this package loads neither DSPy nor the runtime.
"""

from typing import TYPE_CHECKING

from moa_dspy.local.server import (
    CATALOGUE,
    HubSource,
    LocalServer,
    Source,
    Weights,
    WheelSource,
    shared_server,
    usable_cores,
)
from moa_dspy.local.weights import (
    ModelStatus,
    find,
    models_table,
    pull,
    sha256_of,
    verify,
    weights_folder,
    weights_status,
)

if TYPE_CHECKING:
    from moa_dspy.local.engine import AsyncLocalEngine, LocalEngine, local_engine

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
    "find",
    "local_engine",
    "models_table",
    "pull",
    "sha256_of",
    "shared_server",
    "usable_cores",
    "verify",
    "weights_folder",
    "weights_status",
]


def __getattr__(name: str) -> object:
    # DSPy takes seconds to import, and `moa-dspy models list` does not need it.
    if name in {"AsyncLocalEngine", "LocalEngine", "local_engine"}:
        from moa_dspy.local import engine as _engine

        return getattr(_engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

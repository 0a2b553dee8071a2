"""The module that sits in a seat: any DSPy module of the caller's, asked in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

import dspy

from moa_dspy.errors import ArchitectureError
from moa_dspy.threads import THREADS


async def acall(module: Any, inputs: Mapping[str, Any]) -> Any:
    """Ask ``module`` from a coroutine; one that has only ``forward`` is asked in a thread."""
    if hasattr(module, "aforward"):
        return await module.acall(**inputs)
    task = partial(copy_context().run, partial(module, **inputs))
    return await asyncio.wrap_future(THREADS.submit(task))


def values_of(module: Any, prediction: Any) -> dict[str, Any]:
    """Return what ``module`` answered: its signature's outputs, or all that it returned.

    So a module that says what it answers may keep notes beside it, as ReAct its
    trajectory: they are neither read by the next layer nor part of the prediction.

    Raises:
        ArchitectureError: If it returned no ``dspy.Prediction``.
    """
    if not isinstance(prediction, dspy.Example):
        raise ArchitectureError(
            "The module of a seat must return a dspy.Prediction, but "
            f"{type(module).__name__} returned {prediction!r}."
        )
    fields = getattr(getattr(module, "signature", None), "output_fields", None)
    names = prediction.keys() if fields is None else fields
    return {name: prediction[name] for name in names if name in prediction}

"""Optuna's samplers as a study file names them."""

from __future__ import annotations

from typing import Any, Final

import optuna

from moa_dspy.optimize.named import made

SAMPLERS: Final[dict[str, Any]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}


def make_sampler(name: str | None, *, seed: int) -> Any:
    """Return the sampler that a study names; None where the response model proposes.

    Raises:
        StudyError: If it is unknown, or cannot be made.
    """
    if name is None:
        return None
    if name in SAMPLERS:
        return SAMPLERS[name](seed=seed)
    return made("search.sampler", name, SAMPLERS, has="sample_independent")

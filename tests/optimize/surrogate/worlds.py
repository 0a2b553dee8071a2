"""Small pools and spaces with scores that follow a rule, for the tests of the response model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.surrogate.gp import Kernels, Traits

Matrix = NDArray[np.float64]
STRENGTH = {"a": 0.3, "b": 0.4, "c": 0.5, "d": 0.6, "e": 0.7}
NAMES = tuple(STRENGTH)


def unlike(a: str, b: str) -> float:
    """Neighbours in the alphabet are alike; 0 for one agent, 1 for a and e."""
    return abs(ord(a) - ord(b)) / 4


def kernels(names: Sequence[str] = NAMES, pair: Callable[[str, str], float] = unlike) -> Kernels:
    return Kernels.of(Traits({name: STRENGTH[name] for name in names}, pair))


def mixtures(space: SearchSpace) -> list[Architecture]:
    """Every architecture of one layer, and every single agent."""
    layers = list(space.layers())
    written = [Architecture((layer,), writer) for layer, writer in product(layers, space.agents)]
    return [*map(Architecture.single, space.agents), *written]


def seen(truths: Sequence[float], *, n_rows: int, seed: int, in_common: float = 0.0) -> Matrix:
    """Return scores of architectures on rows: truth, the row's difficulty, noise of 0.3."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.3, (len(truths), n_rows))
    return np.array(truths)[:, None] + noise + in_common * rng.normal(0, 0.3, n_rows)

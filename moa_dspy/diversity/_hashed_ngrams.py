from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moa_dspy.diversity._base import Matrix
from moa_dspy.diversity._grams import character_ids
from moa_dspy.errors import MetricError

_GOLDEN, _FIRST, _SECOND = (
    np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@dataclass(frozen=True, slots=True)
class HashedNgrams:
    """Embeds texts without a model: signed counts of hashed character n-grams, casefolded.

    Feature hashing (Weinberger et al., ICML 2009): an n-gram adds 1 or -1 to one of
    ``n_dimensions``, so that the inner product of two texts is expected to be the one of their
    n-gram counts. The hash is splitmix64, the same in every process and on every machine. A text
    shorter than ``n`` is one n-gram; the empty text is the zero vector.

    Raises:
        MetricError: ``n`` or ``n_dimensions`` is below 1.
    """

    n: int = 3
    n_dimensions: int = 4_096

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("n_dimensions", self.n_dimensions)):
            if value < 1:
                raise MetricError(f"`{name}` must be at least 1, but got {value}.")

    def __call__(self, texts: Sequence[str], /) -> Matrix:
        """Return one row for each text."""
        vectors: Matrix = np.zeros((len(texts), self.n_dimensions))
        folded = [t.casefold() for t in texts]
        for vector, characters in zip(vectors, character_ids(folded), strict=True):
            hashes = self._hashes(characters.astype(np.uint64))
            places = (hashes % np.uint64(self.n_dimensions)).astype(np.int64)
            signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
            vector += np.bincount(places, weights=signs, minlength=self.n_dimensions)
        return vectors

    def _hashes(self, characters: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width = min(self.n, characters.size)
        hashes = np.zeros(characters.size - width + 1 if width else 0, dtype=np.uint64)
        for k in range(width):
            hashes = _mixed(hashes ^ (characters[k : k + hashes.size] + _GOLDEN))
        return hashes


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))

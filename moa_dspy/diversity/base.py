"""The protocols of diversity metrics, and arithmetic on matrices of similarities."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class DiversityMetric(Protocol):
    """Maps the responses of one layer to a number in [0, 1]; more is more diverse.

    0 on copies and on fewer than two responses; 1 between an empty text and one with words; blind
    to the order of the responses; changes nothing. Every string is accepted, lone surrogates
    included. Every name in ``METRICS`` is called without arguments and held to this by
    ``tests/diversity/test_contract.py``.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """Score the texts of one layer's responses."""
        ...


@runtime_checkable
class PairwiseMetric(Protocol):
    """A diversity metric that judges all pairs of responses at once."""

    def __call__(self, responses: Sequence[str], /) -> float:
        """Score the texts of one layer's responses."""
        ...

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the symmetric matrix of ``1 - self([a, b])``, each pair as if it were alone."""
        ...


def mean_distance(similarities: Matrix) -> float:
    """Return the mean of ``1 - similarities`` over all unordered pairs; 0 without a pair."""
    upper = np.triu_indices(len(similarities), k=1)
    distances: list[float] = (1.0 - similarities[upper]).tolist()
    # fmean sums exactly, so the order of the responses cannot show in the last digit.
    return fmean(distances) if distances else 0.0


def equal_pairs(texts: Sequence[str]) -> Matrix:
    """Return 1 where two texts are the same, else 0."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    equal: Matrix = (ids[:, None] == ids[None, :]).astype(np.float64)
    return equal


def with_copies(similarities: Matrix, responses: Sequence[str]) -> Matrix:
    """Return the matrix in [0, 1], exactly 1 for texts that differ only in outer white space.

    A text in which a metric finds nothing to count is therefore like its copies alone, and all
    blank texts are copies.
    """
    return np.maximum(np.clip(similarities, 0.0, 1.0), equal_pairs([r.strip() for r in responses]))


def cosines(vectors: Matrix) -> Matrix:
    """Return the cosines between the rows, in [-1, 1]; 0 for a row of zeros."""
    peaks = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)
    # Squares of very large or small numbers would leave the range of floats.
    scaled = vectors / np.where(peaks > 0, peaks, 1.0)
    norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    units = scaled / np.where(norms > 0, norms, 1.0)[:, None]
    return np.clip(units @ units.T, -1.0, 1.0)

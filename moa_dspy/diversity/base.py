"""Protocols of diversity metrics, matrices of similarities, and differences of short answers.

The functions of errors take the scores of agents on the same examples, (n_agents, n_examples), in
[0, 1]; below 0.5 is wrong; NaN is a cell that was not measured, and each pair is compared on the
examples that both have. They return a symmetric (n_agents, n_agents) matrix, NaN for a pair
without common examples. Definitions: Kuncheva & Whitaker, Machine Learning 51 (2003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError

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
    distances: list[float] = (1.0 - similarities[_pairs_of(len(similarities))]).tolist()
    # fmean sums exactly, so the order of the responses cannot show in the last digit.
    return fmean(distances) if distances else 0.0


@lru_cache(maxsize=64)
def _pairs_of(n: int) -> tuple[NDArray[np.intp], ...]:
    """Return the places of all unordered pairs of ``n``: finding them takes longest."""
    return np.triu_indices(n, k=1)


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


def _casefolded(text: str) -> str:
    return text.casefold().strip()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Share of pairs whose texts differ after ``normalise`` (Skalak 1996, on answers).

    By default texts are casefolded and stripped. Give a function that extracts the final answer
    to compare what the responses conclude rather than how they say it.
    """

    normalise: Callable[[str], str] = _casefolded

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 for every two responses that agree, else 0."""
        return equal_pairs([self.normalise(r) for r in responses])


_RIGHT_FROM = 0.5


def pairwise_disagreement(scores: Matrix) -> Matrix:
    """Return the share of examples on which exactly one of two agents is wrong, in [0, 1].

    0 on the diagonal; constant agents are no exception.

    Raises:
        MetricError: not a matrix, or a score outside [0, 1].
    """
    wrong, seen = _wrong_and_seen(scores)
    alone = wrong @ seen.T - wrong @ wrong.T
    return _divided(alone + alone.T, seen @ seen.T)


def double_fault(scores: Matrix) -> Matrix:
    """Return the share of examples on which both agents are wrong, in [0, 1]; less is better.

    The diagonal is each agent's own error rate (Giacinto & Roli 2001).

    Raises:
        MetricError: not a matrix, or a score outside [0, 1].
    """
    wrong, seen = _wrong_and_seen(scores)
    return _divided(wrong @ wrong.T, seen @ seen.T)


def error_correlation(scores: Matrix) -> Matrix:
    """Return the correlation (phi) of two agents' errors, in [-1, 1]; less is better.

    NaN where an agent is always right or always wrong on the common examples: a constant has no
    correlation, not even with itself. Else 1 on the diagonal.

    Raises:
        MetricError: not a matrix, or a score outside [0, 1].
    """
    wrong, seen = _wrong_and_seen(scores)
    n = seen @ seen.T
    first = wrong @ seen.T
    second = first.T
    covariance = n * (wrong @ wrong.T) - first * second
    scale = np.sqrt(first * (n - first)) * np.sqrt(second * (n - second))
    return np.clip(_divided(covariance, scale), -1.0, 1.0)


def _wrong_and_seen(scores: Matrix) -> tuple[Matrix, Matrix]:
    """Return two matrices of 0 and 1: wrong and measured, measured."""
    cells = np.asarray(scores, dtype=np.float64)
    if cells.ndim != 2:
        raise MetricError(f"`scores` must be (agents, examples), but has shape {cells.shape}.")
    seen = ~np.isnan(cells)
    outside = seen & ~((cells >= 0) & (cells <= 1))
    if outside.any():
        raise MetricError(f"`scores` must be in [0, 1], but {float(cells[outside][0])} is not.")
    wrong = seen & (cells < _RIGHT_FROM)
    return wrong.astype(np.float64), seen.astype(np.float64)


def _divided(numerator: Matrix, denominator: Matrix) -> Matrix:
    quotient: Matrix = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient

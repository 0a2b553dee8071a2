"""N-grams of several texts at once, counted as whole numbers.

A text is an array of token numbers; tokens are words or characters. Everything is exact: equal
n-grams share a column, different ones never do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moa_dspy.diversity._base import Matrix

Ids = NDArray[np.int64]
_LARGEST_TABLE = 2**22
"""Codes below this are numbered through a table, which is faster than sorting them."""


def word_ids(texts: Sequence[Sequence[str]]) -> tuple[list[Ids], tuple[str, ...]]:
    """Number the words of all texts from 0, and return the words in that order as well."""
    known: dict[str, int] = {}
    ids = [
        np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)
        for words in texts
    ]
    return ids, tuple(known)


def character_ids(texts: Sequence[str]) -> list[Ids]:
    """Return the code points of each text, lone surrogates included."""
    return [
        np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
        for text in texts
    ]


def gram_counts(texts: Sequence[Ids], n: int, *, short_is_one: bool = False) -> Ids:
    """Count the n-grams of each text, (texts, distinct n-grams); every column is used.

    Columns of 1-grams are in the order of the token numbers. Linear in the total length, but for
    the table of counts itself.

    Args:
        texts: Token numbers from 0.
        n: Length of an n-gram, from 1.
        short_is_one: A text of fewer than ``n`` tokens, the empty one included, is one n-gram;
            else it has none.
    """
    rows = _filled(texts, n) if short_is_one else list(texts)
    owners = np.repeat(np.arange(len(rows)), [row.size for row in rows])
    if owners.size < n:
        return np.zeros((len(rows), 0), dtype=np.int64)
    starts = np.flatnonzero(owners[: owners.size - n + 1] == owners[n - 1 :])
    tokens, n_tokens = _ranks(np.concatenate(rows))
    grams, n_grams = _ranks(tokens[starts])
    for k in range(1, n):
        grams, n_grams = _ranks(grams * n_tokens + tokens[starts + k])
    cells = np.bincount(owners[starts] * n_grams + grams, minlength=len(rows) * n_grams)
    return cells.reshape(len(rows), n_grams)


def shared_grams(counts: Ids) -> Matrix:
    """Return how many distinct n-grams two texts share; each one's own number on the diagonal."""
    present = (counts > 0).astype(np.float64)
    return present @ present.T


def jaccard(shared: Matrix) -> Matrix:
    """Return |A & B| / |A | B| (Jaccard 1901) of sets that are not empty."""
    sizes = np.diag(shared)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def clipped_matches(counts: Ids) -> Matrix:
    """Return the sum over n-grams of the smaller of two texts' counts."""
    n_texts = len(counts)
    matches: Matrix = np.zeros((n_texts, n_texts))
    for i in range(n_texts):
        matches[i, i:] = matches[i:, i] = np.minimum(counts[i], counts[i:]).sum(axis=1)
    return matches


def _filled(texts: Sequence[Ids], n: int) -> list[Ids]:
    # No token has this number, so a short text equals nothing but itself.
    filler = 1 + max((int(text.max()) for text in texts if text.size), default=0)
    return [np.pad(t, (0, max(n - t.size, 0)), constant_values=filler) for t in texts]


def _ranks(codes: Ids) -> tuple[Ids, int]:
    """Number the distinct codes from 0, smallest first, and say how many they are."""
    if not codes.size:
        return codes, 0
    size = int(codes.max()) + 1
    if size > _LARGEST_TABLE:
        distinct, ranks = np.unique(codes, return_inverse=True)
        return ranks.astype(np.int64), distinct.size
    seen = np.zeros(size, dtype=np.bool_)
    seen[codes] = True
    distinct = np.flatnonzero(seen)
    place = np.empty(size, dtype=np.int64)
    place[distinct] = np.arange(distinct.size)
    return place[codes], distinct.size

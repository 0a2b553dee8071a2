from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.uint32]
LARGEST_POOL: Final = 15
"""Agents at most: the rank of a camp's vote, and whether it is right, then fit into one byte."""
_LAYERS_AT_ONCE = 512  # the table of a block then stays in the cache
_COLUMNS_AT_ONCE = 2048
_MOST_ONES = 255


@dataclass(frozen=True, slots=True, eq=False)
class Camps:
    """Who agrees with whom in every column, and which of them are right.

    A camp is all agents with one answer: a bit mask, and 16 bits above it that of its members
    who are right. Columns in which nobody is right are left out: every vote of them is wrong.
    """

    rows: NDArray[np.intp]  # (columns,)
    camps: Masks  # (columns, agents), a column's camps first, then 0

    @classmethod
    def of(cls, rows: NDArray[np.intp], codes: NDArray[np.int16], right: NDArray[np.bool_]) -> Self:
        """Return the camps of ``codes``, (agents, columns); -1 is no answer and no camp."""
        right = right & (codes >= 0)
        kept = np.flatnonzero(right.any(0))
        rows, codes, right = rows[kept], codes[:, kept], right[:, kept]
        bit = (1 << np.arange(len(codes), dtype=np.uint32))[:, None]
        correct = (right * bit).sum(0, dtype=np.uint32)
        free = codes >= 0
        camps = np.zeros(codes.shape, np.uint32)
        for i, code in enumerate(codes):
            members = (codes[i:] == code) & free[i]
            camp = (members * bit[i:]).sum(0, dtype=np.uint32)
            camps[i] = camp | (camp & correct) << np.uint32(16)
            free[i:] &= ~members
        return cls(rows, -np.sort(-camps.T.astype(np.int64), axis=1).astype(np.uint32))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return the columns of all ``parts``."""
        every = list(parts)
        return cls(
            np.concatenate([p.rows for p in every]), np.concatenate([p.camps for p in every])
        )


def count_right(camps: Camps, layers: Masks, *, n_rows: int) -> NDArray[np.int32]:
    """Return how many columns of each row every layer's vote gets right, (layers, rows).

    A tie goes to the camp of the layer's first agent among the tied, and that agent is the
    one who must be right. Exact. Time goes with columns x layers; one byte each, read from a
    table of every camp's standing in every layer, of which a column's greatest wins.
    """
    n_camps = (camps.camps > 0).sum(1)
    kinds, kind = np.unique(camps.camps[camps.camps > 0], return_inverse=True)
    place = np.zeros(camps.camps.shape, np.intp)
    place[camps.camps > 0] = kind
    right = np.zeros((len(layers), n_rows), np.int32)
    for start in range(0, len(layers), _LAYERS_AT_ONCE):
        block = slice(start, start + _LAYERS_AT_ONCE)
        table = _standings(kinds, layers[block], camps.camps.shape[1])
        for n in np.unique(n_camps):
            columns = np.flatnonzero(n_camps == n)
            _add_winners(table, place[columns, :n], camps.rows[columns], right[block])
    return right


def _add_winners(
    table: NDArray[np.uint8],
    place: NDArray[np.intp],
    rows: NDArray[np.intp],
    right: NDArray[np.int32],
) -> None:
    for start in range(0, len(rows), _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        best = table.take(place[part, 0], axis=0)
        for slot in place[part, 1:].T:
            np.maximum(best, table.take(slot, axis=0), out=best)
        best &= 1
        ends = np.union1d(
            np.flatnonzero(np.diff(rows[part])) + 1, np.arange(0, len(best), _MOST_ONES)
        )
        for first, last in zip(ends, [*ends[1:], len(best)], strict=True):
            # A byte holds the sum of 255 columns, and adding bytes is what is quick.
            right[:, rows[start + first]] += best[first:last].sum(0, dtype=np.uint8)


def _standings(kinds: Masks, layers: Masks, n_agents: int) -> NDArray[np.uint8]:
    """Return 2 x (rank of the camp's vote in the layer) + (right), (kinds, layers)."""
    members = (kinds & np.uint32(0xFFFF)).astype(np.uint16)[:, None] & layers.astype(np.uint16)
    correct = (kinds >> np.uint32(16)).astype(np.uint16)[:, None]
    first = members & (~members + np.uint16(1))
    standing = _ranks(n_agents).take(members)
    return standing | ((correct & first) > 0)


def _ranks(n_agents: int) -> NDArray[np.uint8]:
    """Return twice the rank of every set of agents: by size, then by how early its first is.

    A set of size s whose first agent is f has s + f <= n_agents: so few pairs fit a byte.
    """
    pairs = [(s, -f) for s in range(1, n_agents + 1) for f in range(n_agents - s + 1)]
    rank = {pair: 2 * i for i, pair in enumerate(sorted(pairs), 1)}
    sets = range(1, 1 << n_agents)
    firsts = ((mask & -mask).bit_length() - 1 for mask in sets)
    return np.array(
        [0, *(rank[m.bit_count(), -f] for m, f in zip(sets, firsts, strict=True))], np.uint8
    )

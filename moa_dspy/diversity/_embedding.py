from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from moa_dspy.diversity._base import Matrix, cosines, equal_pairs, mean_distance, with_copies
from moa_dspy.diversity._hashed_ngrams import HashedNgrams
from moa_dspy.errors import MetricError

Embed = Callable[[list[str]], ArrayLike]
"""Maps texts to one row of finite numbers each; a ``dspy.Embedder`` is one."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class EmbeddingDistance:
    """1 - the mean cosine of the responses' embeddings; opposed embeddings count as unrelated.

    ``embed`` is asked once per call, with the distinct texts that are not blank, stripped and in
    sorted order, so neither copies nor order can change or cost anything. Blank texts are copies
    of each other and 0 with any other. A lone surrogate, which no endpoint takes, is sent as
    U+FFFD. The default needs no model and compares spelling, not meaning.

    Attributes:
        embed: A ``dspy.Embedder`` or any callable from texts to rows of numbers.

    Raises:
        MetricError: when called, if ``embed`` returns anything but a row of finite numbers for
            each text.
    """

    embed: Embed = field(default_factory=HashedNgrams)

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, negative ones as 0."""
        return with_copies(self._cosines(responses), responses)

    def similarities(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, in [-1, 1], a kernel for ``VendiScore``."""
        copies = equal_pairs([r.strip() for r in responses])
        return np.where(copies > 0, 1.0, self._cosines(responses))

    def _cosines(self, responses: Sequence[str]) -> Matrix:
        texts = [_SURROGATE.sub("\ufffd", r.strip()) for r in responses]
        distinct = sorted({t for t in texts if t})
        if not distinct:
            return np.zeros((len(texts), len(texts)))
        rows = self._rows(distinct)
        # One more row, of zeros: the blank text.
        vectors = np.vstack([rows, np.zeros((1, rows.shape[1]))])
        place = {text: i for i, text in enumerate(distinct)}
        return cosines(vectors[[place.get(t, len(distinct)) for t in texts]])

    def _rows(self, distinct: list[str]) -> Matrix:
        rows = np.asarray(self.embed(distinct), dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(distinct) or not rows.shape[1]:
            raise MetricError(
                f"`embed` must return ({len(distinct)}, dimensions) numbers for {len(distinct)} "
                f"texts, but returned shape {rows.shape}."
            )
        if not np.isfinite(rows).all():
            raise MetricError("`embed` must return finite numbers, but returned NaN or infinity.")
        return rows

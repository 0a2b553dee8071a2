from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Self

import numpy as np

from moa_dspy.diversity._base import Matrix, cosines, mean_distance, with_copies
from moa_dspy.diversity._grams import gram_counts, word_ids
from moa_dspy.errors import MetricError

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TfidfDistance:
    r"""1 - the mean cosine of the responses' TF-IDF vectors (Sparck Jones 1972).

    The weight of a word is its count times ln((1 + D) / (1 + d)) + 1, with d of D documents
    holding it. The documents are the responses that are compared, so that words which all
    of them use tell least; or the corpus of ``fitted_on``, whose unknown words are not counted.
    scikit-learn's ``TfidfVectorizer(token_pattern=r"\w+")`` gives the same: words are runs of
    letters, digits and underscores, one character is enough (an answer may be "B" or "7"), in
    lower case. Copies are 1 even where they have no word; else a text without words is 0 with any
    other.

    Attributes:
        idf: Weight of each known word; ``None`` derives weights from the responses.
    """

    idf: Mapping[str, float] | None = field(default=None, repr=False)

    @classmethod
    def fitted_on(cls, corpus: Iterable[str]) -> Self:
        """Return the metric whose word weights come from the documents of ``corpus``.

        Raises:
            MetricError: the corpus has no document.
        """
        documents = [frozenset(_words(text)) for text in corpus]
        if not documents:
            raise MetricError("`corpus` must have at least one document, but has none.")
        holders = Counter(word for words in documents for word in words)
        return cls({word: _weight(len(documents), d) for word, d in sorted(holders.items())})

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.similarities(responses))

    def similarities(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, the weights being those of all of them.

        Positive semi-definite with 1 on the diagonal, so a kernel for ``VendiScore``.
        """
        ids, words = word_ids([_words(r) for r in responses])
        counts = gram_counts(ids, 1)
        known = self.idf
        if known is None:
            holders: list[int] = (counts > 0).sum(axis=0).tolist()
            weights = [_weight(len(responses), d) for d in holders]
        else:
            weights = [known.get(word, 0.0) for word in words]
        vectors = counts.astype(np.float64) * np.array(weights, dtype=np.float64)
        return with_copies(cosines(vectors), responses)

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, the weights being those of the two."""
        if self.idf is not None:
            return self.similarities(responses)
        # Of two documents a word is in both, weight 1, or in one: then it adds to one norm alone.
        ids, _ = word_ids([_words(r) for r in responses])
        counts = gram_counts(ids, 1).astype(np.float64)
        squares, alone = counts**2, _weight(2, 1) ** 2
        common = squares @ (counts > 0).astype(np.float64).T
        norms = np.sqrt(alone * squares.sum(axis=1)[:, None] + (1 - alone) * common)
        scale = norms * norms.T
        quotients = counts @ counts.T / np.where(scale > 0, scale, 1.0)
        return with_copies(quotients, responses)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _weight(n_documents: int, n_holding: int) -> float:
    return log((1 + n_documents) / (1 + n_holding)) + 1

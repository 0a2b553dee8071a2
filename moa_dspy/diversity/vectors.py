"""Distances of texts as vectors: TF-IDF, hashed n-grams, given embeddings, and edit distance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moa_dspy.diversity.base import (
    Matrix,
    character_ids,
    cosines,
    equal_pairs,
    gram_counts,
    mean_distance,
    with_copies,
    word_ids,
)
from moa_dspy.errors import MetricError

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TfidfDistance:
    r"""1 - the mean cosine of the responses' TF-IDF vectors (Sparck Jones 1972).

    The weight of a word is its count times ln((1 + D) / (1 + d)) + 1, with d of D documents holding
    it. The documents are the compared responses, so words in all of them have the least weight; or
    the corpus of ``fitted_on``, and words outside it are not counted. scikit-learn's
    ``TfidfVectorizer(token_pattern=r"\w+")`` gives the same in about 15 times as long for the few
    texts of a layer: words are runs of letters, digits and underscores, one character is enough (an
    answer may be "B" or "7"), in lower case. The similarity of copies is 1 even without words;
    otherwise a text without words has similarity 0 to any other.

    Attributes:
        idf: Weight of each known word; ``None`` derives weights from the responses.
    """

    idf: Mapping[str, float] | None = field(default=None, repr=False)

    @classmethod
    def fitted_on(cls, corpus: Iterable[str]) -> Self:
        """Return the metric whose word weights come from the documents of ``corpus``.

        Raises:
            MetricError: If the corpus has no document.
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
        """Return the cosine of every two responses, with word weights from all responses.

        It is positive semi-definite with 1 on the diagonal, so it is a kernel for ``VendiScore``.
        """
        ids, words = word_ids([_words(r) for r in responses])
        counts = gram_counts(ids, 1)
        idf = self.idf
        if idf is None:
            holders: list[int] = (counts > 0).sum(axis=0).tolist()
            weights = [_weight(len(responses), d) for d in holders]
        else:
            weights = [idf.get(word, 0.0) for word in words]
        vectors = counts.astype(np.float64) * np.array(weights, dtype=np.float64)
        return with_copies(cosines(vectors), responses)

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, with word weights from the two alone."""
        if self.idf is not None:
            return self.similarities(responses)
        # With two documents, a word is in both (weight 1) or in one, where it adds only to its
        # norm.
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


_GOLDEN, _FIRST, _SECOND = (
    np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@dataclass(frozen=True, slots=True)
class HashedNgrams:
    """Embeds texts without a model: signed counts of hashed character n-grams, casefolded.

    Feature hashing (Weinberger et al., ICML 2009): an n-gram adds 1 or -1 to one of
    ``n_dimensions``, so that the expected inner product of two texts is that of their n-gram
    counts. The hash is splitmix64, the same in every process and on every machine. A text shorter
    than ``n`` is one n-gram; the empty text is the zero vector.

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


Embed = Callable[[list[str]], ArrayLike]
"""Maps texts to one row of finite numbers each; a ``dspy.Embedder`` is one."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class EmbeddingDistance:
    """1 - the mean cosine of the responses' embeddings; opposed embeddings count as unrelated.

    ``embed`` is called once per call, with the distinct texts that are not blank, stripped and
    sorted, so copies and order change neither the result nor the cost. Blank texts are copies of
    each other and have similarity 0 to any other text. A lone surrogate, which endpoints refuse, is
    sent as U+FFFD. The default needs no model and compares spelling, not meaning.

    Attributes:
        embed: A ``dspy.Embedder`` or any callable from texts to rows of numbers.

    Raises:
        MetricError: When called, if ``embed`` does not return a row of finite numbers for each
            text.
    """

    embed: Embed = field(default_factory=HashedNgrams)

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the cosine of every two responses, with negative values set to 0."""
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
        # A further row of zeros for the blank text.
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


Kernel = Callable[[Sequence[str]], Matrix]
"""Maps n texts to a positive semi-definite (n, n) matrix with 1 on the diagonal."""
_ROUNDING = 1e-8


@dataclass(frozen=True, slots=True)
class VendiScore:
    """(VS - 1) / (n - 1), with the Vendi score VS, the effective number of different responses.

    VS = exp(-sum l log l) over the eigenvalues l of K / n (Friedman & Dieng, TMLR 2023), between 1
    for copies and n for responses without similarity. Unlike a mean over pairs it counts two groups
    of copies as two answers, for groups of any size.

    Attributes:
        kernel: By default the TF-IDF cosine with the responses as documents. Others:
            ``TfidfDistance.fitted_on(corpus).similarities``,
            ``EmbeddingDistance(embed).similarities``, or any callable of that form.

    Raises:
        MetricError: When called, if ``kernel`` does not return such a matrix.
    """

    kernel: Kernel = TfidfDistance().similarities

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        n = len(responses)
        if len({r.strip() for r in responses}) < 2:
            return 0.0
        shares = np.linalg.eigvalsh(self._checked(responses) / n)
        if shares[0] < -_ROUNDING:
            least = float(shares[0]) * n
            raise MetricError(f"`kernel` has the eigenvalue {least:.3g}; none may be below 0.")
        shares = shares[shares > 0]
        score = exp(float(-(shares * np.log(shares)).sum()))
        return min(max((score - 1) / (n - 1), 0.0), 1.0)

    def _checked(self, responses: Sequence[str]) -> Matrix:
        n = len(responses)
        matrix = np.asarray(self.kernel(responses), dtype=np.float64)
        if matrix.shape != (n, n):
            raise MetricError(f"`kernel` must return shape {(n, n)}, but returned {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise MetricError("`kernel` must return finite numbers.")
        if not np.allclose(np.diag(matrix), 1.0, rtol=0, atol=_ROUNDING):
            raise MetricError("`kernel` must be 1 between a text and itself.")
        if not np.allclose(matrix, matrix.T, rtol=0, atol=_ROUNDING):
            raise MetricError("`kernel` must be symmetric.")
        return matrix


@dataclass(frozen=True, slots=True)
class LevenshteinDistance:
    """Mean over pairs of the edit distance divided by the longer length (Levenshtein 1966).

    1 - the Levenshtein ratio of rapidfuzz (``distance.Levenshtein.normalized_similarity``), on code
    points, with case and white space kept. Only the first ``n_characters`` of each text are read:
    texts with the same first 2,000 characters are equal. A pair of that length takes some tens of
    microseconds.

    Raises:
        MetricError: ``n_characters`` is below 1.
    """

    n_characters: int = 2_000

    def __post_init__(self) -> None:
        if self.n_characters < 1:
            raise MetricError(f"`n_characters` must be at least 1, but got {self.n_characters}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 - edits / longer length of every two responses."""
        # Imported late, as only this metric needs it.
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        texts = [r[: self.n_characters] for r in responses]
        scorer = Levenshtein.normalized_similarity
        return np.asarray(cdist(texts, texts, scorer=scorer, dtype=np.float64), dtype=np.float64)

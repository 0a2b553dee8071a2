"""Protocols of diversity metrics, similarity matrices, and distances by words and n-grams.

A text is an array of token numbers; tokens are words or characters. N-grams are counted exactly:
equal n-grams share a column, different n-grams never do.
"""

from __future__ import annotations

import re
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

    It is 0 for copies and for fewer than two responses, 1 for an empty text and a text with words,
    independent of the order of the responses, and does not change its arguments. Every string is
    accepted, lone surrogates included. Every class in ``DIVERSITY_METRICS`` can be made without
    arguments and is tested for this in ``tests/diversity/test_contract.py``.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity of the texts of one layer's responses."""
        ...


@runtime_checkable
class PairwiseMetric(Protocol):
    """A diversity metric that compares all pairs of responses at once."""

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity of the texts of one layer's responses."""
        ...

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the symmetric matrix of ``1 - self([a, b])``, each pair as if it were alone."""
        ...


def mean_distance(similarities: Matrix) -> float:
    """Return the mean of ``1 - similarities`` over all unordered pairs; 0 without a pair."""
    distances: list[float] = (1.0 - similarities[_pairs_of(len(similarities))]).tolist()
    # fmean sums exactly, so the order of the responses cannot change the last digit.
    return fmean(distances) if distances else 0.0


@lru_cache(maxsize=64)
def _pairs_of(n: int) -> tuple[NDArray[np.intp], ...]:
    """Return the indices of all unordered pairs of ``n``, cached as they take longest to find."""
    return np.triu_indices(n, k=1)


def equal_pairs(texts: Sequence[str]) -> Matrix:
    """Return 1 for equal texts, else 0."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(text, len(numbers)) for text in texts])
    equal: Matrix = (ids[:, None] == ids[None, :]).astype(np.float64)
    return equal


def with_copies(similarities: Matrix, responses: Sequence[str]) -> Matrix:
    """Return the matrix in [0, 1], exactly 1 for texts that differ only in outer white space.

    So a text without any token is similar only to its copies, and all blank texts are copies.
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
        """Return the diversity; see the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 for every two responses that agree, else 0."""
        return equal_pairs([self.normalise(r) for r in responses])


Ids = NDArray[np.int64]
_LARGEST_TABLE = 2**22
"""Codes below this are numbered by a table, which is faster than sorting them."""


def word_ids(texts: Sequence[Sequence[str]]) -> tuple[list[Ids], tuple[str, ...]]:
    """Return the words of all texts as numbers from 0, and the words in that order."""
    vocabulary: dict[str, int] = {}
    ids = [
        np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], dtype=np.int64)
        for words in texts
    ]
    return ids, tuple(vocabulary)


def character_ids(texts: Sequence[str]) -> list[Ids]:
    """Return the code points of each text, lone surrogates included."""
    return [
        np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
        for text in texts
    ]


def gram_counts(texts: Sequence[Ids], n: int, *, short_is_one: bool = False) -> Ids:
    """Count the n-grams of each text, (texts, distinct n-grams); every column is used.

    Columns of 1-grams are in the order of the token numbers. Linear in the total length, except for
    the table of counts itself.

    Args:
        texts: Token numbers from 0.
        n: Length of an n-gram, from 1.
        short_is_one: Whether a text of fewer than ``n`` tokens, including the empty text, counts as
            one n-gram instead of none.
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
    """Return the number of distinct n-grams that two texts share; on the diagonal, of each text."""
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
    # No token has this number, so a short text equals only itself.
    filler = 1 + max((int(text.max()) for text in texts if text.size), default=0)
    return [np.pad(t, (0, max(n - t.size, 0)), constant_values=filler) for t in texts]


def _ranks(codes: Ids) -> tuple[Ids, int]:
    """Return the codes as ranks from 0, smallest first, and the number of distinct codes."""
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


@dataclass(frozen=True, slots=True)
class JaccardDistance:
    """Mean over pairs of 1 - |A & B| / |A | B| on sets of words (Jaccard 1901).

    Words are split at white space and casefolded; punctuation stays with its word. Two texts
    without words are equal.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity; see the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return |A & B| / |A | B| of every two responses."""
        words, _ = word_ids([r.casefold().split() for r in responses])
        return jaccard(shared_grams(gram_counts(words, 1, short_is_one=True)))


@dataclass(frozen=True, slots=True)
class NgramJaccardDistance:
    """Mean over pairs of the Jaccard distance on sets of character n-grams, casefolded.

    It works for languages without spaces between words, and tolerates small edits of a word. White
    space is kept. A text shorter than ``n`` is one n-gram.

    Raises:
        MetricError: ``n`` is below 1.
    """

    n: int = 3

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MetricError(f"`n` must be at least 1, but got {self.n}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity; see the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return |A & B| / |A | B| of every two responses."""
        characters = character_ids([r.casefold() for r in responses])
        return jaccard(shared_grams(gram_counts(characters, self.n, short_is_one=True)))


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """Share of responses that are new, (distinct - 1) / (n - 1).

    Texts that differ only in case or white space are equal.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity; see the protocol."""
        distinct = set(map(_normalised, responses))
        return (len(distinct) - 1) / (len(responses) - 1) if len(responses) > 1 else 0.0

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 for every two equal responses, else 0."""
        return equal_pairs([_normalised(r) for r in responses])


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class DistinctNgrams:
    """Distinct-n of all responses, rescaled to 0 for copies and 1 without shared n-grams.

    Distinct-n is the number of distinct word n-grams divided by the number of all (Li et al.,
    NAACL 2016). Here a repetition inside one response does not count, so that d lies between
    1 / k and 1 for k responses, and (k d - 1) / (k - 1) between 0 and 1. For two responses it is
    1 - the coefficient of Dice (1945). Words are split at white space and casefolded; a text of
    fewer than ``n`` words is one n-gram. Linear in the total length, where pairs are quadratic in
    the number of responses.

    Raises:
        MetricError: ``n`` is below 1.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MetricError(f"`n` must be at least 1, but got {self.n}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity; see the protocol."""
        if len(responses) < 2:
            return 0.0
        counts = self._counts(responses)
        n_all, n_distinct = int(np.count_nonzero(counts)), int(counts.shape[1])
        return (len(responses) * n_distinct - n_all) / ((len(responses) - 1) * n_all)

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 2 |A & B| / (|A| + |B|) of every two responses."""
        shared = shared_grams(self._counts(responses))
        sizes = np.diag(shared)
        return 2.0 * shared / (sizes[:, None] + sizes[None, :])

    def _counts(self, responses: Sequence[str]) -> Ids:
        words, _ = word_ids([r.casefold().split() for r in responses])
        return gram_counts(words, self.n, short_is_one=True)


_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    # ASCII punctuation other than . , - and the apostrophe is a separate token.
    (re.compile(r"""([{|}~\[\\\]^_` !"#$%&()*+:;<=>?@/])"""), r" \1 "),
    # So are periods and commas, unless they are between digits,
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # and a dash that follows a digit.
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokens_13a(text: str) -> list[str]:
    """Split a text into the tokens on which BLEU is commonly computed; case is kept.

    The tokenisation of NIST's mteval-v13a as sacrebleu applies it (its ``tok:13a``): it is made for
    languages with spaces between words; text in other scripts stays in long tokens.
    """
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line.split()


@dataclass(frozen=True, slots=True)
class BleuDistance:
    """1 - the mean BLEU of the responses with one another (self-BLEU, Zhu et al., SIGIR 2018).

    Sentence BLEU (Papineni et al., ACL 2002) of n-grams up to ``order``, as sacrebleu (Post, WMT
    2018) computes it under ``nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp``, divided by 100:
    tokens of mteval-v13a with their case, the k-th order in a row without a match counted as 2 **
    -k matches, and no order beyond the hypothesis' length. BLEU distinguishes hypothesis and
    reference, so the value of a pair is the mean of both directions. The similarity of copies is 1
    even without tokens; otherwise a text without tokens has similarity 0 to any other. The MoA
    paper (arXiv 2406.04692) reports orders 3, 4 and 5.

    Raises:
        MetricError: ``order`` is below 1.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order < 1:
            raise MetricError(f"`order` must be at least 1, but got {self.order}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """Return the diversity; see the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the mean BLEU in both directions of every two responses, in [0, 1]."""
        words, _ = word_ids([tokens_13a(r) for r in responses])
        one_way = self._one_way(words)
        return with_copies((one_way + one_way.T) / 2, responses)

    def _one_way(self, words: Sequence[Ids]) -> Matrix:
        """Return the BLEU of each row's text as hypothesis and each column's as reference."""
        lengths = np.array([w.size for w in words], dtype=np.float64)
        smoothing: Matrix = np.ones((len(words), len(words)))
        logarithms: Matrix = np.zeros_like(smoothing)
        matches = [clipped_matches(gram_counts(words, n)) for n in range(1, self.order + 1)]
        for n, matched in enumerate(matches, start=1):
            totals = np.maximum(lengths - n + 1, 0.0)[:, None]
            smoothing[(matched == 0) & (totals > 0)] *= 2
            precisions = np.where(matched > 0, matched, 1 / smoothing) / np.maximum(totals, 1.0)
            logarithms += np.where(totals > 0, np.log(precisions), 0.0)
        n_orders = np.clip(lengths, 1, self.order)[:, None]
        brevity = np.minimum(0.0, 1 - lengths[None, :] / np.maximum(lengths, 1.0)[:, None])
        scores = np.exp(brevity + logarithms / n_orders)
        return np.where(matches[0] > 0, scores, 0.0)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.diversity._base import Matrix, mean_distance, with_copies
from moa_dspy.diversity._grams import Ids, clipped_matches, gram_counts, word_ids
from moa_dspy.diversity._tokens_13a import tokens_13a
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class BleuDistance:
    """1 - the mean BLEU of the responses with one another (self-BLEU, Zhu et al., SIGIR 2018).

    Sentence BLEU (Papineni et al., ACL 2002) of n-grams up to ``order``, as sacrebleu (Post, WMT
    2018) computes it under ``nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp``, divided by 100:
    tokens of mteval-v13a with their case, the k-th order in a row without a match counted as
    2 ** -k matches, and no order beyond the hypothesis' length. BLEU knows a hypothesis and a
    reference, so a pair takes the mean of both ways. Copies are 1 even where they have no token;
    else a text without tokens is 0 with any other. The MoA paper (arXiv 2406.04692) reports
    orders 3, 4 and 5.

    Raises:
        MetricError: ``order`` is below 1.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order < 1:
            raise MetricError(f"`order` must be at least 1, but got {self.order}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return the mean BLEU of both ways of every two responses, in [0, 1]."""
        words, _ = word_ids([tokens_13a(r) for r in responses])
        one_way = self._one_way(words)
        return with_copies((one_way + one_way.T) / 2, responses)

    def _one_way(self, words: Sequence[Ids]) -> Matrix:
        """Return the BLEU of the row's text as hypothesis, the column's as reference."""
        lengths = np.array([w.size for w in words], dtype=np.float64)
        smoothing: Matrix = np.ones((len(words), len(words)))
        logarithms: Matrix = np.zeros_like(smoothing)
        matches = [clipped_matches(gram_counts(words, n)) for n in range(1, self.order + 1)]
        for n, found in enumerate(matches, start=1):
            totals = np.maximum(lengths - n + 1, 0.0)[:, None]
            smoothing[(found == 0) & (totals > 0)] *= 2
            precisions = np.where(found > 0, found, 1 / smoothing) / np.maximum(totals, 1.0)
            logarithms += np.where(totals > 0, np.log(precisions), 0.0)
        n_orders = np.clip(lengths, 1, self.order)[:, None]
        brevity = np.minimum(0.0, 1 - lengths[None, :] / np.maximum(lengths, 1.0)[:, None])
        scores = np.exp(brevity + logarithms / n_orders)
        return np.where(matches[0] > 0, scores, 0.0)

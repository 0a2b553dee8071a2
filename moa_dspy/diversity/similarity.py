"""Similarities between models over many questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moa_dspy.diversity.answers import Disagreement
from moa_dspy.diversity.base import DiversityMetric, Matrix, PairwiseMetric
from moa_dspy.diversity.ngrams import (
    BleuDistance,
    DistinctNgrams,
    DistinctShare,
    JaccardDistance,
    NgramJaccardDistance,
)
from moa_dspy.diversity.vectors import (
    EmbeddingDistance,
    LevenshteinDistance,
    TfidfDistance,
    VendiScore,
)
from moa_dspy.errors import MetricError

DIVERSITY_METRICS: dict[str, Callable[[], DiversityMetric]] = {
    "bleu_3": lambda: BleuDistance(order=3),
    "bleu_4": BleuDistance,
    "bleu_5": lambda: BleuDistance(order=5),
    "disagreement": Disagreement,
    "distinct": DistinctShare,
    "distinct_ngrams": DistinctNgrams,
    "embedding": EmbeddingDistance,
    "jaccard": JaccardDistance,
    "levenshtein": LevenshteinDistance,
    "ngram_jaccard": NgramJaccardDistance,
    "tfidf": TfidfDistance,
    "vendi": VendiScore,
}
"""Names that a study file may use. Adding a line here is the registration."""


def pairwise_similarity(metric: str | DiversityMetric, texts: Sequence[Sequence[str]], /) -> Matrix:
    """Return the mean similarity of every two models' responses, (models, models), in [0, 1].

    A cell is the mean over questions of ``1 - metric([a, b])``: symmetric, 1 on the diagonal.
    Metrics with ``pairs`` are counted for all models at once, one question after the other, with
    memory for one question; others are asked pair by pair.

    Args:
        metric: A name of ``DIVERSITY_METRICS``, or a metric.
        texts: The responses, one row for each model, questions in the same order.

    Raises:
        MetricError: an unknown name, rows of different length, or no question.
    """
    judge = _metric(metric)
    lengths = {len(row) for row in texts}
    if len(lengths) != 1 or lengths == {0}:
        raise MetricError(
            "`texts` must have one row of responses for each model, equally long and not empty, "
            f"but has {len(texts)} rows of lengths {sorted(lengths)}."
        )
    from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

    total: Matrix = np.zeros((len(texts), len(texts)))
    # The matrices of one question are small: a second BLAS thread only spins, and on a busy machine
    # made this thirty times slower.
    with threadpool_limits(1):
        for responses in zip(*texts, strict=True):
            total += _pairs(judge, responses)
    return total / lengths.pop()


def proposal_similarity(
    metric: str | DiversityMetric,
    aggregates: Sequence[str],
    proposals: Sequence[Sequence[str]],
    /,
) -> Matrix:
    """Return the similarity of each aggregate to each of its proposals, (examples, proposals).

    A cell is ``1 - metric([aggregate, proposal])``, in [0, 1]; NaN behind the last proposal of an
    example that has fewer. What ``AggregatorRecord`` asks for.

    Args:
        metric: A name of ``DIVERSITY_METRICS``, or a metric.
        aggregates: The aggregator's answer of each example.
        proposals: The texts it had read, for each example.

    Raises:
        MetricError: an unknown name, or not one list of proposals for each aggregate.
    """
    judge = _metric(metric)
    if len(aggregates) != len(proposals):
        raise MetricError(
            f"`proposals` must be one list for each of {len(aggregates)} aggregates, "
            f"but there are {len(proposals)}."
        )
    cells = np.full((len(proposals), max(map(len, proposals), default=0)), np.nan)
    for row, aggregate, read in zip(cells, aggregates, proposals, strict=True):
        row[: len(read)] = _pairs(judge, [aggregate, *read])[0, 1:]
    return cells


def _pairs(metric: DiversityMetric, responses: Sequence[str]) -> Matrix:
    if isinstance(metric, PairwiseMetric):
        return metric.pairs(responses)
    similarities: Matrix = np.ones((len(responses), len(responses)))
    for i, a in enumerate(responses):
        for j, b in enumerate(responses[:i]):
            similarities[i, j] = similarities[j, i] = 1 - metric([a, b])
    return similarities


def _metric(metric: str | DiversityMetric) -> DiversityMetric:
    if not isinstance(metric, str):
        return metric
    if metric not in DIVERSITY_METRICS:
        known = ", ".join(sorted(DIVERSITY_METRICS))
        raise MetricError(f"Unknown diversity metric {metric!r}; known ones are {known}.")
    return DIVERSITY_METRICS[metric]()

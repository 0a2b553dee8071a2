"""Similarities between models, and the MoA paper's analyses of how they use each other's answers.

Paper: Wang et al., Mixture-of-Agents Enhances Large Language Model Capabilities, arXiv 2406.04692,
section 2 (answers with others' help) and figure 4b (which proposals an aggregator follows).

The functions on errors take the scores of agents on the same examples, (n_agents, n_examples), in
[0, 1]. A score below 0.5 is wrong; NaN was not measured, and each pair is compared on the examples
that both have. They return a symmetric (n_agents, n_agents) matrix, NaN for a pair without common
examples. Definitions: Kuncheva & Whitaker, Machine Learning 51 (2003).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moa_dspy.diversity.base import (
    BleuDistance,
    Disagreement,
    DistinctNgrams,
    DistinctShare,
    DiversityMetric,
    JaccardDistance,
    Matrix,
    NgramJaccardDistance,
    PairwiseMetric,
)
from moa_dspy.diversity.vectors import (
    EmbeddingDistance,
    LevenshteinDistance,
    TfidfDistance,
    VendiScore,
)
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class Sample:
    """Numbers of examples, with the mean and its standard error.

    Attributes:
        values: Numbers in the order of the examples, for example for a confidence interval.
        n_left_out: Examples without a number.
    """

    values: tuple[float, ...]
    n_left_out: int = 0

    @property
    def n(self) -> int:
        """Number of examples with a number."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over those examples; NaN if there are none."""
        return fmean(self.values) if self.values else nan

    @property
    def standard_error(self) -> float:
        """Sample standard deviation (n - 1) divided by the square root of n; NaN for n < 2."""
        return stdev(self.values) / sqrt(self.n) if self.n > 1 else nan

    def __str__(self) -> str:
        """Return mean, standard error and counts in one line."""
        left_out = f", {self.n_left_out} left out" if self.n_left_out else ""
        return f"{self.mean:+.4f} +- {self.standard_error:.4f} (n = {self.n}{left_out})"


def spearman(a: Sequence[float] | Matrix, b: Sequence[float] | Matrix) -> float:
    """Return the rank correlation of two vectors, in [-1, 1] (Spearman 1904).

    Pearson's correlation of the ranks; equal numbers share the mean of their ranks. NaN if a vector
    is constant or has fewer than two numbers, as it has no ranking.

    Raises:
        MetricError: If the lengths differ, or a number is not finite.
    """
    vectors = [np.asarray(v, dtype=np.float64) for v in (a, b)]
    if vectors[0].ndim != 1 or vectors[0].shape != vectors[1].shape:
        shapes = " and ".join(str(v.shape) for v in vectors)
        raise MetricError(f"Two vectors of the same length are needed, but got {shapes}.")
    if not all(np.isfinite(v).all() for v in vectors):
        raise MetricError("Only finite numbers can be ranked, but there is NaN or infinity.")
    if vectors[0].size < 2 or any(np.ptp(v) == 0 for v in vectors):
        return nan
    # Imported late: scipy takes a second, and most users of this package never need it.
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    # Ranks have the mean (n + 1) / 2 exactly, so perfect agreement gives exactly 1.
    first, second = (rankdata(v) - (v.size + 1) / 2 for v in vectors)
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return min(max(float(first @ second) / scale, -1.0), 1.0)


@dataclass(frozen=True, slots=True)
class AggregatorRecord:
    """Similarities and preferences of an aggregator's proposals, both (examples, proposals).

    Attributes:
        similarities: Similarity of the aggregate to each proposal, as from ``proposal_similarity``.
        preferences: Quality of each proposal, in any unit; NaN for a missing proposal.
    """

    similarities: ArrayLike
    preferences: ArrayLike


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Scores of a model's answers without and with references, in any one unit; NaN is missing.

    Attributes:
        alone: Scores of its answers to the bare questions, (examples,).
        with_references: Scores of its answers given others' answers, (examples,).
        references: Scores of the others' answers, (examples, references).
        quality: Score with which the references are compared, (examples,); default ``alone``. If
            possible, use a measure that is independent of ``alone``, such as the score of a second
            answer or a mean score of the model. If all references are worse than ``alone``,
            ``alone`` was often lucky, so the difference is too low there, and too high on the other
            questions (regression to the mean).
    """

    alone: ArrayLike
    with_references: ArrayLike
    references: ArrayLike
    quality: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """Paired differences, score with references minus score alone.

    Attributes:
        overall: Differences of all examples with both scores.
        all_worse: Those in which every reference is worse than the model's own ``quality``.
        not_all_worse: Those in which a reference is at least as good.
        is_split_by_own_score: Whether the split uses the compared scores and so is biased.
    """

    overall: Sample
    all_worse: Sample
    not_all_worse: Sample
    is_split_by_own_score: bool


@dataclass(frozen=True, slots=True)
class CollaborationReport:
    """The results of both analyses by name; ``str`` returns a table.

    Attributes:
        correlations: For each aggregator, the Spearman correlation within each example between
            similarity and preference over the proposals, in [-1, 1]. If positive, its answers are
            closer to the better proposals.
        gains: For each model, the change of its score by reading others' answers.
    """

    correlations: Mapping[str, Sample]
    gains: Mapping[str, Gain]

    def __str__(self) -> str:
        """Return mean +- standard error, one line for each number."""
        lines: list[str] = []
        if self.correlations:
            lines.append("Similarity to a proposal against its preference, Spearman:")
            lines += [f"  {name}: {sample}" for name, sample in self.correlations.items()]
        if self.gains:
            lines.append("Score with references minus score alone:")
        for name, gain in self.gains.items():
            lines.append(f"  {name}: {gain.overall}")
            lines.append(f"    all references worse: {gain.all_worse}")
            lines.append(f"    one as good or better: {gain.not_all_worse}")
        if any(gain.is_split_by_own_score for gain in self.gains.values()):
            lines.append("Split by the score alone: by chance, too low where all are worse.")
        return "\n".join(lines)


def collaboration_report(
    aggregators: Mapping[str, AggregatorRecord], *, models: Mapping[str, ModelRecord] | None = None
) -> CollaborationReport:
    """Report whether aggregators follow the better proposals, and whether references help.

    Ties share the mean of their ranks. An example whose similarities or preferences are all equal,
    or with fewer than two proposals, has no ranking: it is left out of the mean and counted in
    ``n_left_out``. Standard errors treat examples as independent. The split leaves out examples
    without ``quality`` or without any reference; a tie with the best reference is not "worse". A
    difference is left out where a score of the pair is missing.

    Args:
        aggregators: Records by name; use one name for each aggregator and layer to distinguish
            layers.
        models: Records by name.

    Raises:
        MetricError: If shapes do not match, or a number is infinite; the message names the record.
    """
    return CollaborationReport(
        correlations={name: _correlations(name, r) for name, r in aggregators.items()},
        gains={name: _gain(name, record) for name, record in (models or {}).items()},
    )


def _correlations(name: str, record: AggregatorRecord) -> Sample:
    similarities = _cells(name, "similarities", record.similarities, n_axes=2)
    preferences = _cells(name, "preferences", record.preferences, shape=similarities.shape)
    is_known = ~np.isnan(similarities) & ~np.isnan(preferences)
    rows = zip(similarities, preferences, is_known, strict=True)
    return _sample(np.array([spearman(s[k], p[k]) for s, p, k in rows], dtype=np.float64))


def _gain(name: str, record: ModelRecord) -> Gain:
    alone = _cells(name, "alone", record.alone, n_axes=1)
    shown = _cells(name, "with_references", record.with_references, shape=alone.shape)
    references = _cells(name, "references", record.references, n_axes=2)
    if len(references) != len(alone):
        raise MetricError(
            f"{name!r}: `references` must have {len(alone)} examples, but has {len(references)}."
        )
    own = alone
    if record.quality is not None:
        own = _cells(name, "quality", record.quality, shape=alone.shape)
    differences = shown - alone
    # fmax ignores NaN, so only a row of NaN alone gives NaN.
    best = np.fmax.reduce(references, axis=1, initial=np.nan)
    # Comparisons with NaN are false in both directions, so such an example is in neither part.
    return Gain(
        overall=_sample(differences),
        all_worse=_sample(differences[best < own]),
        not_all_worse=_sample(differences[best >= own]),
        is_split_by_own_score=record.quality is None,
    )


def _sample(values: Matrix) -> Sample:
    """Return the values without NaN, and the number of NaN."""
    missing = np.isnan(values)
    return Sample(tuple(values[~missing].tolist()), int(np.count_nonzero(missing)))


def _cells(
    name: str,
    field: str,
    values: ArrayLike,
    *,
    n_axes: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    cells = np.asarray(values, dtype=np.float64)
    if shape is not None and cells.shape != shape:
        raise MetricError(f"{name!r}: `{field}` must have shape {shape}, but has {cells.shape}.")
    if n_axes is not None and cells.ndim != n_axes:
        raise MetricError(f"{name!r}: `{field}` must have {n_axes} axes, but has {cells.ndim}.")
    if np.isinf(cells).any():
        raise MetricError(f"{name!r}: `{field}` must be finite or NaN, but is infinite.")
    return cells


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
"""Names that a study file may use; a new metric is registered by a line here."""


def pairwise_similarity(metric: str | DiversityMetric, texts: Sequence[Sequence[str]], /) -> Matrix:
    """Return the mean similarity of every two models' responses, (models, models), in [0, 1].

    A cell is the mean over questions of ``1 - metric([a, b])``: symmetric, 1 on the diagonal.
    Metrics with ``pairs`` are computed for all models at once, question by question, with memory
    for one question; other metrics are called pair by pair.

    Args:
        metric: A name of ``DIVERSITY_METRICS``, or a metric.
        texts: The responses, one row for each model, questions in the same order.

    Raises:
        MetricError: If the name is unknown, rows differ in length, or there is no question.
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
    # The matrices of one question are small: a second BLAS thread only spins, which made this
    # thirty times slower on a busy machine.
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

    A cell is ``1 - metric([aggregate, proposal])``, in [0, 1]; NaN after the last proposal of an
    example with fewer. Input for ``AggregatorRecord``.

    Args:
        metric: A name of ``DIVERSITY_METRICS``, or a metric.
        aggregates: The aggregator's answer of each example.
        proposals: The texts that it read, for each example.

    Raises:
        MetricError: If the name is unknown, or there is not one list of proposals per aggregate.
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
        choices = ", ".join(sorted(DIVERSITY_METRICS))
        raise MetricError(f"Unknown diversity metric {metric!r}; known ones are {choices}.")
    return DIVERSITY_METRICS[metric]()


_RIGHT_FROM = 0.5


def pairwise_disagreement(scores: Matrix) -> Matrix:
    """Return the share of examples on which exactly one of two agents is wrong, in [0, 1].

    0 on the diagonal, also for constant agents.

    Raises:
        MetricError: If ``scores`` is not a matrix, or a score is outside [0, 1].
    """
    wrong, seen = _wrong_and_seen(scores)
    alone = wrong @ seen.T - wrong @ wrong.T
    return _divided(alone + alone.T, seen @ seen.T)


def double_fault(scores: Matrix) -> Matrix:
    """Return the share of examples on which both agents are wrong, in [0, 1]; lower is better.

    The diagonal is each agent's own error rate (Giacinto & Roli 2001).

    Raises:
        MetricError: If ``scores`` is not a matrix, or a score is outside [0, 1].
    """
    wrong, seen = _wrong_and_seen(scores)
    return _divided(wrong @ wrong.T, seen @ seen.T)


def error_correlation(scores: Matrix) -> Matrix:
    """Return the correlation (phi) of two agents' errors, in [-1, 1]; lower is better.

    NaN if an agent is always right or always wrong on the common examples, as a constant has no
    correlation, not even with itself; otherwise 1 on the diagonal.

    Raises:
        MetricError: If ``scores`` is not a matrix, or a score is outside [0, 1].
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

"""The MoA paper's two analyses of how models use each other's answers.

Paper: Wang et al., Mixture-of-Agents Enhances Large Language Model Capabilities, arXiv 2406.04692,
section 2 (answers with others' help) and figure 4b (which proposals an aggregator follows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moa_dspy.diversity.base import Matrix
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class Sample:
    """One number for each example that has one, and what they say of their mean.

    Attributes:
        values: In the order of the examples; an interval of one's choice is made from these.
        n_left_out: Examples without a number.
    """

    values: tuple[float, ...]
    n_left_out: int = 0

    @property
    def n(self) -> int:
        """Number of examples that count."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over those examples; NaN without one."""
        return fmean(self.values) if self.values else nan

    @property
    def standard_error(self) -> float:
        """Sample standard deviation (n - 1) over the root of n; NaN below two examples."""
        return stdev(self.values) / sqrt(self.n) if self.n > 1 else nan

    def __str__(self) -> str:
        """Mean, standard error and counts, in one line."""
        left_out = f", {self.n_left_out} left out" if self.n_left_out else ""
        return f"{self.mean:+.4f} +- {self.standard_error:.4f} (n = {self.n}{left_out})"


def spearman(a: Sequence[float] | Matrix, b: Sequence[float] | Matrix) -> float:
    """Return the rank correlation of two vectors, in [-1, 1] (Spearman 1904).

    Pearson's correlation of the ranks; equal numbers share the mean of their ranks. NaN where a
    vector is constant or has fewer than two numbers: it ranks nothing.

    Raises:
        MetricError: vectors of different length, or a number that is not finite.
    """
    vectors = [np.asarray(v, dtype=np.float64) for v in (a, b)]
    if vectors[0].ndim != 1 or vectors[0].shape != vectors[1].shape:
        shapes = " and ".join(str(v.shape) for v in vectors)
        raise MetricError(f"Two vectors of the same length are needed, but got {shapes}.")
    if not all(np.isfinite(v).all() for v in vectors):
        raise MetricError("Only finite numbers can be ranked, but there is NaN or infinity.")
    first, second = (_centred_ranks(v) for v in vectors)
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return min(max(float(first @ second) / scale, -1.0), 1.0) if scale > 0 else nan


def _centred_ranks(vector: NDArray[np.float64]) -> Matrix:
    _, places, counts = np.unique(vector, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = last - (counts - 1) / 2
    # Ranks are multiples of 1/2 with mean (n + 1) / 2, so a constant gives exact zeros.
    centred: Matrix = ranks[places] - (vector.size + 1) / 2
    return centred


@dataclass(frozen=True, slots=True)
class AggregatorRecord:
    """Answers of an aggregator beside the proposals that it had read; both (examples, proposals).

    Attributes:
        similarities: Of the aggregate to each proposal, as ``proposal_similarity`` returns them.
        preferences: How good each proposal is, in any unit. NaN is a proposal that is missing.
    """

    similarities: ArrayLike
    preferences: ArrayLike


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Scores of a model's answers without and with references, in any one unit; NaN is missing.

    Attributes:
        alone: Of its answer to the question, (examples,).
        with_references: Of its answer after it had been shown others' answers, (examples,).
        references: Of the answers it was shown, (examples, references).
        quality: What the references are compared with, (examples,); by default ``alone``. Give
            a measure that is independent of ``alone``, such as the score of a second answer of
            its own or its mean score, wherever there is one. A question on which all references
            are worse than ``alone`` is often one on which ``alone`` was lucky, so that its
            difference is too low, and too high on the other questions (regression to the mean).
    """

    alone: ArrayLike
    with_references: ArrayLike
    references: ArrayLike
    quality: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """Paired differences, score with references minus score alone.

    Attributes:
        overall: Of all examples that have both.
        all_worse: Of those where every reference is worse than the model's own ``quality``.
        not_all_worse: Of those where one is as good or better.
        is_split_by_own_score: The split uses the scores that are compared, and so is biased.
    """

    overall: Sample
    all_worse: Sample
    not_all_worse: Sample
    is_split_by_own_score: bool


@dataclass(frozen=True, slots=True)
class CollaborationReport:
    """Both analyses, by name; ``str`` gives a table.

    Attributes:
        correlations: For each aggregator, the Spearman correlation within each example between
            similarity and preference over the proposals, in [-1, 1]. Positive: its answer is
            closer to the proposals that are better.
        gains: For each model, what being shown others' answers changed.
    """

    correlations: Mapping[str, Sample]
    gains: Mapping[str, Gain]

    def __str__(self) -> str:
        """Mean +- standard error, one line for each number."""
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
    or with fewer than two proposals, ranks nothing: it is left out of the mean and counted in
    ``n_left_out``. Standard errors treat examples as independent. The split leaves out examples
    without ``quality`` or without any reference; a tie with the best reference is not "worse".
    A difference is left out where a score of the pair is missing.

    Args:
        aggregators: By name; one name for each aggregator and layer, if layers are to be told
            apart.
        models: By name.

    Raises:
        MetricError: shapes that do not fit, or an infinite number; names the record.
    """
    return CollaborationReport(
        correlations={name: _correlations(name, r) for name, r in aggregators.items()},
        gains={name: _gain(name, record) for name, record in (models or {}).items()},
    )


def _correlations(name: str, record: AggregatorRecord) -> Sample:
    similarities = _cells(name, "similarities", record.similarities, n_axes=2)
    preferences = _cells(name, "preferences", record.preferences, shape=similarities.shape)
    known = ~np.isnan(similarities) & ~np.isnan(preferences)
    rows = zip(similarities, preferences, known, strict=True)
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
    # fmax knows no missing value, so a row of them stays missing.
    best = np.fmax.reduce(references, axis=1, initial=np.nan)
    # Comparisons with a missing value are false both ways: such an example is in neither half.
    return Gain(
        overall=_sample(differences),
        all_worse=_sample(differences[best < own]),
        not_all_worse=_sample(differences[best >= own]),
        is_split_by_own_score=record.quality is None,
    )


def _sample(values: Matrix) -> Sample:
    """Drop what is NaN, and count it."""
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

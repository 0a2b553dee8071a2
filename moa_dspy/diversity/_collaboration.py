"""What models make of each other's answers: the two analyses of the MoA paper.

Paper: Wang et al., Mixture-of-Agents Enhances Large Language Model Capabilities, arXiv 2406.04692,
section 2 (answers with others' help) and figure 4b (which proposals an aggregator follows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moa_dspy.diversity._base import Matrix
from moa_dspy.diversity._sample import Sample
from moa_dspy.diversity._spearman import spearman
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class AggregatorRecord:
    """What an aggregator wrote, against what it had read; both (examples, proposals).

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

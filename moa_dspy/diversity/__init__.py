"""Diversity of the responses of one layer, and differences between agents' errors."""

from moa_dspy.diversity.base import (
    Disagreement,
    DiversityMetric,
    PairwiseMetric,
    double_fault,
    error_correlation,
    pairwise_disagreement,
)
from moa_dspy.diversity.collaboration import (
    DIVERSITY_METRICS,
    AggregatorRecord,
    CollaborationReport,
    Gain,
    ModelRecord,
    Sample,
    collaboration_report,
    pairwise_similarity,
    proposal_similarity,
    spearman,
)
from moa_dspy.diversity.ngrams import (
    BleuDistance,
    DistinctNgrams,
    DistinctShare,
    JaccardDistance,
    NgramJaccardDistance,
)
from moa_dspy.diversity.vectors import (
    EmbeddingDistance,
    HashedNgrams,
    LevenshteinDistance,
    TfidfDistance,
    VendiScore,
)

__all__ = [
    "DIVERSITY_METRICS",
    "AggregatorRecord",
    "BleuDistance",
    "CollaborationReport",
    "Disagreement",
    "DistinctNgrams",
    "DistinctShare",
    "DiversityMetric",
    "EmbeddingDistance",
    "Gain",
    "HashedNgrams",
    "JaccardDistance",
    "LevenshteinDistance",
    "ModelRecord",
    "NgramJaccardDistance",
    "PairwiseMetric",
    "Sample",
    "TfidfDistance",
    "VendiScore",
    "collaboration_report",
    "double_fault",
    "error_correlation",
    "pairwise_disagreement",
    "pairwise_similarity",
    "proposal_similarity",
    "spearman",
]

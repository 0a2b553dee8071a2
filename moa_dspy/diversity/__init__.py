"""How different the responses of one layer are, and how differently agents fail."""

from collections.abc import Callable

from moa_dspy.diversity._base import DiversityMetric, PairwiseMetric
from moa_dspy.diversity._bleu import BleuDistance
from moa_dspy.diversity._collaboration import (
    AggregatorRecord,
    CollaborationReport,
    Gain,
    ModelRecord,
    collaboration_report,
)
from moa_dspy.diversity._disagreement import Disagreement
from moa_dspy.diversity._distinct import DistinctShare
from moa_dspy.diversity._distinct_ngrams import DistinctNgrams
from moa_dspy.diversity._embedding import EmbeddingDistance
from moa_dspy.diversity._errors import double_fault, error_correlation, pairwise_disagreement
from moa_dspy.diversity._hashed_ngrams import HashedNgrams
from moa_dspy.diversity._jaccard import JaccardDistance
from moa_dspy.diversity._levenshtein import LevenshteinDistance
from moa_dspy.diversity._ngram_jaccard import NgramJaccardDistance
from moa_dspy.diversity._pairwise import pairwise_similarity, proposal_similarity
from moa_dspy.diversity._sample import Sample
from moa_dspy.diversity._spearman import spearman
from moa_dspy.diversity._tfidf import TfidfDistance
from moa_dspy.diversity._vendi import VendiScore

METRICS: dict[str, Callable[[], DiversityMetric]] = {
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

__all__ = [
    "METRICS",
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

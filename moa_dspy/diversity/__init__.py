"""How different the responses of one layer are, and how differently agents fail."""

from moa_dspy.diversity._base import DiversityMetric
from moa_dspy.diversity._disagreement import Disagreement
from moa_dspy.diversity._distinct import DistinctShare
from moa_dspy.diversity._errors import double_fault, error_correlation, pairwise_disagreement
from moa_dspy.diversity._jaccard import JaccardDistance
from moa_dspy.diversity._levenshtein import LevenshteinDistance
from moa_dspy.diversity._ngram_jaccard import NgramJaccardDistance

METRICS: dict[str, type[DiversityMetric]] = {
    "disagreement": Disagreement,
    "distinct": DistinctShare,
    "jaccard": JaccardDistance,
    "levenshtein": LevenshteinDistance,
    "ngram_jaccard": NgramJaccardDistance,
}
"""Names that a study file may use. Adding a line here is the registration."""

__all__ = [
    "METRICS",
    "Disagreement",
    "DistinctShare",
    "DiversityMetric",
    "JaccardDistance",
    "LevenshteinDistance",
    "NgramJaccardDistance",
    "double_fault",
    "error_correlation",
    "pairwise_disagreement",
]

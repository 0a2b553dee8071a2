"""Ways to turn the last layer's responses into one answer."""

from moa_dspy.aggregators._base import Combine, Normalise, Question, Read, Steps, node_name
from moa_dspy.aggregators._select import Consensus, Rank
from moa_dspy.aggregators._synthesize import Synthesize
from moa_dspy.aggregators._vote import Vote
from moa_dspy.data import normalise_answer, normalise_text

NORMALISERS: dict[str, Normalise] = {"answer": normalise_answer, "text": normalise_text}
"""When two answers are equal: as whole texts, or by the final word or number. One line each."""

__all__ = [
    "NORMALISERS",
    "Combine",
    "Consensus",
    "Normalise",
    "Question",
    "Rank",
    "Read",
    "Steps",
    "Synthesize",
    "Vote",
    "node_name",
]

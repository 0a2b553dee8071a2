"""Votes of single agents, scored on redrawn answers without any call."""

from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS, SHORTLIST, SmoothedVotes, smooth

__all__ = ["PSEUDO_ROWS", "SHORTLIST", "Ballots", "SmoothedVotes", "smooth"]

"""Votes of single agents, judged on redrawn answers at no call."""

from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS, SHORTLIST, SmoothedVotes, smooth

__all__ = ["PSEUDO_ROWS", "SHORTLIST", "Ballots", "SmoothedVotes", "smooth"]

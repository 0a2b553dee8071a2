"""What every vote of the best agents is worth, from what each answered alone; asks nobody."""

from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.optimize.votes.smoothing import PSEUDO_ROWS, SHORTLIST, SmoothedVotes, smooth

__all__ = ["PSEUDO_ROWS", "SHORTLIST", "Ballots", "SmoothedVotes", "smooth"]

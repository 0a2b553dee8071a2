"""What every vote of the best agents is worth, from what each answered alone; asks nobody."""

from moa_dspy.optimize.votes._ballots import Ballots
from moa_dspy.optimize.votes._smooth import SmoothedVotes, smooth

__all__ = ["Ballots", "SmoothedVotes", "smooth"]

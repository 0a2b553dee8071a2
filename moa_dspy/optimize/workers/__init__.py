"""Many processes on one study: they share its calls, and one of them at a time coordinates."""

from moa_dspy.optimize.workers._work import Ended, work_on

__all__ = ["Ended", "work_on"]

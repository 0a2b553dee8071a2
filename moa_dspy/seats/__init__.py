"""Who sits where is asked here: the right LM, sample and adapter, and a failure that is data."""

from moa_dspy.seats._mark import mark_seats
from moa_dspy.seats._outside_lm import outside_lms, rollout, without_lms
from moa_dspy.seats._seats import Seats

__all__ = ["Seats", "mark_seats", "outside_lms", "rollout", "without_lms"]

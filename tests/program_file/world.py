"""A mixture of scripted agents whose program files are written and read."""

from __future__ import annotations

from typing import Any

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool

MIXTURE = "a + b*2 > c > synthesize(a)"
ANSWERS = {"a": "Paris", "b": "Rome", "c": "Bern"}


def program(pool: Pool, architecture: str = MIXTURE, **options: Any) -> MixtureOfAgents:
    signature = dspy.Signature("question -> answer", "Name the capital.")
    options.setdefault("adapter", PlainChat())
    return MixtureOfAgents(signature, architecture, pool=pool, **options)

"""Mixtures in plain chat over scripted models, asked one question in either way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.prediction import Answer
from moa_dspy.testing import scripted_pool

BOTH = pytest.mark.parametrize("is_async", [False, True])


def program(scripts: dict[str, Any], notation: str, **options: Any) -> MixtureOfAgents:
    pool = scripted_pool(scripts)
    return MixtureOfAgents("q -> answer", notation, pool=pool, adapter=PlainChat(), **options)


def ask(mixture: MixtureOfAgents, *, is_async: bool) -> Answer:
    answer: Answer = (asyncio.run(mixture.acall(q="?")) if is_async else mixture(q="?")).mixture
    return answer

"""Toy worlds: numbered questions, and agents of which it is known what they know."""

from __future__ import annotations

from collections.abc import Callable

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Rows = Callable[[str, int], list[dspy.Example]]
Agent = Callable[..., Callable[[str], str]]


def number_of(prompt: str) -> int:
    """Return the number that ends the question, above any references."""
    return int(prompt.splitlines()[0].split()[-1])


@pytest.fixture
def rows() -> Rows:
    """Return what makes n questions of a split: "val 7" is answered by "7"."""

    def make(split: str, n: int) -> list[dspy.Example]:
        return [
            dspy.Example(id=f"{split}-{i}", question=f"{split} {i}", answer=str(i)).with_inputs(
                "question"
            )
            for i in range(n)
        ]

    return make


@pytest.fixture
def fails_on() -> Agent:
    """Return what makes an agent that is wrong where the number modulo ``of`` is in ``rests``."""

    def make(*rests: int, of: int = 3, says: str = "wrong") -> Callable[[str], str]:
        def reply(prompt: str) -> str:
            number = number_of(prompt)
            return f"{says} {number}x" if number % of in rests else str(number)

        return reply

    return make


@pytest.fixture
def student() -> Callable[[Pool], MixtureOfAgents]:
    """Return what makes a student of a pool that chats plainly."""
    return lambda pool: MixtureOfAgents(
        "question -> answer", next(iter(pool)), pool=pool, adapter=PlainChat()
    )


@pytest.fixture
def evaluator(student: Callable[[Pool], MixtureOfAgents]) -> Callable[..., Evaluator]:
    """Return what makes a evaluator that compares answers as texts."""

    def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(prediction.answer == example.answer)

    return lambda pool, metric=exact, num_threads=4: Evaluator(student(pool), metric, num_threads)


@pytest.fixture
def pool(fails_on: Agent) -> Pool:
    """Return three agents whose errors are disjoint, and w, which repeats what it is told."""
    return scripted_pool(
        {f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)} | {"w": lambda prompt: prompt},
        usd_per_million_tokens=dict.fromkeys(("e0", "e1", "e2"), 1e6) | {"w": 1e6},
    )

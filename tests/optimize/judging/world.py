"""Agents whose answers carry their quality, and judges that read it, or that are biased."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.judges import PairJudge
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Script = Callable[[str], str]
AGENTS = ("mid", "good", "bad")
"""Not best first, so that an order of names cannot look like a choice."""
N_VAL, N_TEST = 16, 24
_QUALITY = re.compile(r"quality (\d+\.\d+)")


def share(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16) / 16**8


def agent(name: str, quality: float, *, gain: float = -0.5, pads: int = 0) -> Script:
    """Return an agent whose quality varies by up to 1 with the question.

    Args:
        name: Is part of every answer.
        quality: The least.
        gain: As an aggregator: what it adds to the best reference.
        pads: Words that make its answers longer.
    """

    def reply(prompt: str) -> str:
        number = prompt.splitlines()[0].split()[-1]
        level = quality + share(name, number)
        if read := _QUALITY.findall(prompt):
            level = max(map(float, read)) + gain
        return f"{name} on {number}: quality {level:.3f}{' indeed' * pads}"

    return reply


def qualities(prompt: str) -> tuple[float, float]:
    """Return the quality of both responses that a judge is shown."""
    first, second = _QUALITY.findall(prompt)[-2:]
    return float(first), float(second)


def true_judge(prompt: str) -> str:
    """Prefer the better response."""
    first, second = qualities(prompt)
    return "1" if first > second else "2"


def leaning_judge(prompt: str) -> str:
    """Prefer the first response, unless the second is clearly better."""
    first, second = qualities(prompt)
    return "2" if second > first + 0.7 else "1"


def first_judge(prompt: str) -> str:
    """Prefer the first response, whatever it is."""
    return "1"


def long_judge(prompt: str) -> str:
    """Prefer the response with more words."""
    first, second = re.findall(r'response_[12]: "(.*?)"', prompt, re.DOTALL)
    return "1" if len(first) > len(second) else "2"


def noisy_judge(prompt: str) -> str:
    """Prefer the better response; three of ten replies are no verdict."""
    return "Both have merits." if share(prompt) < 0.3 else true_judge(prompt)


def pool_of(judge: Script = true_judge, **changes: Any) -> Pool:
    """Return ``AGENTS`` and a judge; mixtures that end in "good" are the best of all."""
    scripts: Mapping[str, Script] = {
        "mid": agent("mid", 4.6),
        "good": agent("good", 5.0, gain=0.3),
        "bad": agent("bad", 3.0),
        "judge": judge,
    }
    return scripted_pool({**scripts, **changes})


def rows(split: str, n: int) -> list[dspy.Example]:
    """Return questions without answers."""
    return [
        dspy.Example(id=f"{split}-{i}", question=f"{split} {i}").with_inputs("question")
        for i in range(n)
    ]


def pair_judge(pool: Pool, agent: str = "judge", **options: Any) -> PairJudge:
    """Return a pairwise judge of the pool."""
    return PairJudge(pool=pool, agent=agent, is_weighted=False, **options)


def searched(pool: Pool, judge: Any = None, **options: Any) -> ModelSearch:
    """Compile a search of ``pool`` with a judge of it."""
    space = SearchSpace(AGENTS, combines=("synthesize",), max_depth=1)
    n_val, n_test = options.pop("n_val", N_VAL), options.pop("n_test", N_TEST)
    given = {"space": space, "n_trials": 9, "num_threads": 4, **options}
    search = ModelSearch(pool=pool, judge=judge or pair_judge(pool), **given)
    student = MixtureOfAgents("question -> answer", "good", pool=pool, adapter=PlainChat())
    val, test = rows("val", n_val), rows("test", n_test)
    search.compile(student, trainset=[], valset=val, testset=test)
    return search

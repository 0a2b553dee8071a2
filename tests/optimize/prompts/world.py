"""A toy world in which it is known which prompt is better, and what each reference is worth.

Proposer a is right where the number is not a multiple of 3, b where it leaves 1. The
aggregator c repeats the first reference, but with CAREFULLY in its instructions, or shown an
example, it knows. The outsider g writes prompts and sits in no seat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dspy

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool
from tests.mixture.optimizers import CAREFULLY
from tests.mixture.world import Log, Script, World, exact, number, outsider, reply, wanted

ARCHITECTURE = "a + b > synthesize(c)"
__all__ = ["CAREFULLY", "World", "exact", "make_world", "mixture", "rows"]


def knows(prompt: str) -> bool:
    """Whether a prompt makes the aggregator right: by a word, or by an example."""
    # Without an example the question stands in the system message's form and at the end.
    return "CAREFULLY" in prompt or prompt.count("[[ ## question ## ]]") > 2


def is_right(name: str, n: int) -> bool:
    return n % 3 != 0 if name == "a" else n % 3 == 1


def proposer(name: str, log: Log) -> Script:
    def script(prompt: str) -> str:
        n = number(prompt)
        log.note(name, "answer", prompt)
        said = {"answer": f"Q{n}" if is_right(name, n) else f"wrong {n}", "reasoning": "Well."}
        return reply(prompt, {what: said[what] for what in wanted(prompt)})

    return script


def aggregator(name: str, log: Log, learns: bool) -> Script:
    def script(prompt: str) -> str:
        n = number(prompt)
        log.note(name, "answer", prompt)
        is_known = is_right("a", n) or (learns and knows(prompt))
        said = {"answer": f"Q{n}" if is_known else f"wrong {n}", "best": "1", "reasoning": "So."}
        return reply(prompt, {what: said[what] for what in wanted(prompt)})

    return script


def make_world(
    texts: Mapping[str, str] | None = None,
    *,
    learns: bool = True,
    temperature: float = 0.0,
    scripts: Mapping[str, Callable[[str], str] | Exception] | None = None,
) -> World:
    """Return the world; where the aggregator does not learn, no prompt is better."""
    log = Log()
    agents: dict[str, Any] = {name: proposer(name, log) for name in "ab"}
    agents |= {name: aggregator(name, log, learns) for name in "cd"}
    pool = scripted_pool(agents | dict(scripts or {}), temperature=temperature, reads_all=True)
    outside = {"g": outsider("g", log, CAREFULLY if texts is None else texts)}
    return World(log, pool, scripted_pool(outside, temperature=0.7, reads_all=True).lm("g"))


def mixture(world: World, architecture: str = ARCHITECTURE, **options: Any) -> MixtureOfAgents:
    return MixtureOfAgents("question -> answer", architecture, pool=world.pool, **options)


def rows(split: str, n: int = 6, *, first: int = 0) -> list[Any]:
    """Return n questions that only this split has, with answers."""
    start = {"train": 0, "val": 1000, "test": 2000}[split] + first
    examples = [
        dspy.Example(id=f"{split}-{i}", question=f"task {start + i}", answer=f"Q{start + i}")
        for i in range(n)
    ]
    return [example.with_inputs("question") for example in examples]

"""A program with two mixtures, of which the best pair is known, is searched end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

NOTES = {f"key{n}": f"note{n}" for n in range(200)}
"""What a query finds."""


def number_of(prompt: str) -> int:
    return int("".join(char for char in prompt.splitlines()[0] if char.isdigit()))


def agent(writes: tuple[int, ...], reads: tuple[int, ...]) -> Callable[[str], str]:
    """Return an agent that is wrong about numbers with these rests of 3, in each role."""

    def reply(prompt: str) -> str:
        number = number_of(prompt)
        if prompt.startswith("note"):
            return f"no{number}" if number % 3 in reads else str(number)
        return f"other{number}" if number % 3 in writes or "note" in prompt else f"key{number}"

    return reply


class Rag(dspy.Module):
    """Writes a query, looks it up, and answers from what was found."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        first = next(iter(pool))
        self.query = MixtureOfAgents("question -> query", first, pool=pool, adapter=PlainChat())
        self.answer = MixtureOfAgents("passage -> answer", first, pool=pool, adapter=PlainChat())

    def forward(self, question: str) -> Any:
        passage = NOTES.get(self.query(question=question).query, "note999x")
        return self.answer(passage=passage)


def rows(split: str, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(id=f"{split}-{i}", question=f"{split} {i}", answer=str(i)).with_inputs(
            "question"
        )
        for i in range(n)
    ]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer == example.answer)


def make_pool(**options: Any) -> Pool:
    # Writers w0, w1, w2 are wrong in turn, so that their vote is right; so are readers.
    return scripted_pool(
        {
            "w0": agent((0,), (0, 1)),
            "w1": agent((1,), (0, 1)),
            "w2": agent((2,), (1, 2)),
            "r0": agent((0, 1), (0,)),
            "r1": agent((0, 1), (1,)),
            "r2": agent((1, 2), (2,)),
        },
        **options,
    )


SPACE = SearchSpace(("w0", "w1", "w2", "r0", "r1", "r2"), combines=("vote",), max_depth=1)


def test_the_best_pair_is_found() -> None:
    pool = make_pool()
    search = ModelSearch(exact, pool, space=SPACE, n_trials=60)
    student = Rag(pool)
    program = search.compile(student, trainset=[], valset=rows("v", 18), testset=rows("t", 30))
    print(search.result)
    for t in search.result.trials: print(t.number, t.origin, t.architecture, t.score, t.calls)
    print(pool.calls.ledger.spending, search.result.notes)
    print(search.study.trials[-1].params)
    assert 0

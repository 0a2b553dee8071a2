"""A program that retrieves and answers: which models should answer? `python researcher.py POOL`."""

import sys
from typing import Any

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.data import answer_match
from moa_dspy.optimize import SearchSpace

PASSAGES = [f"The code of item {n} is {n * 7 % 100}." for n in range(80)]


class Rag(dspy.Module):
    """Retrieves one passage and answers from it with reasoning."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("context, question -> answer")

    def forward(self, question: str) -> Any:
        """Answer a question."""
        words = set(question.strip("?").split())
        best = max(PASSAGES, key=lambda passage: len(words & set(passage.split())))
        return self.answer(context=best, question=question)


def rows(numbers: range) -> list[dspy.Example]:
    """Return questions about items."""
    return [
        dspy.Example(question=f"code of item {n} ?", answer=str(n * 7 % 100)).with_inputs(
            "question"
        )
        for n in numbers
    ]


pool = Pool.read(sys.argv[1])
space = SearchSpace(tuple(pool), ("vote", "synthesize"), max_depth=1)
search = ModelSearch(
    answer_match, pool, space=space, predictor="answer", n_trials=10, storage="sqlite:///optuna.db"
)
found = search.compile(Rag(), trainset=[], valset=rows(range(10, 40)), testset=rows(range(40, 80)))
print(search.result.verdict.text)
print(f"trials in optuna.db: {len(search.study.trials)}, {search.study.metric_names}")
found.save("rag.json")

again = MixtureOfAgents.in_place_of(Rag(), "answer", pool=pool)
again.load("rag.json")
assert (
    again(question=rows(range(1))[0].question).answer
    == found(question=rows(range(1))[0].question).answer
)
print(f"loaded into {type(again).__name__}: {again.answer.architecture}")

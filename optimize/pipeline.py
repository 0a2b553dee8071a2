"""A program that retrieves and then answers: which models should answer, with which examples?

    python optimize/pipeline.py [--pool optimize/pools/local.toml]

Without a pool of models, three scripted readers answer, each blind to one kind of fact.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShot

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.data import answer_match
from moa_dspy.optimize import SearchSpace
from moa_dspy.testing import scripted_pool

TOWNS = """
Arlen Mira 1201 340, Bresk Tolva 1350 85, Corvin Ansa 1127 610, Dalmar Pell 1478 12,
Estra Volna 1099 275, Fenwick Orla 1602 44, Galden Suir 1233 530, Hestra Lume 1541 190,
Ilmar Quell 1315 720, Jorvik Nessa 1188 65, Kestel Brae 1420 305, Lunden Thaya 1276 150,
Morwen Issel 1690 410, Norden Rill 1055 95, Ostia Verne 1367 260, Pelham Dove 1505 33
"""
KINDS = {
    "river": ("{0} lies on the river {1}.", "On which river does {0} lie?"),
    "year": ("{0} was founded in the year {2}.", "In which year was {0} founded?"),
    "metres": ("{0} stands {3} metres above the sea.", "How many metres above the sea is {0}?"),
}
FACTS = [(kind, town.split(), n) for n, town in enumerate(TOWNS.split(",")) for kind in KINDS]
PASSAGES = [KINDS[kind][0].format(*town) for kind, town, _ in FACTS]
TASK = "Answer the question from the context. Reply with the answer only, in one word or number."


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


RARITY = Counter(word for passage in PASSAGES for word in set(words(passage)))


def retrieve(question: str, *, k: int = 3) -> str:
    """Return the k passages that share most words with the question, rare ones counting more."""

    def likeness(passage: str) -> float:
        return sum(1 / RARITY[word] for word in set(words(question)) & set(words(passage)))

    return "\n".join(sorted(PASSAGES, key=likeness, reverse=True)[:k])


class Pipeline(dspy.Module):
    """Retrieves passages, and lets a mixture of agents answer from them."""

    def __init__(self, answer: MixtureOfAgents) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, question: str) -> Any:
        """Answer a question."""
        return self.answer(context=retrieve(question), question=question)


def reader(blind_to: str) -> Callable[[str], str]:
    """Return a script that finds what is asked for in its prompt, but for one kind of fact."""

    def script(prompt: str) -> str:
        kind = next(kind for kind in KINDS if kind in prompt.rpartition("question: ")[2])
        passage = next((line for line in prompt.splitlines() if f" {kind}" in line), "")
        tokens = words(passage.removeprefix("context: "))
        place = {"river": -1, "year": -1, "metres": 2}[kind]
        return f"no {kind}" if kind == blind_to or not tokens else tokens[place]

    return script


def rows(towns: range) -> list[dspy.Example]:
    """Return the questions about some of the towns."""
    place = {"river": 1, "year": 2, "metres": 3}
    return [
        dspy.Example(question=KINDS[kind][1].format(*town), answer=town[place[kind]]).with_inputs(
            "question"
        )
        for kind, town, number in FACTS
        if number in towns
    ]


def main(pool: Pool, path: Path) -> tuple[Any, Any]:
    """Search, compile, save to ``path`` and load; return the program and the loaded one."""
    signature = dspy.make_signature("context, question -> answer", TASK)
    mixture = MixtureOfAgents(signature, next(iter(pool)), pool=pool, adapter=PlainChat())
    space = SearchSpace(tuple(pool), max_depth=1)
    search = ModelSearch(answer_match, pool, space=space, n_trials=15, seed=0)
    train, val, test = rows(range(2)), rows(range(2, 7)), rows(range(7, 16))
    optimized = search.compile(Pipeline(mixture), trainset=train, valset=val, testset=test)
    print(search.result.verdict.text)

    prompts = BootstrapFewShot(metric=answer_match, max_bootstrapped_demos=2, max_labeled_demos=0)
    program = prompts.compile(optimized, trainset=train)
    program.answer.save(path)
    loaded = Pipeline(MixtureOfAgents.load(path, pool=pool))
    right = sum(answer_match(row, loaded(question=row.question)) for row in test)
    print(f"With examples in its prompts it answers {right:.0f} of {len(test)}: {path}")
    return program, loaded


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pool", type=Path, help="a pool file instead of the scripted readers")
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline.json"), help="the result")
    asked = parser.parse_args()
    readers = {f"no-{kind}": reader(kind) for kind in KINDS}
    main(Pool.read(asked.pool) if asked.pool else scripted_pool(readers), asked.out)

"""What a study of a program with several mixtures was expected to take, against what it took.

    python tests/bench/estimates_of_programs.py [--studies 1] [--seed 0] [--kind NAME,NAME] [--json]

Each kind is a program of two or three mixtures (see `KINDS`): a query and an answer from what it
finds, where queries are one word or free text; a draft and its check; two that do not depend on
each other; and two with a third that reads both. Agents, prices, sizes and the reading of other
answers are drawn by the seed. Nothing is asked over the network. Printed is what
`tests/bench/estimates.py` prints of a study of one mixture.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import dspy

sys.path.insert(0, str(Path(__file__).parents[2]))

from moa_dspy import MixtureOfAgents, ModelSearch
from moa_dspy.adapters import PlainChat
from moa_dspy.optimize import SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.bench.estimates import (
    FACTOR,
    N_LETTERS,
    compared,
    count_tokens,
    is_held,
    read_letter,
    rows,
)

LETTERS: Final = "ABCDE"
_TASK: Final = re.compile(r"task-(\w+) (?:\S+ )*?(q-\w+-\d+)((?: [A-E]\b)*)")


class Program(dspy.Module):
    """A program whose mixtures are attributes, each with a text in and a text out."""

    def __init__(self, pool: Pool, names: tuple[str, ...]) -> None:
        super().__init__()
        first = next(iter(pool))
        for name in names:
            setattr(
                self,
                name,
                MixtureOfAgents("question -> answer", first, pool=pool, adapter=PlainChat()),
            )

    def asked(self, name: str, text: str) -> str:
        """Return the letter that a mixture answers."""
        answer: str = getattr(self, name)(question=f"task-{name} {text}").answer
        return answer.split()[-1]


class Lookup(Program):
    """Finds a passage by a query of one letter, and answers from it."""

    def forward(self, question: str) -> Any:
        passage = f"{question.split()[-1]} {self.asked('query', question)}"
        return dspy.Prediction(answer=self.asked("answer", passage))


class FreeText(Program):
    """Answers from all that the query says, of which no two are equal."""

    def forward(self, question: str) -> Any:
        said = self.free(question=f"task-free {question}").answer
        *words, letter = said.split()
        text = f"{' '.join(words)} {question.split()[-1]} {letter}"
        return dspy.Prediction(answer=self.asked("answer", text))


class Check(Program):
    """Drafts an answer, and checks the draft."""

    def forward(self, question: str) -> Any:
        draft = self.asked("draft", question)
        return dspy.Prediction(answer=self.asked("check", f"{question} {draft}"))


class Both(Program):
    """Asks two mixtures that do not depend on each other; both must be right."""

    def forward(self, question: str) -> Any:
        one, other = self.asked("one", question), self.asked("other", question)
        return dspy.Prediction(answer=one if one == other else "none")


class Three(Program):
    """Asks two mixtures, and a third that reads the answers of both."""

    def forward(self, question: str) -> Any:
        one, other = self.asked("one", question), self.asked("other", question)
        return dspy.Prediction(answer=self.asked("decide", f"{question} {one} {other}"))


KINDS: Final[dict[str, tuple[type[Program], tuple[str, ...]]]] = {
    "lookup": (Lookup, ("query", "answer")),
    "free": (FreeText, ("free", "answer")),
    "check": (Check, ("draft", "check")),
    "both": (Both, ("one", "other")),
    "three": (Three, ("one", "other", "decide")),
}


def agent(name: str, reads: str, seed: str, rng: random.Random) -> Callable[[str], str]:
    """Return a script that is right on a share of the questions of each task."""
    accuracy, n_words = rng.uniform(0.5, 0.85), rng.choice((1, 1, 5, 30))

    def script(prompt: str) -> str:
        if "reply with its number" in prompt.lower():
            return "1"
        task, question, given = _TASK.findall(prompt)[-1]
        own, chance = (
            random.Random(f"{seed} {name} {task} {question} {given}"),
            random.Random(prompt),
        )
        right = int(question.rpartition("-")[2]) % N_LETTERS
        letter = right if own.random() < accuracy else own.randrange(N_LETTERS)
        if task == "answer" and LETTERS[right] not in given:
            letter = LETTERS.index(given.split()[0])
        elif given and own.random() < 0.5:
            letter = LETTERS.index(own.choice(given.split()))
        read = re.findall(r'^\d+\. ".*\b([A-E])"$', prompt, re.MULTILINE)
        found = read_letter(reads, letter, [LETTERS.index(one) for one in read], question, chance)
        words = (
            ["well"] * (n_words - 1)
            if task != "free"
            else [name, *map(str, chance.sample(range(99), 3))]
        )
        return " ".join([*words, LETTERS[found]])

    return script


def last_letter(row: Any, prediction: Any, trace: Any = None) -> float:
    """Score the answer of a program."""
    return float(prediction.answer == row.answer)


def study(kind: str, seed: int) -> dict[str, Any]:
    """Run a study of a program and return what was expected of it and what it took."""
    rng = random.Random(f"program-{kind}-{seed}")
    names = [f"a{place}" for place in range(rng.choice((2, 3, 4)))]
    reads = rng.choice(("own", "random", "most", "right", "new"))
    pool = scripted_pool(
        {name: agent(name, reads, f"{kind}{seed}", rng) for name in names},
        usd_per_million_tokens={name: rng.choice((0.1, 0.5, 2.0, 10.0)) for name in names},
        reads_all=True,
        count=count_tokens,
    )
    combines = rng.choice((("vote",), ("synthesize",), ("vote", "synthesize")))
    n_val, n_test, n_trials = rng.choice((30, 60)), rng.choice((40, 100)), rng.choice((15, 30))
    space = SearchSpace(
        tuple(names), combines, max_width=min(3, len(names)), max_depth=rng.choice((1, 2))
    )
    search = ModelSearch(
        last_letter, pool, space=space, n_trials=n_trials, seed=seed, display_progress=False
    )
    program, mixtures = KINDS[kind]
    search.compile(
        program(pool, mixtures),
        trainset=[],
        valset=rows("val", n_val),
        testset=rows("test", n_test),
    )
    chosen = {"n_agents": len(names), "reads": reads, "combines": combines, "trials": n_trials}
    return {"family": kind, "seed": seed, **chosen, **compared(search.result)}


def main() -> None:
    """Run the studies and print their ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: list[dict[str, Any]] = []
    for kind in asked.kind.split(","):
        for seed in range(asked.seed, asked.seed + asked.studies):
            found.append(study(kind, seed))
            if not asked.json:
                print(json.dumps(found[-1]), flush=True)
    shares: dict[str, Any] = {}
    for place, name in enumerate(("calls", "usd")):
        ratios = [one[f"{name}_ratio"] for one in found]
        shares[name] = {
            "within": sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios) / len(found),
            "held": sum(is_held(one, name, place) for one in found) / len(found),
        }
    print(json.dumps({**shares, **({"studies": found} if asked.json else {})}))


if __name__ == "__main__":
    main()

"""Recorded answers as agents that a search can ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import dspy

from moa_dspy.data import RecordedResponses
from moa_dspy.pool import Pool
from moa_dspy.testing import recorded_pool
from tests.bench.quality._folder import Answers, Indices

_NOT_IN_A_NAME: Final = re.compile(r"[^\w./-]+")


class Responses(dict[str, str | None]):
    """One model's responses by question; it remembers which were asked for."""

    def __init__(self, responses: dict[str, str | None]) -> None:
        super().__init__(responses)
        self.asked: set[str] = set()

    def __getitem__(self, question: str) -> str | None:
        self.asked.add(question)
        return super().__getitem__(question)


@dataclass(frozen=True, slots=True)
class Replay:
    """A pool that answers some questions, each with the number of its column as id.

    Attributes:
        names: Of the agents, in the order of the answers' rows.
        responses: Of each agent.
        recorded: All of it.
        pool: The agents.
    """

    names: tuple[str, ...]
    responses: tuple[Responses, ...]
    recorded: RecordedResponses
    pool: Pool

    @classmethod
    def of(cls, answers: Answers, questions: Indices) -> Replay:
        """Replay the answers to these questions."""
        names, columns = agent_names(answers.names), questions.tolist()
        responses = tuple(
            Responses({str(q): _text(int(codes[q])) for q in columns}) for codes in answers.codes
        )
        scores = {
            (str(q), name): float(answers.scores[row, q])
            for row, name in enumerate(names)
            for q in columns
        }
        asked = {str(q): f"question {q}" for q in columns}
        by_name = dict(zip(names, responses, strict=True))
        recorded = RecordedResponses(by_name, asked, scores=scores)
        return cls(names, responses, recorded, recorded_pool(recorded))

    def rows(self, questions: Indices) -> list[dspy.Example]:
        """Return the questions as examples."""
        return [
            dspy.Example(id=str(q), question=f"question {q}").with_inputs("question")
            for q in questions.tolist()
        ]

    def n_asked(self, questions: Indices) -> int:
        """Return how many answers to these questions were looked at, of all agents."""
        wanted = {str(q) for q in questions.tolist()}
        return sum(len(wanted & one.asked) for one in self.responses)


def agent_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return a different word for each model, as architectures are written."""
    words = [_NOT_IN_A_NAME.sub("-", name) for name in names]
    return tuple(f"{w}-{i}" if words.count(w) > 1 else w for i, w in enumerate(words))


def _text(code: int) -> str | None:
    # Not the recorded text: the library's votes fold its case and blanks, the file's do not.
    return None if code < 0 else f"answer {code}"

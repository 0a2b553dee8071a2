"""Recorded answers as agents that a search can ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.data import RecordedResponses
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.plan import follow
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer, Question, Response
from moa_dspy.testing import recorded_pool
from moa_dspy.waves import MemberQuestions, replayed
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
            Responses({str(q): answer_text(int(codes[q])) for q in columns})
            for codes in answers.codes
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

    def student(self, architecture: Architecture, *, stop_early: bool = True) -> MixtureOfAgents:
        """Return the mixture of these agents."""
        return MixtureOfAgents(
            "question -> answer",
            architecture,
            pool=self.pool,
            adapter=PlainChat(),
            normalise="text",
            stop_early=stop_early,
        )

    def n_asked(self, questions: Indices) -> int:
        """Return how many answers to these questions were looked at, of all agents."""
        wanted = {str(q) for q in questions.tolist()}
        return sum(len(wanted & response.asked) for response in self.responses)


def answered(mixture: MixtureOfAgents, answers: Mapping[str, str | None]) -> Answer | None:
    """Return what a mixture makes of these answers, asked as its plan says; None if nothing.

    Args:
        mixture: Made by ``Replay.student``.
        answers: To one question, by agent.
    """

    def respond(question: Question) -> Response:
        text = answers[question.agent]
        if text is None:
            return Response(question.agent, calls=1, failure="no answer")
        return Response(question.agent, values={"answer": text}, text=text, calls=1)

    def ask_all(questions: list[Question]) -> list[Response]:
        if isinstance(questions, MemberQuestions):
            return replayed(questions, lambda due: [respond(questions[at]) for at in due])
        return [respond(question) for question in questions]

    try:
        return follow(mixture.plan({"question": ""}), ask_all)
    except LayerFailedError:
        return None


def agent_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return a different word for each model, as architectures are written."""
    words = [_NOT_IN_A_NAME.sub("-", name) for name in names]
    return tuple(f"{w}-{i}" if words.count(w) > 1 else w for i, w in enumerate(words))


def answer_text(code: int) -> str | None:
    """Return an answer of this code; None where it is none."""
    # Not the recorded text: the library's votes fold its case and blanks, the file's do not.
    return None if code < 0 else f"answer {code}"

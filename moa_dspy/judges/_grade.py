"""A judge that grades single answers from 1 to 10, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dspy

from moa_dspy.adapters import quoted
from moa_dspy.errors import DataError
from moa_dspy.judges._graded import Grader
from moa_dspy.judges._outcome import Graded
from moa_dspy.judges._texts import id_of, instruction_of, texts_of
from moa_dspy.judges.signatures import grade
from moa_dspy.pool import Pool


class GradeJudge(Grader):
    """Grades answers from 1 to 10, as in MT-Bench (Zheng et al., 2023, arXiv:2306.05685).

    Each turn of an example is graded by one call: the first by its question and answer, a later
    one also by the conversation before it, each by the reference answer where the example has
    one (in MT-Bench: mathematics, coding and reasoning). The score of an example is its mean
    grade, scaled from 1..10 to [0, 1].

    Args:
        pool: As for ``JudgeProgram``, like the next two.
        agent: The judge's name in the pool.
        lm: Instead of both.
        turns_field: Field of the user's turns, a list; an example without it has one turn, its
            inputs.
        reference_answer_field: Field of the right answers, one per turn, or one text for the
            first; null, empty or absent where there is none.
        module: ``dspy.Predict``, or ``dspy.ChainOfThought`` with a chat adapter.
        adapter: None is plain chat.
    """

    best = 10

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        agent: str | None = None,
        lm: dspy.LM | None = None,
        turns_field: str = "turns",
        reference_answer_field: str = "reference",
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
    ) -> None:
        super().__init__(pool=pool, agent=agent, lm=lm, adapter=adapter)
        self.turns_field, self.reference_answer_field = turns_field, reference_answer_field
        # Four predictors with four prompts: an optimizer may improve each on its own.
        self.first = module(grade(has_reference=False, is_later_turn=False))
        self.first_with_reference = module(grade(has_reference=True, is_later_turn=False))
        self.later = module(grade(has_reference=False, is_later_turn=True))
        self.later_with_reference = module(grade(has_reference=True, is_later_turn=True))

    def forward(
        self, questions: Sequence[str], answers: Sequence[str], reference_answer: str | None = None
    ) -> dspy.Prediction:
        """Grade the last of these answers; the turns before it are the conversation.

        Returns:
            ``grade`` from 1 to 10 or None, ``excluded`` and ``reason``.
        """
        inputs = {"question": quoted(questions[-1]), "answer": quoted(answers[-1])}
        if earlier := _conversation(questions[:-1], answers[:-1]):
            inputs["conversation"] = earlier
        if reference_answer:
            inputs["reference_answer"] = quoted(reference_answer)
        reply = self.ask(self._predictor(inputs), inputs)
        number, excluded, reason = self.read_grade(reply, "grade")
        return dspy.Prediction(grade=number, excluded=excluded, reason=reason)

    def graded(self, example: dspy.Example, answer: Any) -> Graded:
        """Grade every turn; ``grades`` has the keys ``turn 1``, ``turn 2`` and so on.

        Raises:
            DataError: The answer has another number of turns than the example.
        """
        questions = self._questions(example)
        answers = texts_of(answer)
        if answers is None:
            return Graded(grades={}, excluded="missing", reason="There is no answer to grade.")
        if len(answers) != len(questions):
            raise DataError(
                f"Example {id_of(example)!r} has {len(questions)} turns, "
                f"but the answer has {len(answers)}."
            )
        references = self._references(example, len(questions))
        pieces = {
            f"turn {n}": self(
                questions=questions[:n], answers=answers[:n], reference_answer=references[n - 1]
            )
            for n in range(1, len(questions) + 1)
        }
        return self.sum_up(pieces)

    def _questions(self, example: dspy.Example) -> tuple[str, ...]:
        turns = example.get(self.turns_field)
        if turns is None:
            return (instruction_of(example),)
        questions = texts_of(turns)
        if not questions:
            raise DataError(f"Example {id_of(example)!r}: `{self.turns_field}` has no turn.")
        return questions

    def _references(self, example: dspy.Example, n_turns: int) -> list[str | None]:
        found = texts_of(example.get(self.reference_answer_field)) or ()
        if len(found) > n_turns:
            raise DataError(
                f"Example {id_of(example)!r} has {n_turns} turns, "
                f"but `{self.reference_answer_field}` has {len(found)} reference answers."
            )
        return [*found, *[None] * (n_turns - len(found))]

    def _predictor(self, inputs: dict[str, str]) -> Any:
        if "conversation" in inputs:
            with_reference, without = self.later_with_reference, self.later
        else:
            with_reference, without = self.first_with_reference, self.first
        return with_reference if "reference_answer" in inputs else without


def _conversation(questions: Sequence[str], answers: Sequence[str]) -> str:
    pairs = zip(questions, answers, strict=True)
    return "\n".join(f"user: {quoted(q)}\nassistant: {quoted(a)}" for q, a in pairs)

"""Judges that grade one system at a time: answers from 1 to 10, skills from 1 to 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import dspy

from moa_dspy.adapters import quoted
from moa_dspy.errors import DataError, MetricError
from moa_dspy.judges.base import (
    Exclusion,
    Grades,
    Judgement,
    Metric,
    Scored,
    answer_text,
    id_of,
    instruction_of,
    metric_of,
    preference_metric,
    texts_of,
)
from moa_dspy.judges.pairwise import read_number
from moa_dspy.judges.program import SKILLS, JudgeProgram, Reply, grade, skill_rating
from moa_dspy.pool import Pool
from moa_dspy.winrate import preferences

_EQUAL = 1e-9


class Grader(JudgeProgram):
    """Base of judges that grade answers from 1 to ``best``; two grades give a preference."""

    best: int

    def grade(self, example: dspy.Example, answer: Any) -> Grades:
        """Grade an answer, and count the result in the report.

        Args:
            example: The example.
            answer: A prediction, a text, or a sequence of texts, one per turn; None means missing.
        """
        graded = self.graded(example, answer)
        self.count(graded)
        return graded

    def graded(self, example: dspy.Example, answer: Any) -> Grades:
        """Grade an answer without counting it; implemented by subclasses."""
        raise NotImplementedError

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Compare two answers by their scores: 1 win, 0.5 tie, 0 loss; counts as one outcome.

        The example is excluded if either has no score, with the reason of that answer.
        """
        candidate_grades, reference_grades = (
            self.graded(example, candidate),
            self.graded(example, reference),
        )
        judgement = _compared(candidate_grades, reference_grades)
        self.count(judgement)
        return judgement

    def as_metric(
        self, *, reference_field: str | None = None, unreadable: float | None = 0.5
    ) -> Metric:
        """Return a DSPy metric.

        Args:
            reference_field: Field of a stored response to compare with; None scores the prediction
                alone, by its mean grade, scaled from 1..``best`` to [0, 1].
            unreadable: Score of an example that cannot be graded; None raises MetricError.
        """
        if reference_field is not None:
            return preference_metric(self, reference_field, unreadable)

        def score(example: dspy.Example, prediction: Any) -> Scored:
            graded = self.grade(example, prediction)
            return graded.score, graded

        return metric_of(score, unreadable=unreadable)

    def read_grade(self, reply: Reply, name: str) -> tuple[float | None, Exclusion | None, str]:
        """Return the grade in a reply's output ``name``, or the exclusion, and a reason."""
        text = str(reply.values.get(name, ""))
        number = read_number(text, best=self.best)
        if number is not None:
            return number, None, reply.reason
        if reply.excluded is not None:
            return None, reply.excluded, reply.reason
        return None, "unparsable", f"{text[:80]!r} is no number from 1 to {self.best}."

    def sum_up(self, pieces: Mapping[str, dspy.Prediction]) -> Grades:
        """Combine the predictions per turn or skill, each with ``grade``, ``excluded``, ``reason``.

        The score is the mean over all of them; without one of the grades there is no score.
        """
        grades: dict[str, float | None] = {name: piece.grade for name, piece in pieces.items()}
        reason = "\n".join(f"{n}: {piece.reason}" for n, piece in pieces.items() if piece.reason)
        for piece in pieces.values():
            if piece.excluded is not None:
                return Grades(grades=grades, excluded=piece.excluded, reason=reason)
        read: Sequence[float] = [piece.grade for piece in pieces.values()]
        score = (sum(read) / len(read) - 1) / (self.best - 1)
        return Grades(grades=grades, score=score, reason=reason)


def _compared(candidate: Grades, reference: Grades) -> Judgement:
    for graded in (candidate, reference):
        if graded.score is None:
            return Judgement(excluded=graded.excluded, reason=graded.reason)
    # Scores are means of few numbers; equal scores that differ by rounding are a tie.
    preference = preferences([candidate.score or 0.0], [reference.score or 0.0], tolerance=_EQUAL)[
        0
    ]
    return Judgement(preference=float(preference), reason=candidate.reason)


class GradeJudge(Grader):
    """Grades answers from 1 to 10, as in MT-Bench (Zheng et al., 2023, arXiv:2306.05685).

    Each turn of an example is graded by one call, which reads its question and answer, for a later
    turn also the conversation before it, and the reference answer if the example has one (in
    MT-Bench: mathematics, coding and reasoning). The score of an example is its mean grade, scaled
    from 1..10 to [0, 1].

    Args:
        pool: As for ``JudgeProgram``, like the next two.
        agent: The judge's name in the pool.
        lm: An LM, instead of ``pool`` and ``agent``.
        turns_field: Field of the user's turns, a list; without it, the inputs are the only turn.
        reference_answer_field: Field of the right answers, one per turn, or one text for the first
            turn; null, empty or missing if there is none.
        n_turns: Number of first turns that are answered and graded; None means all.
        criteria: Description of a good answer; None takes the judge's own text.
        module: ``dspy.Predict``, or ``dspy.ChainOfThought`` with a chat adapter.
        adapter: A DSPy adapter; None takes plain chat.

    Raises:
        MetricError: If ``n_turns`` is below 1, or ``criteria`` is blank.
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
        n_turns: int | None = None,
        criteria: str | None = None,
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
    ) -> None:
        super().__init__(pool=pool, agent=agent, lm=lm, adapter=adapter)
        if n_turns is not None and n_turns < 1:
            raise MetricError(f"`n_turns` must be at least 1, but got {n_turns}.")
        self.turns_field, self.reference_answer_field = turns_field, reference_answer_field
        self.n_turns = n_turns
        # Four predictors with four prompts, so that an optimizer can improve each separately.
        signature = partial(grade, criteria=criteria)
        self.first = module(signature(has_reference=False, is_later_turn=False))
        self.first_with_reference = module(signature(has_reference=True, is_later_turn=False))
        self.later = module(signature(has_reference=False, is_later_turn=True))
        self.later_with_reference = module(signature(has_reference=True, is_later_turn=True))

    def forward(
        self, questions: Sequence[str], answers: Sequence[str], reference_answer: str | None = None
    ) -> dspy.Prediction:
        """Grade the last of the answers; the turns before it are the conversation.

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

    def graded(self, example: dspy.Example, answer: Any) -> Grades:
        """Grade every turn; ``grades`` has the keys ``turn 1``, ``turn 2`` and so on.

        Raises:
            DataError: If the answer has another number of turns than the example.
        """
        questions = self._questions(example)
        answers = texts_of(answer)
        if answers is None:
            return Grades(grades={}, excluded="missing", reason="There is no answer to grade.")
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
        return questions[: self.n_turns]

    def _references(self, example: dspy.Example, n_turns: int) -> list[str | None]:
        references = (texts_of(example.get(self.reference_answer_field)) or ())[: self.n_turns]
        if len(references) > n_turns:
            raise DataError(
                f"Example {id_of(example)!r} has {n_turns} turns, "
                f"but `{self.reference_answer_field}` has {len(references)} reference answers."
            )
        return [*references, *[None] * (n_turns - len(references))]

    def _predictor(self, inputs: dict[str, str]) -> Any:
        if "conversation" in inputs:
            with_reference, without = self.later_with_reference, self.later
        else:
            with_reference, without = self.first_with_reference, self.first
        return with_reference if "reference_answer" in inputs else without


def _conversation(questions: Sequence[str], answers: Sequence[str]) -> str:
    pairs = zip(questions, answers, strict=True)
    return "\n".join(f"user: {quoted(q)}\nassistant: {quoted(a)}" for q, a in pairs)


class SkillJudge(Grader):
    """Rates responses from 1 to 5 per annotated skill, as FLASK does (arXiv:2307.10928).

    Each skill of an example is rated by a separate call, which reads the skill's description, the
    instruction, the reference answer and the response, so that ratings do not influence each other.
    FLASK's result is the mean per skill over examples: ``grade_all(...).means``. The score of an
    example is its mean rating, scaled from 1..5 to [0, 1].

    Args:
        pool: As for ``JudgeProgram``, like the next two.
        agent: The judge's name in the pool.
        lm: An LM, instead of ``pool`` and ``agent``.
        skills: Descriptions of the skills by their names in examples; default: FLASK's twelve.
        skill_field: Field of the skills to rate: a list of names, or one name.
        reference_answer_field: Field of a good answer; if it is missing, the prompt says so.
        module: ``dspy.Predict``, or ``dspy.ChainOfThought`` with a chat adapter.
        adapter: A DSPy adapter; None takes plain chat.
    """

    best = 5

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        agent: str | None = None,
        lm: dspy.LM | None = None,
        skills: Mapping[str, str] = SKILLS,
        skill_field: str = "skills",
        reference_answer_field: str = "reference",
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
    ) -> None:
        super().__init__(pool=pool, agent=agent, lm=lm, adapter=adapter)
        self.skill_field, self.reference_answer_field = skill_field, reference_answer_field
        # A plain dict, as DSPy copies programs deeply and a read-only view cannot be copied.
        self.skills = dict(skills)
        self.rate = module(skill_rating())

    def forward(
        self, skill: str, instruction: str, response: str, reference_answer: str | None = None
    ) -> dspy.Prediction:
        """Rate one skill.

        Returns:
            ``grade`` from 1 to 5 or None, ``excluded`` and ``reason``.
        """
        inputs = {
            "skill": f"{skill}: {self.skills[skill]}.",
            "instruction": quoted(instruction),
            "reference_answer": quoted(reference_answer) if reference_answer else "none is known",
            "response": quoted(response),
        }
        number, excluded, reason = self.read_grade(self.ask(self.rate, inputs), "rating")
        return dspy.Prediction(grade=number, excluded=excluded, reason=reason)

    def graded(self, example: dspy.Example, answer: Any) -> Grades:
        """Rate every annotated skill; ``grades`` has the skills' names as keys.

        Raises:
            DataError: If there is no skill, an unknown skill, or an answer of several turns.
        """
        skills = self._skills(example)
        instruction = instruction_of(example)
        response = answer_text(answer, example)
        if response is None:
            return Grades(grades={}, excluded="missing", reason="There is no answer to rate.")
        reference = answer_text(example.get(self.reference_answer_field), example)
        pieces = {
            skill: self(
                skill=skill,
                instruction=instruction,
                response=response,
                reference_answer=reference,
            )
            for skill in skills
        }
        return self.sum_up(pieces)

    def _skills(self, example: dspy.Example) -> tuple[str, ...]:
        named = texts_of(example.get(self.skill_field))
        if not named:
            raise DataError(f"Example {id_of(example)!r}: `{self.skill_field}` names no skill.")
        for skill in named:
            if skill not in self.skills:
                names = ", ".join(sorted(self.skills))
                raise DataError(
                    f"Example {id_of(example)!r}: unknown skill {skill!r}; known ones are {names}."
                )
        return named

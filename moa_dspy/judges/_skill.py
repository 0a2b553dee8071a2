"""A judge that rates the skills an example is annotated with, from 1 to 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dspy

from moa_dspy.adapters import quoted
from moa_dspy.errors import DataError
from moa_dspy.judges._graded import Grader
from moa_dspy.judges._outcome import Graded
from moa_dspy.judges._texts import id_of, instruction_of, text_of, texts_of
from moa_dspy.judges.signatures import SKILLS, skill_rating
from moa_dspy.pool import Pool


class SkillJudge(Grader):
    """Rates responses from 1 to 5 per annotated skill, as FLASK does (arXiv:2307.10928).

    Each skill of an example is one call that sees the skill's description, the instruction, the
    reference answer and the response, so that one rating cannot colour the next. FLASK's result
    is the mean per skill over examples: ``grade_all(...).means``. The score of an example is its
    mean rating, scaled from 1..5 to [0, 1].

    Args:
        pool: As for ``JudgeProgram``, like the next two.
        agent: The judge's name in the pool.
        lm: Instead of both.
        skills: What each skill means, by the name examples use; default: FLASK's twelve.
        skill_field: Field of the skills to rate: a list of names, or one.
        reference_answer_field: Field of a good answer; without one the judge is told so.
        module: ``dspy.Predict``, or ``dspy.ChainOfThought`` with a chat adapter.
        adapter: None is plain chat.
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
        # A plain dict: DSPy copies programs deeply, which a read-only view does not survive.
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

    def graded(self, example: dspy.Example, answer: Any) -> Graded:
        """Rate every annotated skill; ``grades`` has the skills' names as keys.

        Raises:
            DataError: No skill, an unknown one, or an answer of several turns.
        """
        skills = self._skills(example)
        instruction = instruction_of(example)
        response = text_of(answer, example)
        if response is None:
            return Graded(grades={}, excluded="missing", reason="There is no answer to rate.")
        reference = text_of(example.get(self.reference_answer_field), example)
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
                known = ", ".join(sorted(self.skills))
                raise DataError(
                    f"Example {id_of(example)!r}: unknown skill {skill!r}; known ones are {known}."
                )
        return named

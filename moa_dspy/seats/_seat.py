"""One question that is being asked, and what its answer or failure is as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from moa_dspy.aggregators import Question
from moa_dspy.calls import CallFacts, CallScope
from moa_dspy.errors import ours
from moa_dspy.response import Response, render
from moa_dspy.seats._module import values_of
from moa_dspy.seats._outside_lm import Trace, renamed

Asked: TypeAlias = tuple[Response, Trace, Sequence[CallFacts]]
"""A response, what DSPy traced on the way to it, and the calls that it took."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A question that is being asked."""

    question: Question
    module: Any
    scope: CallScope
    trace: Trace = field(default_factory=list)

    def answered(self, prediction: Any) -> Asked:
        values = values_of(self.module, prediction)
        text = render(values)
        if not text.strip():
            return self._asked(failure=self._nothing_said())
        return self._asked(values=values, text=text)

    def _nothing_said(self) -> str:
        if any(facts.is_thought_only for facts in self.scope.log):
            return "The model answered with reasoning only, and no text."
        return "The model answered with an empty text."

    def failed(self, error: Exception) -> Asked:
        if cause := ours(error):
            # Not a model's failure, so it must be seen.
            raise cause
        if self.scope.log and all(facts.is_thought_only for facts in self.scope.log):
            # The adapter found no field, because there was nothing to read.
            return self._asked(failure=self._nothing_said())
        return self._asked(failure=f"{type(error).__name__}: {error}")

    def _asked(self, **rest: Any) -> Asked:
        log = self.scope.log
        response = Response(
            agent=self.question.agent,
            sample=self.question.sample,
            calls=len(log),
            prompt_tokens=sum(facts.prompt_tokens for facts in log),
            completion_tokens=sum(facts.completion_tokens for facts in log),
            usd=sum(facts.usd for facts in log),
            seconds=sum(facts.seconds for facts in log),
            cuts=self.question.cuts,
            **rest,
        )
        trace = renamed(self.trace, self.module, self.question.module)
        return _in_time(response, self.question), trace, log


def _in_time(response: Response, question: Question) -> Response:
    """Judge by the seconds that the calls took when they were made: so results repeat."""
    late = question.deadline_seconds
    if late is None or response.seconds <= late or not response.has_answer:
        return response
    return replace(response, values={}, text="", failure=_late(late))


def abandoned(question: Question) -> Asked:
    late = question.deadline_seconds or 0.0
    response = Response(question.agent, question.sample, calls=1, seconds=late, failure=_late(late))
    return replace(response, cuts=question.cuts), [], ()


def _late(seconds: float) -> str:
    return f"Late: no answer within {seconds:g} s."

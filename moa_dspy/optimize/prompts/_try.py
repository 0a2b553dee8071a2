"""An optimizer for prompts that somebody has written already: each is tried, the best is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from moa_dspy.errors import StudyError
from moa_dspy.optimize.prompts._bank import in_threads
from moa_dspy.optimize.prompts._habits import refuse_options
from moa_dspy.optimize.prompts._metric import score_of
from moa_dspy.signatures import separated


class TryPrompts(Teleprompter):
    """Tries aggregation prompts on the train rows; asks no model to write one.

    Each stands above the caller's own instructions, as the paper's prompt does. The
    incumbent is tried too, and stays if none has a higher mean.

    Args:
        prompts: Texts, such as another Aggregate-and-Synthesize prompt.
        metric: As ``optimize_aggregator``, which gives its own.
        n_threads: Rows asked at the same time.

    Raises:
        StudyError: If there is no prompt, or an empty one.
    """

    def __init__(self, prompts: Sequence[str], metric: Any = None, *, n_threads: int = 8) -> None:
        super().__init__()
        if isinstance(prompts, str) or not prompts or not all(text.strip() for text in prompts):
            raise StudyError(f"`prompts` must be a list of texts, none empty, but got {prompts!r}.")
        self.prompts, self.metric, self.n_threads = tuple(prompts), metric, n_threads

    def compile(
        self,
        student: Any,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the student with the best prompt, and all of them as ``candidate_programs``.

        Raises:
            StudyError: If there are further options.
        """
        refuse_options(self, kwargs)
        rows = [*trainset, *(valset or ())]
        tried = [student, *(_with_prompt(student, text) for text in self.prompts)]
        found = [
            {"score": self._mean(one, rows), "program": one, "prompt": number}
            for number, one in enumerate(tried)
        ]
        # The sort is stable: of equals the first, so the incumbent, stays.
        ordered = sorted(found, key=lambda entry: -entry["score"])
        best = ordered[0]["program"].deepcopy()
        best.candidate_programs = ordered
        return best

    def _mean(self, program: Any, rows: Sequence[dspy.Example]) -> float:
        def score(row: dspy.Example) -> float:
            return float(score_of(self.metric(row, program(**row.inputs()))))

        scores: list[float] = in_threads(score, rows, self.n_threads)
        return sum(scores) / len(scores)


def _with_prompt(student: Any, text: str) -> Any:
    made = student.deepcopy()
    for predictor in made.predictors():
        own, _ = separated(predictor.signature)
        instructions = "\n\n".join(filter(None, [text.strip(), own]))
        predictor.signature = predictor.signature.with_instructions(instructions)
    return made

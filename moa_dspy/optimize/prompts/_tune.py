"""Runs an optimizer on the student: with our metric, on train rows only, and nothing of it kept."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import teleprompt as tp

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import MoaError, StudyError
from moa_dspy.optimize.prompts._feedback import ReferenceFeedback
from moa_dspy.optimize.prompts._habits import habits_of, name_of
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._student import AggregatorStudent, Reading, make_student
from moa_dspy.optimize.prompts._tally import count_prompting


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is given to an optimizer beside the student.

    Attributes:
        scoring: The user's metric.
        feedback: The same, with feedback.
        options: Further arguments of ``compile``.
        share: Part of the rows that an optimizer judges by, if it tells them apart.
        seed: Of their choice, and of an optimizer that has no seed of its own.
    """

    scoring: Scoring
    feedback: ReferenceFeedback
    options: Mapping[str, Any]
    share: float
    seed: int

    def compile(
        self, optimizer: Any, reading: Reading, examples: Sequence[dspy.Example]
    ) -> AggregatorStudent:
        """Return the compiled student.

        Raises:
            MoaError: The first error that no prompt can mend: a budget, a replay, the metric.
            StudyError: If the optimizer itself raises, or returns no such student.
        """
        mine = self._prepared(optimizer)
        student = make_student(reading, with_lm=isinstance(optimizer, tp.BetterTogether))
        given = self._arguments(mine, examples)
        try:
            with _surroundings(optimizer, student), count_prompting(reading.tally):
                made = mine.compile(student, **given)
        except MoaError:
            reading.stop.check()
            raise
        except Exception as error:
            reading.stop.check()
            kind = type(error).__name__
            raise StudyError(f"{name_of(optimizer)} raised {kind}: {error}") from error
        reading.stop.check()
        if not isinstance(made, AggregatorStudent):
            raise StudyError(
                f"{name_of(optimizer)} must return the program that it was given, with other "
                f"prompts, but returned a {name_of(made)}."
            )
        return made

    def _prepared(self, optimizer: Any) -> Any:
        """Return a copy that scores by our metric; the caller's optimizer stays as it is."""
        mine: Any = copy.copy(optimizer)
        habits = habits_of(optimizer)
        metric = self.feedback if habits.reads_feedback else self.scoring
        for name in ("metric", "metric_fn"):
            if hasattr(mine, name):
                setattr(mine, name, metric)
        if isinstance(optimizer, tp.GEPA):
            # Else it does not tell what it tried.
            mine.track_stats = True
        if isinstance(mine, tp.BetterTogether):
            mine.optimizers = {k: self._prepared(one) for k, one in mine.optimizers.items()}
        return mine

    def _arguments(self, optimizer: Any, examples: Sequence[dspy.Example]) -> dict[str, Any]:
        taken = inspect.signature(optimizer.compile).parameters
        rows, given = list(examples), dict(self.options)
        n_judging = round(self.share * len(rows))
        if "valset" in taken and 0 < n_judging < len(rows):
            random.Random(f"tuning-{self.seed}").shuffle(rows)
            given["valset"], rows = rows[:n_judging], rows[n_judging:]
        if "seed" in taken and not hasattr(optimizer, "seed"):
            given.setdefault("seed", self.seed)
        return {"trainset": rows, **given}


@contextmanager
def _surroundings(optimizer: Any, student: AggregatorStudent) -> Iterator[None]:
    settings: dict[str, Any] = {}
    if dspy.settings.lm is None and habits_of(optimizer).copies_lm:
        # It copies the global LM to ask the seat anew; the seat asks its own agent all the same.
        settings["lm"] = student.get_lm()
    if isinstance(dspy.settings.adapter, PlainChat):
        # For one text in, one text out; optimizers ask for several fields.
        settings["adapter"] = None
    with dspy.context(**settings):
        yield

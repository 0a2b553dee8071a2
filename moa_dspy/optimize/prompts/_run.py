"""The stages of tuning one prompt, over references that were computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from moa_dspy.errors import LayerFailedError
from moa_dspy.optimize.prompts._bank import Bank, read_references
from moa_dspy.optimize.prompts._feedback import ReferenceFeedback
from moa_dspy.optimize.prompts._guard import Comparison, compare, score_program
from moa_dspy.optimize.prompts._labels import labelled
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._prompt import Prompt
from moa_dspy.optimize.prompts._result import PromptResult
from moa_dspy.optimize.prompts._rows import PromptRows
from moa_dspy.optimize.prompts._student import AggregatorStudent, Reading
from moa_dspy.optimize.prompts._tally import Tally
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.optimize.prompts._tune import Tuning


@dataclass(frozen=True, slots=True)
class PromptRun:
    """References, tuning, comparison: each is counted as a stage of its own.

    Attributes:
        target: Whose prompt it is.
        scoring: The user's metric.
        tally: Counts the calls.
        n_threads: Rows measured at the same time, outside of the optimizer.
        alpha: Level of the guard's test.
        gain: Smallest gain worth having.
    """

    target: Target
    scoring: Scoring
    tally: Tally
    n_threads: int
    alpha: float = 0.05
    gain: float = 0.03

    def read(self, rows: Sequence[dspy.Example]) -> Bank:
        """Compute the references of the rows, or read stored ones."""
        self.tally.stage = "references"
        return read_references(self.target, rows, self.tally, n_threads=self.n_threads)

    def tuned(
        self, optimizer: Any, bank: Bank, options: Mapping[str, Any], *, share: float, seed: int
    ) -> AggregatorStudent:
        """Let the optimizer have the train rows; feedback is made of these and no others."""
        program, stop = self.target.program, self.scoring.stop
        outputs = tuple(program.signature.output_fields)
        feedback = ReferenceFeedback(self.scoring, bank, outputs, program.normalise)
        self.tally.stage = "tuning"
        tuning = Tuning(self.scoring, feedback, options, share, seed)
        reading = Reading(self.target, bank, self.tally, stop)
        return tuning.compile(optimizer, reading, _examples(bank, feedback, self.target))

    def compared(self, after: Prompt, rows: Sequence[dspy.Example], stage: str) -> Comparison:
        """Measure the incumbent and the new prompt on rows whose references are read first."""
        bank = self.read(rows)
        self.tally.stage = stage
        before, then = (
            score_program(
                self.target.with_prompt(prompt),
                bank,
                self.scoring,
                self.tally,
                n_threads=self.n_threads,
            )
            for prompt in (self.target.prompt, after)
        )
        found = compare(before, then, alpha=self.alpha, gain=self.gain)
        is_same = after.key == self.target.prompt.key
        # No number of rows would tell a prompt from itself.
        return replace(found, n_more=0) if is_same else found

    def decided(self, after: Prompt, rows: PromptRows, **about: Any) -> PromptResult:
        """Accept the new prompt or not; ``about`` is what else the result says."""
        # What is accepted depends on val alone, and is decided before a test row is read.
        val = self.compared(after, rows.val, "validation")
        return PromptResult(
            program=self.target.with_prompt(after if val.is_proven else self.target.prompt),
            accepted=val.is_proven,
            before=self.target.prompt,
            after=after,
            val=val,
            test=self.compared(after, rows.test, "test") if rows.test else None,
            calls=self.tally.by_stage(),
            **about,
        )


def _examples(bank: Bank, feedback: ReferenceFeedback, target: Target) -> list[dspy.Example]:
    signature = target.modules[0].predictors()[0].signature
    readable = [found for found in bank.rows.values() if found.failure is None]
    if not readable:
        first = next(iter(bank.rows.values()))
        raise LayerFailedError(f"No train row has references to read. {first.failure}")
    return [labelled(found, feedback, signature) for found in readable]


def notes_of(bank: Bank, made: Any) -> tuple[str, ...]:
    """Return what a reader must know of the rows and the optimizer."""
    lost = [found.row.id for found in bank.rows.values() if found.failure is not None]
    notes = [f"{len(lost)} train rows have no references: {', '.join(lost[:5])}"] if lost else []
    if getattr(made, "flag_compilation_error_occurred", False):
        notes.append("A step of BetterTogether failed; its best program up to then was taken.")
    return tuple(notes)

"""``optimize_aggregator``: any DSPy optimizer on the aggregator alone, and a guard behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from moa_dspy.errors import LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._bank import Bank, read_references
from moa_dspy.optimize.prompts._candidates import candidates_of
from moa_dspy.optimize.prompts._feedback import ReferenceFeedback
from moa_dspy.optimize.prompts._guard import Comparison, compare, score_program
from moa_dspy.optimize.prompts._habits import check_optimizer, name_of
from moa_dspy.optimize.prompts._labels import labelled
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._prompt import Prompt
from moa_dspy.optimize.prompts._result import Origin, PromptResult
from moa_dspy.optimize.prompts._rows import PromptRows
from moa_dspy.optimize.prompts._student import AggregatorStudent, Reading, Stop
from moa_dspy.optimize.prompts._tally import Tally
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.optimize.prompts._tune import Tuning


def optimize_aggregator(
    program: MixtureOfAgents,
    optimizer: Any,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example],
    *,
    metric: Callable[..., Any] | None = None,
    layer: int | None = None,
    testset: Sequence[dspy.Example] | None = None,
    compile_options: Mapping[str, Any] | None = None,
    tuning_share: float = 0.5,
    alpha: float = 0.05,
    gain: float = 0.03,
    n_threads: int = 8,
    seed: int = 0,
) -> PromptResult:
    """Return the program with a better prompt for who reads the references, if one was found.

    The references of every row are computed once, or come from the store; from then on
    only the reader is asked, and the optimizer's own model. The new prompt replaces the
    incumbent only if it is better on ``valset``, by a one-sided paired test.

    Args:
        program: A mixture whose last step asks a model; it is not changed.
        optimizer: An instance of GEPA, MIPROv2, COPRO, SIMBA, ...; it is not changed. One
            that reflects is given feedback made of the references.
        trainset: All that the optimizer sees.
        valset: Rows for the decision alone.
        metric: Any DSPy metric with values in [0, 1]; default: the optimizer's own.
        layer: Instead of the last step, the readers of this layer, who share one prompt;
            layers count from 1, and the first one reads nothing.
        testset: Rows on which both prompts are measured after the decision.
        compile_options: Further arguments of the optimizer's ``compile``.
        tuning_share: Part of the train rows that an optimizer judges by, where its
            ``compile`` takes a ``valset``; 0 leaves the choice to the optimizer.
        alpha: Level of the test.
        gain: Smallest gain worth having, for the number of rows that are missing.
        n_threads: Rows measured at the same time, outside of the optimizer.
        seed: Of the split of train rows, and of an optimizer without a seed.

    Raises:
        StudyError: Before any call, if an option, the metric or the optimizer does not fit,
            or the optimizer needs an LM and has none; later, if the optimizer itself fails.
        ArchitectureError: If nobody in the program reads references, or not in ``layer``.
        DataError: If rows are missing, or two of the sets overlap.
        MetricError: If the metric raises or returns no number in [0, 1].
        LayerFailedError: If no train row has references.
    """
    _check_numbers(tuning_share, alpha, gain, n_threads)
    target, options = Target.of(program, layer), dict(compile_options or {})
    scoring = Scoring.of(_metric(metric, optimizer), Stop())
    rows = PromptRows.of(trainset, valset, testset)
    check_optimizer(optimizer, options, n_rows=len(rows.train))
    run = _Run(target, scoring, Tally(), alpha, gain, n_threads)
    bank = run.read(rows.train)
    made = run.tuned(optimizer, bank, options, share=tuning_share, seed=seed)
    origin = Origin(name_of(optimizer), _settings(optimizer, options))
    told = {"candidates": candidates_of(optimizer, made), "notes": _notes(bank, made)}
    return run.decided(Prompt.of(made.aggregator), rows, layer=layer, origin=origin, **told)


@dataclass(frozen=True, slots=True)
class _Run:
    """What every stage needs."""

    target: Target
    scoring: Scoring
    tally: Tally
    alpha: float
    gain: float
    n_threads: int

    def read(self, rows: Sequence[dspy.Example]) -> Bank:
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


def _metric(metric: Any, optimizer: Any) -> Any:
    found = metric
    for name in ("metric", "metric_fn"):
        found = getattr(optimizer, name, None) if found is None else found
    if found is None:
        raise StudyError("`metric` must be given, as the optimizer has none.")
    return found


def _check_numbers(tuning_share: float, alpha: float, gain: float, n_threads: int) -> None:
    if not 0 <= tuning_share < 1 or not 0 < alpha < 0.5 or not 0 < gain < 1 or n_threads < 1:
        raise StudyError(
            "`tuning_share` must be in [0, 1), `alpha` in (0, 0.5), `gain` in (0, 1) and "
            f"`n_threads` at least 1, but got {tuning_share}, {alpha}, {gain} and {n_threads}."
        )


def _settings(optimizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is plain; an LM, a key or a folder is nobody else's business."""
    named = {**vars(optimizer), **options}
    private = ("key", "secret", "dir")
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, bool | int | float | str)
        and not name.startswith("_")
        and not name.endswith(private)
    }


def _notes(bank: Bank, made: Any) -> tuple[str, ...]:
    lost = [found.row.id for found in bank.rows.values() if found.failure is not None]
    notes = [f"{len(lost)} train rows have no references: {', '.join(lost[:5])}"] if lost else []
    if getattr(made, "flag_compilation_error_occurred", False):
        notes.append("A step of BetterTogether failed; its best program up to then was taken.")
    return tuple(notes)

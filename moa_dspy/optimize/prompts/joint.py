"""Search for layers and prompts together: rounds that tune prompts, and the test of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.data.splits import with_ids
from moa_dspy.errors import BudgetReachedError, LayerFailedError, StudyError
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.metric import CheckedMetric, scores
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.builtin import OptimizerParts, check_tuning
from moa_dspy.optimize.prompts.options import PromptOptions, name_of
from moa_dspy.optimize.prompts.prompt import Candidate, PromptRegistry
from moa_dspy.optimize.prompts.student import Target
from moa_dspy.optimize.prompts.tuning import (
    ROLES,
    CallCounter,
    PromptComparison,
    PromptTuning,
    calls_of_role,
)
from moa_dspy.optimize.result import TrialRecord

_LEVEL: Final = 0.05
"""Level of the one-sided test of a prompt, shared by all mixtures that were tried with one."""


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """The decision whether a picked mixture keeps its prompt.

    Attributes:
        picked: With the prompt.
        comparison: Its prompt against the seat's own, on val; None if that was not measured.
        reason: Why it was not; "" if it was.
    """

    picked: Architecture
    comparison: PromptComparison | None
    reason: str = ""

    @property
    def is_proven(self) -> bool:
        """True if the prompt is used."""
        return self.comparison is not None and self.comparison.is_proven

    @property
    def note(self) -> str:
        """One sentence for the report."""
        if self.comparison is None:
            return f"Prompt {self.picked.prompt} is not used: {self.reason}"
        found = self.comparison
        gap = f"{100 * found.difference.estimate + 0.0:+.1f} points on {found.n} val rows"
        numbers = f"{gap}, p = {found.p_value:.3f}"
        if found.is_proven:
            return f"Prompt {self.picked.prompt} beats the aggregator's own: {numbers}."
        return (
            f"Prompt {self.picked.prompt} is not proven better than the aggregator's own, so that "
            f"stays: {numbers}."
        )


def with_prompts(
    options: SearchOptions, program: Any, rows: Sequence[dspy.Example]
) -> tuple[SearchOptions, PromptRegistry | None]:
    """Return the options with the prompts as a choice of their space, and the prompts.

    Args:
        options: Of the search.
        program: To be searched.
        rows: Train rows.

    Raises:
        StudyError: If anything does not fit, before any call; see ``check_tuning``.
    """
    if options.prompts is None:
        if options.space.prompts:
            raise StudyError(
                "`space.prompts` names prompts, but their texts are in `prompts`: give the search "
                "a `PromptOptions`."
            )
        return options, None
    check_tuning(options.prompts, program, options.metric, options.pool, rows)
    registry = options.prompts.make_registry(Student.of(program).mixture)
    return replace(options, space=options.prompts.space(options.space, registry)), registry


@dataclass(slots=True)
class JointSearch:
    """The prompts of a search: tuned between its trials, and tested once one is picked.

    The references of the train rows are nodes of one cache: each is asked for once, for all
    mixtures and rounds. While it tunes, only the aggregator and the writer are asked.

    Args:
        evaluator: Of the search: gives student, metric and threads.
        options: None searches no prompts.
        registry: Takes new prompts as long as it has room.
        rows: Train rows.
        seed: Of everything random.
        n_tuned: Rounds in which prompts were tuned.
        n_tried: Mixtures with a prompt other than the aggregator's own that were measured.
        verdict: On the prompt of the pick; None before, or where it has none.
        counter: Counts the calls of tuning.
        tuning_notes: Sentences for the report, such as why a prompt was not tuned.
    """

    evaluator: Evaluator
    options: PromptOptions | None = None
    registry: PromptRegistry | None = None
    rows: Sequence[dspy.Example] = ()
    seed: int = 0
    n_tuned: int = 0
    n_tried: int = 0
    verdict: PromptVerdict | None = None
    counter: CallCounter = field(default_factory=CallCounter)
    tuning_notes: list[str] = field(default_factory=list)

    @property
    def n_rounds(self) -> int:
        """Number of times that prompts are tuned."""
        return 0 if self.options is None or self.options.optimizer is None else self.options.rounds

    @property
    def part(self) -> float:
        """Part of trials and budget that may be used for composing now, in (0, 1]."""
        return 1.0 if self.options is None else self.options.part(self.n_tuned)

    def tuning_part(self, number: int) -> float:
        """Return the part of the budget that may be used until round ``number`` ends its tuning."""
        return 1.0 if self.options is None else self.options.part(number - 0.5)

    def tune(self, records: Mapping[Architecture, TrialRecord], number: int) -> list[Architecture]:
        """Tune prompts for the ``number``-th time; return the mixtures to measure with them.

        The best mixtures are tuned; the round ends early only if a budget is reached. From then
        on ``part`` is that of the next composing.

        Args:
            records: Of the search; those stopped early do not count.
            number: From 1 on.

        Raises:
            MoaError: If a call cannot be made for a reason other than a budget, or the metric
                fails.
        """
        found: list[Architecture] = []
        options, registry, notes = self.options, self.registry, self.tuning_notes
        if options is None or registry is None:
            return found
        self.n_tuned = number
        for architecture in self._best(options, records):
            if not registry.has_room:
                break
            try:
                entry = self._tuned(options, registry, architecture)
            except BudgetReachedError as error:
                notes.append(f"Tuning of prompts ended: {error}")
                break
            except (LayerFailedError, StudyError) as error:
                notes.append(f"The prompt of {architecture} was not tuned: {error}")
                continue
            made = registry.canonical(replace(architecture, prompt=registry.add(entry)))
            if made in records or made in found:
                notes.append(f"{entry.origin} found no new prompt for {architecture}.")
            else:
                found.append(made)
        return found

    def _best(
        self, options: PromptOptions, records: Mapping[Architecture, TrialRecord]
    ) -> list[Architecture]:
        """Return the best compositions, each with the best of its prompts so far."""
        whole = [
            (one, record)
            for one, record in records.items()
            if one.layers and one.combine == "synthesize" and not record.is_stopped_early
        ]
        # The sort is stable: of equals the one that was measured first.
        ordered = sorted(whole, key=lambda pair: -pair[1].score)
        compositions: dict[Architecture, Architecture] = {}
        for one, _ in ordered:
            compositions.setdefault(replace(one, prompt=None), one)
        return list(compositions.values())[: options.top]

    def _tuned(
        self, options: PromptOptions, registry: PromptRegistry, architecture: Architecture
    ) -> Candidate:
        evaluator, seed = self.evaluator, self.seed
        student = Student.of(evaluator.student, registry)
        rows, num_threads = with_ids(self.rows, "train"), evaluator.num_threads
        pool = student.mixture.pool
        parts = OptimizerParts(options, evaluator.metric, pool, len(rows), num_threads, seed)
        optimizer, compile_options = parts.make()
        target = Target.of(student.with_architecture(architecture), None)
        metric = CheckedMetric.of(evaluator.metric)
        tuning = PromptTuning(target, metric, self.counter, num_threads, options.tuning_share, seed)
        found = tuning.run(optimizer, rows, compile_options)
        self.tuning_notes += found.notes
        return Candidate(found.prompt, name_of(optimizer), found.train_score, str(architecture))

    def refused(
        self, picked: Architecture, rows: Sequence[dspy.Example], *, min_gain: float
    ) -> Architecture | None:
        """Return ``picked`` with the aggregator's own prompt if its other one is not proven better.

        None if it may stay as it is. The rows of val tuned no prompt, but one mixture of
        ``n_tried`` was picked on them: the level is divided by that number (Bonferroni). The
        number of prompts would not do, as the same prompt has another chance to look good in
        every mixture.

        Args:
            picked: The search's choice.
            rows: Of val.
            min_gain: Smallest gain worth having, for the number of rows that are missing.
        """
        if picked.prompt is None:
            self.verdict = None
            return None
        own = replace(picked, prompt=None)
        try:
            before, after = (scores(self.evaluator.measure(one, rows)) for one in (own, picked))
        except BudgetReachedError as error:
            self.verdict = PromptVerdict(picked, None, str(error))
        else:
            level = _LEVEL / max(self.n_tried, 1)
            found = PromptComparison.of(before, after, alpha=level, min_gain=min_gain)
            self.verdict = PromptVerdict(picked, found)
        return None if self.verdict.is_proven else own

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the prompts for the report."""
        found = list(self.tuning_notes)
        if self.n_rounds:
            # What was stored counts like what was made: a second run must say the same.
            asked = [calls_of_role(self.counter.by_stage(), role) for role in ROLES]
            n = [one.made + one.reused for one in asked]
            found.append(
                f"Tuning of prompts took {n[0]} answers of proposers, all before it began, "
                f"{n[1]} of aggregators and {n[2]} of the model that writes prompts; stored ones "
                "included."
            )
        return tuple(found if self.verdict is None else [*found, self.verdict.note])

    def to_json(self, records: Mapping[Architecture, TrialRecord]) -> tuple[dict[str, Any], ...]:
        """Return every prompt as ``StudyResult.prompts`` holds it.

        ``accepted`` is None for a prompt that was not picked; ``val`` is the best score of a
        mixture with it, and of the same mixture with the aggregator's own.
        """
        found = []
        for entry in () if self.registry is None else self.registry.to_json():
            verdict = self.verdict
            if verdict is None or verdict.picked.prompt != entry["name"]:
                verdict = None
            tested = None if verdict is None else verdict.comparison
            found.append(
                {
                    **entry,
                    "val": _val(entry["name"], records),
                    "accepted": None if verdict is None else verdict.is_proven,
                    "test_on_val": None if tested is None else tested.to_json(),
                }
            )
        return tuple(found)


def _val(name: str, records: Mapping[Architecture, TrialRecord]) -> dict[str, Any] | None:
    scored = {one: record.score for one, record in records.items() if not record.is_stopped_early}
    mine = [one for one in scored if one.prompt == name]
    if not mine:
        return None
    best = max(mine, key=lambda one: scored[one])
    own = scored.get(replace(best, prompt=None))
    return {"architecture": str(best), "score": scored[best], "own": own}

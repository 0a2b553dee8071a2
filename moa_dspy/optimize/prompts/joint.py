"""Layers and prompt searched together: rounds that tune prompts, and the last word on a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError, LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import scores
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.builtin import check_tuning, make_optimizer
from moa_dspy.optimize.prompts.optimizers import name_of
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import PromptRegistry, RegisteredPrompt
from moa_dspy.optimize.prompts.result import ROLES, Counted, PromptComparison
from moa_dspy.optimize.prompts.student import Target
from moa_dspy.optimize.prompts.tuning import CallCounter, PromptTuning
from moa_dspy.optimize.selection import Evidence
from moa_dspy.optimize.splits import with_ids


class PromptTrial(Protocol):
    """A trial as a round of tuning needs it."""

    @property
    def score(self) -> float:
        """Mean metric on val."""
        ...

    @property
    def is_stopped_early(self) -> bool:
        """Whether some rows were left out."""
        ...


@dataclass(slots=True)
class PromptRounds:
    """Tunes the prompts of the best mixtures on train rows, and registers those that it finds.

    The references of the train rows are nodes of one cache: each is asked for once, for all
    mixtures and rounds. While it tunes, only the aggregator and the writer are asked.

    Args:
        options: Of the study.
        registry: Takes new prompts as long as it has room.
        evaluator: Of the search: gives student, metric and threads.
        rows: Train rows.
        seed: Of everything random.
        counter: Counts the calls.
        notes: What a reader must know, such as why a prompt was not tuned.
    """

    options: PromptOptions
    registry: PromptRegistry
    evaluator: Evaluator
    rows: Sequence[dspy.Example]
    seed: int = 0
    counter: CallCounter = field(default_factory=CallCounter)
    notes: list[str] = field(default_factory=list)

    def tune(self, records: Mapping[Architecture, PromptTrial]) -> list[Architecture]:
        """Return the mixtures to measure next: the best ones with the prompts found for them.

        The round ends early only if a budget is reached.

        Args:
            records: Of the search; those stopped early do not count.

        Raises:
            MoaError: If a call cannot be made for another reason, or the metric fails.
        """
        found: list[Architecture] = []
        for architecture in self._best(records):
            if not self.registry.has_room:
                break
            try:
                entry = self._tuned(architecture)
            except BudgetReachedError as error:
                self.notes.append(f"Tuning of prompts ended: {error}")
                break
            except (LayerFailedError, StudyError) as error:
                self.notes.append(f"The prompt of {architecture} was not tuned: {error}")
                continue
            name = self.registry.add(entry)
            made = self.registry.canonical(replace(architecture, prompt=name))
            if made in records or made in found:
                self.notes.append(f"{entry.origin} found no new prompt for {architecture}.")
            else:
                found.append(made)
        return found

    def calls_of(self, role: str, *stages: str) -> Counted:
        """Return the requests to ``proposers``, ``aggregator`` or ``prompt_model``.

        Args:
            role: One of the three.
            stages: ``references`` or ``tuning``; without any, all.
        """
        counts = self.counter.by_stage()
        return sum((counts[stage][role] for stage in stages or counts), Counted())

    def _best(self, records: Mapping[Architecture, PromptTrial]) -> list[Architecture]:
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
        return list(compositions.values())[: self.options.top]

    def _tuned(self, architecture: Architecture) -> RegisteredPrompt:
        evaluator = self.evaluator
        student = Student.of(evaluator.student, self.registry)
        program: MixtureOfAgents = student.with_architecture(architecture)
        rows, num_threads = with_ids(self.rows, "train"), evaluator.num_threads
        optimizer, options = make_optimizer(
            self.options,
            evaluator.metric,
            program.pool,
            n_rows=len(rows),
            num_threads=num_threads,
            seed=self.seed,
        )
        tuning = PromptTuning(
            Target.of(program, None),
            CheckedMetric.of(evaluator.metric),
            self.counter,
            num_threads,
            self.options.tuning_share,
            self.seed,
        )
        found = tuning.run(optimizer, rows, options)
        self.notes += found.notes
        return RegisteredPrompt(
            found.prompt, name_of(optimizer), str(architecture), found.train_score
        )


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """Whether a picked mixture may keep its prompt.

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
        """Whether the prompt is used."""
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


def prompt_verdict_of(
    picked: Architecture,
    evaluator: Evaluator,
    rows: Sequence[dspy.Example],
    *,
    n_tried: int,
    alpha: float = 0.05,
    min_gain: float = 0.03,
) -> PromptVerdict | None:
    """Test the prompt of ``picked`` against the seat's own; None if it has no other.

    The rows tuned no prompt, but one mixture of ``n_tried`` was picked on them: the level is
    divided by that number (Bonferroni). The number of prompts would not do, as the same prompt
    has another chance to look good in every mixture.

    Args:
        picked: The search's choice.
        evaluator: Of the search.
        rows: Of val.
        n_tried: How many mixtures with a prompt other than the seat's own were measured.
        alpha: Level of the one-sided paired test, before it is divided.
        min_gain: Smallest gain worth having, for the number of rows that are missing.
    """
    if picked.prompt is None:
        return None
    try:
        before = scores(evaluator.measure(replace(picked, prompt=None), rows))
        after = scores(evaluator.measure(picked, rows))
    except BudgetReachedError as error:
        return PromptVerdict(picked, None, str(error))
    level = alpha / max(n_tried, 1)
    return PromptVerdict(picked, PromptComparison.of(before, after, alpha=level, min_gain=min_gain))


def without_prompts(evidence: Evidence) -> Evidence:
    """Return the evidence in which nothing with a prompt of the search may be picked."""
    measured = tuple(
        replace(one, is_admitted=one.is_admitted and one.architecture.prompt is None)
        for one in evidence.measured
    )
    return replace(evidence, measured=measured)


def prompts_to_json(
    registry: PromptRegistry,
    records: Mapping[Architecture, PromptTrial],
    verdict: PromptVerdict | None,
) -> tuple[dict[str, Any], ...]:
    """Return every prompt as ``StudyResult.prompts`` holds it.

    ``accepted`` is None for a prompt that was not picked; ``val`` is the best score of a
    mixture with it, and of the same mixture with the seat's own.
    """
    return tuple(
        {**entry, "val": _val(entry["name"], records), **_fate(entry["name"], verdict)}
        for entry in registry.to_json()
    )


def _val(name: str, records: Mapping[Architecture, PromptTrial]) -> dict[str, Any] | None:
    scored = {one: record.score for one, record in records.items() if not record.is_stopped_early}
    mine = [one for one in scored if one.prompt == name]
    if not mine:
        return None
    best = max(mine, key=lambda one: scored[one])
    own = scored.get(replace(best, prompt=None))
    return {"architecture": str(best), "score": scored[best], "own": own}


def _fate(name: str, verdict: PromptVerdict | None) -> dict[str, Any]:
    if verdict is None or verdict.picked.prompt != name:
        return {"accepted": None, "test_on_val": None}
    found = verdict.comparison
    return {
        "accepted": verdict.is_proven,
        "test_on_val": None if found is None else found.to_json(),
    }


def with_prompts(
    context: SearchOptions, program: Any, metric: Any, rows: Sequence[dspy.Example]
) -> tuple[SearchOptions, PromptRegistry | None]:
    """Return the context with the prompts as a choice of its space, and the prompts.

    Args:
        context: Of the search.
        program: To be searched.
        metric: Of the search.
        rows: Train rows.

    Raises:
        StudyError: If anything does not fit, before any call; see ``check_tuning``.
    """
    options = context.prompts
    if options is None:
        if context.space.prompts:
            raise StudyError(
                "`space.prompts` names prompts, but their texts are in `prompts`: give the search "
                "a `PromptOptions`."
            )
        return context, None
    check_tuning(options, program, metric, context.pool, rows)
    registry = options.make_registry(program)
    return replace(context, space=options.space(context.space, registry)), registry


@dataclass(slots=True)
class JointSearch:
    """The prompts of a search between its trials; without options there are none.

    Args:
        evaluator: Of the search; knows the registered prompts.
        options: None searches no prompts.
        rounds: None tunes none.
        part: Part of trials and budget that may be used for composing now, in (0, 1].
        n_tried: Mixtures with a prompt other than the aggregator's own that were measured.
        verdict: On the prompt of the pick; None before, or where it has none.
    """

    evaluator: Evaluator
    options: PromptOptions | None = None
    rounds: PromptRounds | None = None
    part: float = 1.0
    n_tried: int = 0
    verdict: PromptVerdict | None = None

    @classmethod
    def of(
        cls, context: SearchOptions, evaluator: Evaluator, rows: Sequence[dspy.Example]
    ) -> JointSearch:
        """Return the search of the context's prompts; ``rows`` are train rows."""
        options, registry = context.prompts, evaluator.registry
        if options is None or registry is None or options.optimizer is None:
            return cls(evaluator, options)
        rounds = PromptRounds(options, registry, evaluator, rows, context.seed)
        return cls(evaluator, options, rounds, options.part(0))

    @property
    def n_rounds(self) -> int:
        """How many times prompts are tuned."""
        return 0 if self.rounds is None else self.rounds.options.rounds

    def tuning_part(self, number: int) -> float:
        """Return the part of the budget that may be used when round ``number`` ends its tuning."""
        return 1.0 if self.options is None else self.options.part(number - 0.5)

    def tune(self, records: Mapping[Architecture, PromptTrial], number: int) -> list[Architecture]:
        """Tune prompts for the ``number``-th time; return the mixtures to measure with them.

        From then on ``part`` is that of the next composing.
        """
        if self.rounds is None:
            return []
        found = self.rounds.tune(records)
        self.part = self.rounds.options.part(number)
        return found

    def refused(
        self, picked: Architecture, rows: Sequence[dspy.Example], *, min_gain: float
    ) -> Architecture | None:
        """Return ``picked`` with the aggregator's own prompt if its other one is not proven better.

        None if it may stay as it is. Tested on ``rows`` of val, once.
        """
        self.verdict = prompt_verdict_of(
            picked, self.evaluator, rows, n_tried=self.n_tried, min_gain=min_gain
        )
        is_refused = self.verdict is not None and not self.verdict.is_proven
        return replace(picked, prompt=None) if is_refused else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the prompts."""
        found: list[str] = []
        if self.rounds is not None:
            # What was stored counts like what was made: a second run must say the same.
            asked = [self.rounds.calls_of(role, "references", "tuning") for role in ROLES]
            n = [one.made + one.reused for one in asked]
            found = [
                *self.rounds.notes,
                f"Tuning of prompts took {n[0]} answers of proposers, all before it began, "
                f"{n[1]} of aggregators and {n[2]} of the model that writes prompts; stored ones "
                "included.",
            ]
        return tuple(found if self.verdict is None else [*found, self.verdict.note])

    def to_json(self, records: Mapping[Architecture, PromptTrial]) -> tuple[dict[str, Any], ...]:
        """Return every prompt as ``StudyResult.prompts`` holds it."""
        registry = self.evaluator.registry
        return () if registry is None else prompts_to_json(registry, records, self.verdict)

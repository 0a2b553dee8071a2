"""Rounds of a search in which the prompts of its best mixtures are tuned."""

# DOCS: optimize/prompts/_guarded: The last word on a prompt that a search picked: better than the seat's own, or not used. | optimize/prompts/_joint: Composition and prompt searched together: compose, tune prompts, compose again.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError, LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.nodes import scores
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.optimizers import candidates_of, name_of
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import Prompt, PromptRegistry, RegisteredPrompt
from moa_dspy.optimize.prompts.references import ROLES, CallCounter, Counted, Target
from moa_dspy.optimize.prompts.student import Scoring, Stop
from moa_dspy.optimize.prompts.tuning import PromptComparison, PromptRun, compare, notes_of
from moa_dspy.optimize.selection import Evidence
from moa_dspy.optimize.splits import with_ids


class PromptTrial(Protocol):
    """What a round needs to know of a trial."""

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
    """Tunes the prompt of the best mixtures on train rows, and puts what it finds into the book.

    The references of the train rows are computed once per mixture, or come from the store;
    while it tunes, only the aggregator and the writer are asked.

    Args:
        options: Of the study.
        book: Takes new prompts as long as it has room.
        student: Holds the mixture.
        rows: Train rows.
        metric: Of the search.
        num_threads: Rows asked at the same time.
        seed: Of everything random.
        tally: Counts the calls.
        notes: What a reader must know, such as why a prompt was not tuned.
    """

    options: PromptOptions
    book: PromptRegistry
    student: Student
    rows: Sequence[dspy.Example]
    metric: Any
    num_threads: int = 8
    seed: int = 0
    tally: CallCounter = field(default_factory=CallCounter)
    notes: list[str] = field(default_factory=list)

    def tune(self, records: Mapping[Architecture, PromptTrial]) -> list[Architecture]:
        """Return the mixtures to measure next: the best ones with the prompts found for them.

        A budget that is reached ends the round; so does nothing else that a model does.

        Args:
            records: Of the search; those stopped early do not count.

        Raises:
            MoaError: If a call cannot be made for another reason, or the metric fails.
        """
        found: list[Architecture] = []
        for architecture in self._best(records):
            if not self.book.has_room:
                break
            try:
                entry = self._tuned(architecture)
            except BudgetReachedError as error:
                self.notes.append(f"Tuning of prompts ended: {error}")
                break
            except (LayerFailedError, StudyError) as error:
                self.notes.append(f"The prompt of {architecture} was not tuned: {error}")
                continue
            name = self.book.add(entry)
            made = self.book.canonical(replace(architecture, prompt=name))
            if made in records or made in found:
                self.notes.append(f"{entry.origin} found no new prompt for {architecture}.")
            else:
                found.append(made)
        return found

    def calls_of(self, role: str, *stages: str) -> Counted:
        """Return what was asked of ``proposers``, ``aggregator`` or ``prompt_model``.

        Args:
            role: Who was asked.
            stages: ``references`` or ``tuning``; without any, all.
        """
        counts = self.tally.by_stage()
        found = [counts[stage][role] for stage in stages or counts]
        return Counted(sum(one.made for one in found), sum(one.reused for one in found))

    def _best(self, records: Mapping[Architecture, PromptTrial]) -> list[Architecture]:
        """Return the best compositions, each with the best of its prompts up to now."""
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
        program: MixtureOfAgents = self.student.with_registry(self.book).with_architecture(
            architecture
        )
        scoring = Scoring.of(self.metric, Stop())
        run = PromptRun(Target.of(program, None), scoring, self.tally, self.num_threads)
        rows = with_ids(self.rows, "train")
        bank = run.read(rows)
        optimizer, options = self.options.make_optimizer(
            self.metric,
            program.pool,
            n_rows=len(rows),
            num_threads=self.num_threads,
            seed=self.seed,
        )
        share = self.options.tuning_share
        made = run.tuned(optimizer, bank, options, share=share, seed=self.seed)
        self.notes += notes_of(bank, made)
        prompt = Prompt.of(made.aggregator)
        scores = {one.prompt.key: one.score for one in candidates_of(optimizer, made)}
        return RegisteredPrompt(
            prompt, name_of(optimizer), str(architecture), scores.get(prompt.key)
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
    gain: float = 0.03,
) -> PromptVerdict | None:
    """Test the prompt of ``picked`` against the seat's own; None if it has no other.

    The rows tuned no prompt, but one mixture of ``n_tried`` was picked on them: the level is
    divided by that number (Bonferroni). The number of prompts would not do, as the same prompt
    has another chance to look good in every mixture.

    Args:
        picked: The search's choice.
        evaluator: Knows its scores.
        rows: Of val.
        n_tried: How many mixtures with a prompt other than the seat's own were measured.
        alpha: Level of the one-sided paired test, before it is divided.
        gain: Smallest gain worth having, for the number of rows that are missing.
    """
    if picked.prompt is None:
        return None
    try:
        before = scores(evaluator.measure(replace(picked, prompt=None), rows))
        after = scores(evaluator.measure(picked, rows))
    except BudgetReachedError as error:
        return PromptVerdict(picked, None, str(error))
    return PromptVerdict(picked, compare(before, after, alpha=alpha / max(n_tried, 1), gain=gain))


def without_prompts(evidence: Evidence) -> Evidence:
    """Return the evidence in which nothing with a prompt of the search may be picked."""
    measured = tuple(
        replace(one, is_admitted=one.is_admitted and one.architecture.prompt is None)
        for one in evidence.measured
    )
    return replace(evidence, measured=measured)


def prompts_to_json(
    book: PromptRegistry,
    records: Mapping[Architecture, PromptTrial],
    verdict: PromptVerdict | None,
) -> tuple[dict[str, Any], ...]:
    """Return every prompt as ``StudyResult.prompts`` holds it.

    ``accepted`` is None for a prompt that was not picked; ``val`` is the best score of a
    mixture with it, and of the same mixture with the seat's own.
    """
    return tuple(
        {**entry, "val": _val(entry["name"], records), **_fate(entry["name"], verdict)}
        for entry in book.to_json()
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
        StudyError: If anything does not fit, before any call; see ``PromptOptions.check``.
    """
    options = context.prompts
    if options is None:
        if context.space.prompts:
            raise StudyError(
                "`space.prompts` names prompts, but what they say is in `prompts`: give the search "
                "a `PromptOptions`."
            )
        return context, None
    options.check(program, metric, context.pool, rows)
    book = options.make_book(program)
    return replace(context, space=options.space(context.space, book)), book


@dataclass(slots=True)
class JointSearch:
    """Runs the trials of a search, with rounds of tuning between; without options, the trials only.

    Args:
        context: Gives options, seed and progress.
        evaluator: Has the book of prompts.
        options: None searches no prompts.
        rounds: None tunes none.
        part: Part of the budget that may be used now, in (0, 1].
        n_tried: Mixtures with a prompt other than the aggregator's own that were measured.
        verdict: On the prompt of the pick; None before, or where it has none.
    """

    context: SearchOptions
    evaluator: Evaluator
    options: PromptOptions | None
    rounds: PromptRounds | None
    part: float = 1.0
    n_tried: int = 0
    verdict: PromptVerdict | None = None

    @classmethod
    def of(
        cls, context: SearchOptions, evaluator: Evaluator, rows: Sequence[dspy.Example]
    ) -> JointSearch:
        """Return the search of the context's prompts; ``rows`` are train rows."""
        options, book = context.prompts, evaluator.registry
        if options is None or book is None or options.optimizer is None:
            return cls(context, evaluator, options, None)
        rounds = PromptRounds(
            options,
            book,
            Student.of(evaluator.student),
            rows,
            evaluator.metric,
            num_threads=evaluator.num_threads,
            seed=context.seed,
        )
        return cls(context, evaluator, options, rounds, options.part(0))

    @property
    def n_rounds(self) -> int:
        """How many times prompts are tuned."""
        return 0 if self.rounds is None or self.options is None else self.options.rounds

    def tuning_part(self, number: int) -> float:
        """Return the part of the budget that may be used when round ``number`` ends its tuning."""
        return 1.0 if self.options is None else self.options.part(number - 0.5)

    def tune(self, records: Mapping[Architecture, PromptTrial], number: int) -> list[Architecture]:
        """Tune prompts for the ``number``-th time; return the mixtures to measure with them.

        From then on ``part`` is that of the next round.
        """
        if self.rounds is None or self.options is None:
            return []
        found = self.rounds.tune(records)
        self.part = self.options.part(number)
        return found

    def refused(
        self, picked: Architecture, rows: Sequence[dspy.Example], *, min_gain: float
    ) -> Architecture | None:
        """Return ``picked`` with the aggregator's own prompt if its other one is not proven better.

        None if it may stay as it is. Tested on ``rows`` of val, once.
        """
        self.verdict = prompt_verdict_of(
            picked, self.evaluator, rows, n_tried=self.n_tried, gain=min_gain
        )
        is_refused = self.verdict is not None and not self.verdict.is_proven
        return replace(picked, prompt=None) if is_refused else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the prompts."""
        found = [] if self.rounds is None else list(self.rounds.notes)
        if self.rounds is not None:
            # What was stored counts like what was made: a second run must say the same.
            asked = [self.rounds.calls_of(role, "references", "tuning") for role in ROLES]
            n = [one.made + one.reused for one in asked]
            found.append(
                f"Tuning of prompts took {n[0]} answers of proposers, all before it began, "
                f"{n[1]} of aggregators and {n[2]} of who writes prompts; stored ones included."
            )
        if self.verdict is not None:
            found.append(self.verdict.note)
        return tuple(found)

    def to_json(self, records: Mapping[Architecture, PromptTrial]) -> tuple[dict[str, Any], ...]:
        """Return every prompt as ``StudyResult.prompts`` holds it."""
        book = self.evaluator.registry
        return () if book is None else prompts_to_json(book, records, self.verdict)

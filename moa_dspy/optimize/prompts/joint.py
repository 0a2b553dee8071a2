"""Search for layers and prompts together: rounds that tune prompts, and the test of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import call_scope
from moa_dspy.data.splits import with_ids
from moa_dspy.errors import BudgetReachedError, DataError, LayerFailedError, StudyError
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.metric import CheckedMetric, scores
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.builtin import OptimizerParts
from moa_dspy.optimize.prompts.options import PromptOptions, check_optimizer, name_of
from moa_dspy.optimize.prompts.prompt import Candidate, PromptRegistry
from moa_dspy.optimize.prompts.student import Target
from moa_dspy.optimize.prompts.tuning import WRITING, PromptComparison, PromptTuning
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.winrate.intervals import points

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
        name, found = self.picked.prompt, self.comparison
        if found is None:
            return f"Prompt {name} is not used: {self.reason}"
        gap = f"{points(found.difference.estimate, sign='+')} points on {found.n} val rows"
        gap = f"{gap}, p = {found.p_value:.3f}."
        if found.is_proven:
            return f"Prompt {name} beats the aggregator's own: {gap}"
        return f"Prompt {name} is not proven better than the aggregator's own, so that stays: {gap}"


def with_prompts(
    options: SearchOptions, program: Any, rows: Sequence[dspy.Example]
) -> tuple[SearchOptions, PromptRegistry | None]:
    """Return the options with the prompts as a choice of their space, and the prompts.

    Args:
        options: Options of the search.
        program: To be searched.
        rows: Train rows, which share nothing with val and test.

    Raises:
        StudyError: If anything does not fit, before any call.
        PoolError: If the pool lacks ``proposer_agent``.
        DataError: If prompts are to be tuned and there is no train row.
    """
    prompts, pool = options.prompts, options.pool
    if prompts is None:
        if options.space.prompts:
            raise StudyError(
                "`space.prompts` names prompts, but their texts are in `prompts`: give the search "
                "a `PromptOptions`."
            )
        return options, None
    student = Student.of(program)
    if prompts.proposer_agent is not None:
        pool[prompts.proposer_agent]
    if prompts.optimizer is not None:
        if not rows:
            raise DataError("`trainset` must have at least one row: prompts are tuned on it.")
        optimizer, compile_options = OptimizerParts(prompts, pool, len(rows)).make()
        is_alone = student.program is student.mixture
        check_optimizer(optimizer, compile_options, n_rows=len(rows), is_alone=is_alone)
    registry = prompts.make_registry(student.mixture)
    return replace(options, space=prompts.space(options.space, registry)), registry


@dataclass(slots=True)
class JointSearch:
    """The prompts of a search: tuned between its trials, and tested once one is picked.

    The references of the train rows are nodes of one cache: each is asked for once, for all
    mixtures and rounds. While it tunes, only the aggregator and the writer are asked.

    Args:
        evaluator: Evaluator of the search: gives student, metric and threads.
        options: None searches no prompts.
        registry: Takes new prompts as long as it has room.
        rows: Train rows.
        seed: Seed of everything random.
        n_tuned: Rounds in which prompts were tuned.
        n_tried: Mixtures with a prompt other than the aggregator's own that were measured.
        verdict: On the prompt of the pick; None before, or where it has none.
        cache: Answers to train rows; its table counts the calls of tuning.
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
    cache: NodeCache = field(default_factory=NodeCache)
    tuning_notes: list[str] = field(default_factory=list)

    @property
    def n_rounds(self) -> int:
        """Number of times that prompts are tuned."""
        return 0 if self.options is None or self.options.optimizer is None else self.options.rounds

    def part(self, ahead: float = 0.0) -> float:
        """Return the part of trials and budget that may be used for composing now, in (0, 1].

        ``ahead`` is in rounds: 0.5 gives the part that may be used until the next tuning ends.
        """
        return 1.0 if self.options is None else self.options.part(self.n_tuned + ahead)

    def tune(self, records: Mapping[Architecture, TrialRecord], number: int) -> list[Architecture]:
        """Tune prompts for the ``number``-th time; return the mixtures to measure with them.

        The best mixtures are tuned; the round ends early only if a budget is reached. From then
        on ``part`` is that of the next composing.

        Args:
            records: Records of the search; those stopped early do not count.
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
        for architecture in _best(records)[: options.top]:
            if not registry.has_room:
                break
            try:
                # The search's table counts these calls too, beside the cache's own.
                with call_scope(table=self.evaluator.node_cache.table):
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

    def _tuned(
        self, options: PromptOptions, registry: PromptRegistry, architecture: Architecture
    ) -> Candidate:
        evaluator, seed = self.evaluator, self.seed
        student = Student.of(evaluator.student, registry)
        rows, num_threads = with_ids(self.rows, "train"), evaluator.num_threads
        parts = OptimizerParts(options, student.mixture.pool, len(rows), num_threads, seed)
        optimizer, compile_options = parts.make()
        target = Target.of(student.with_architecture(architecture), None)
        metric = CheckedMetric.of(evaluator.metric)
        tuning = PromptTuning(target, metric, self.cache, num_threads, options.tuning_share, seed)
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
            rows: Rows of val.
            min_gain: Smallest gain worth having, for the number of rows that are missing.
        """
        if picked.prompt is None:
            self.verdict = None
            return None
        own = replace(picked, prompt=None)
        try:
            measured = (self.evaluator.measure(tried, rows) for tried in (own, picked))
            before, after = map(scores, measured)
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
            n_calls = self.cache.table.n_calls
            found.append(
                f"Tuning of prompts took {n_calls('references')} answers of proposers, all before "
                f"it began, {n_calls('tuning')} of aggregators and {n_calls(WRITING)} of the model "
                "that writes prompts; stored ones included."
            )
        return tuple(found if self.verdict is None else [*found, self.verdict.note])

    def to_json(self, records: Mapping[Architecture, TrialRecord]) -> tuple[dict[str, Any], ...]:
        """Return every prompt as ``StudyResult.prompts`` holds it.

        ``accepted`` is None for a prompt that was not picked; ``val`` is the best score of a
        mixture with it, and of the same mixture with the aggregator's own.
        """
        verdicts = {} if self.verdict is None else {self.verdict.picked.prompt: self.verdict}
        found = []
        for entry in () if self.registry is None else self.registry.to_json():
            verdict = verdicts.get(entry["name"])
            tested = None if verdict is None else verdict.comparison
            accepted = None if verdict is None else verdict.is_proven
            test = None if tested is None else tested.to_json()
            val = _val(entry["name"], records)
            found.append({**entry, "val": val, "accepted": accepted, "test_on_val": test})
        return tuple(found)


def _best(records: Mapping[Architecture, TrialRecord]) -> list[Architecture]:
    """Return the compositions, best first, each with the best of its prompts so far."""
    scored = {
        key: record.score
        for key, record in records.items()
        if key.layers and key.combine == "synthesize" and not record.is_stopped_early
    }
    best: dict[Architecture, Architecture] = {}
    # The sort is stable: of equals the one that was measured first.
    for architecture in sorted(scored, key=lambda key: -scored[key]):
        best.setdefault(replace(architecture, prompt=None), architecture)
    return list(best.values())


def _val(name: str, records: Mapping[Architecture, TrialRecord]) -> dict[str, Any] | None:
    whole = {key: record.score for key, record in records.items() if not record.is_stopped_early}
    best = max((key for key in whole if key.prompt == name), key=whole.__getitem__, default=None)
    if best is None:
        return None
    own = whole.get(replace(best, prompt=None))
    return {"architecture": str(best), "score": whole[best], "own": own}

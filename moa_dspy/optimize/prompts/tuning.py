"""The tuning of one prompt: references measured once, then an optimizer on train rows."""

from __future__ import annotations

import copy
import inspect
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import dspy
import numpy as np
from dspy import teleprompt as tp
from dspy.utils.callback import BaseCallback

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.scope import CallScope, call_scope, current_scope
from moa_dspy.errors import LayerFailedError, MoaError, StudyError
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback, StoredRows, labelled
from moa_dspy.optimize.prompts.options import name_of, traits_of
from moa_dspy.optimize.prompts.prompt import Candidate, Prompt
from moa_dspy.optimize.prompts.student import (
    AggregatorStudent,
    ReferenceReader,
    Target,
    make_student,
    measured_references,
)
from moa_dspy.winrate import Interval, mean_interval, verdict

ROLES: Final = ("proposers", "aggregator", "prompt_model")
STAGES: Final = ("references", "tuning", "validation", "test")


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests to models.

    Attributes:
        made: Were sent, failed ones included.
        reused: Came from a store or a recording.
    """

    made: int = 0
    reused: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.made + other.made, self.reused + other.reused)


@dataclass(frozen=True, slots=True)
class PromptComparison:
    """The new prompt against the incumbent, row by row.

    Attributes:
        n: Rows.
        before: Mean score of the incumbent with a 95 % interval.
        after: Of the new prompt.
        difference: Paired interval of mean(after - before).
        p_value: One-sided, for after > before.
        n_more: Rows that would be needed beside these to see the gain; 0 if all is known.
        is_proven: Whether the new prompt is better at the level that was asked for.
    """

    n: int
    before: Interval
    after: Interval
    difference: Interval
    p_value: float
    n_more: int
    is_proven: bool

    @classmethod
    def of(
        cls, before: Sequence[float], after: Sequence[float], *, alpha: float, min_gain: float
    ) -> PromptComparison:
        """Test the new prompt once, by the verdict of a search.

        Args:
            before: Scores of the incumbent in [0, 1].
            after: Of the new prompt on the same rows.
            alpha: Level of the one-sided paired test.
            min_gain: Smallest gain worth having, for the number of rows that are missing.
        """
        found = verdict(after, before, pick_is_single=False, alpha=alpha, min_gain=min_gain)
        return cls(
            n=found.n,
            before=mean_interval(before),
            after=mean_interval(after),
            difference=found.interval,
            p_value=1.0 if found.p_value is None else found.p_value,
            n_more=found.n_more,
            is_proven=found.kind == "mixture",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


@dataclass(slots=True)
class CallCounter:
    """The calls of each stage: those of a mixture's seats, and those of the prompt model.

    Attributes:
        cache: Of everything that is measured here, and of nothing else; its table has a stage.
        written: Calls of the prompt model, ``made`` and ``reused``.
    """

    cache: NodeCache = field(default_factory=NodeCache)
    written: Counter[str] = field(default_factory=Counter)

    def begin(self, stage: str) -> None:
        """Count for this stage from now on: proposers for references, else seats that read."""
        self.cache.table.stage = stage

    @contextmanager
    def prompting(self) -> Iterator[None]:
        """Count the calls of LMs inside, but not in a seat of the mixture, as the prompt model's.

        A request each where the LM logs its calls, as those of a pool do; else a call of the
        LM each, whatever DSPy's cache answered and however many completions it asked for.
        """
        with call_scope() as scope:
            callbacks = [*dspy.settings.callbacks, _Prompting(self, scope)]
            try:
                with dspy.context(callbacks=callbacks):
                    yield
            finally:
                seen = NodeCache()
                seen.table.add(scope.log)
                self.written += seen.calls

    def by_stage(self) -> dict[str, dict[str, Counted]]:
        """Return the counts by stage and role."""
        found: dict[str, dict[str, Counted]]
        found = {stage: dict.fromkeys(ROLES, Counted()) for stage in STAGES}
        for (stage, _), count in self.cache.table.counts.items():
            role = "proposers" if stage == "references" else "aggregator"
            found[stage][role] += Counted(count.made, count.reused)
        found["tuning"]["prompt_model"] = Counted(self.written["made"], self.written["reused"])
        return found


def calls_of_role(calls: Mapping[str, Mapping[str, Counted]], role: str) -> Counted:
    """Return the requests to a role in all stages."""
    return sum((roles[role] for roles in calls.values()), Counted())


class _Prompting(BaseCallback):
    """Counts the calls that no log tells of."""

    def __init__(self, counter: CallCounter, scope: CallScope) -> None:
        self._counter, self._scope = counter, scope

    def __deepcopy__(self, memo: dict[int, Any]) -> _Prompting:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Count the call of an LM unless its engine logs it where it is counted."""
        is_logged = getattr(getattr(instance, "engine", None), "logs_calls", False)
        scope = current_scope()
        # A seat is asked about an example; in a thread of the optimizer's own there is no log.
        if scope.example is None and not (is_logged and scope.log is self._scope.log):
            self._counter.written["made"] += 1


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """The prompt that an optimizer returned.

    Attributes:
        prompt: The whole of it.
        candidates: The prompts that the optimizer says it tried, the best first.
        notes: What a reader must know of the rows and the optimizer.
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def train_score(self) -> float | None:
        """Mean metric on the rows that the optimizer judged by; None where it does not say."""
        scores = {one.prompt.key: one.score for one in self.candidates}
        return scores.get(self.prompt.key)


@dataclass(frozen=True, slots=True)
class PromptTuning:
    """Runs optimizers on the seats of a target; references come first, and are asked for once.

    Attributes:
        target: The seats whose prompt it is.
        metric: The user's.
        counter: Counts the calls; its cache knows the references.
        num_threads: Rows asked at the same time, outside of the optimizer.
        share: Part of the train rows that an optimizer judges by, if it tells them apart.
        seed: Of their choice, and of an optimizer that has no seed of its own.
    """

    target: Target
    metric: CheckedMetric
    counter: CallCounter
    num_threads: int = 8
    share: float = 0.5
    seed: int = 0

    def references(self, rows: Sequence[dspy.Example]) -> StoredRows:
        """Ask the layers before the target about the rows; what is known costs nothing."""
        self.counter.begin("references")
        return measured_references(
            self.target, rows, self.counter.cache, num_threads=self.num_threads
        )

    def run(
        self, optimizer: Any, rows: Sequence[dspy.Example], options: Mapping[str, Any]
    ) -> TunedPrompt:
        """Return the prompt that an optimizer makes of train rows, with feedback on these alone.

        Args:
            optimizer: An instance; it is not changed.
            rows: With ids.
            options: Further arguments of its ``compile``.

        Raises:
            LayerFailedError: If no row has references.
            MoaError: The first error that no prompt can mend: a budget, a replay, the metric.
            StudyError: If the optimizer itself raises, or returns no such student.
        """
        stored = self.references(rows)
        reading = ReferenceReader(self.target, stored, self.counter.cache)
        feedback = reading.feedback(self.metric)
        examples = self._examples(stored, feedback)
        self.counter.begin("tuning")
        made = self._compiled(_prepared(optimizer, feedback), reading, examples, options)
        found = Prompt.of(made.aggregator)
        return TunedPrompt(found, _candidates(optimizer, made), _notes(stored, made))

    def _examples(self, stored: StoredRows, feedback: ReferenceFeedback) -> list[dspy.Example]:
        signature = self.target.modules[0].predictors()[0].signature
        readable = [found for found in stored.values() if found.failure is None]
        if not readable:
            first = next(iter(stored.values()))
            raise LayerFailedError(f"No train row has references to read. {first.failure}")
        return [labelled(found, feedback, signature) for found in readable]

    def _compiled(
        self,
        optimizer: Any,
        reading: ReferenceReader,
        examples: Sequence[dspy.Example],
        options: Mapping[str, Any],
    ) -> AggregatorStudent:
        name = name_of(optimizer)
        student = make_student(reading, with_lm=isinstance(optimizer, tp.BetterTogether))
        given = self._arguments(optimizer, examples, options)
        try:
            with _surroundings(optimizer, student), self.counter.prompting():
                made = optimizer.compile(student, **given)
        except MoaError:
            reading.stop.check()
            raise
        except Exception as error:
            reading.stop.check()
            raise StudyError(f"{name} raised {type(error).__name__}: {error}") from error
        # An optimizer may have taken the error for a bad score.
        reading.stop.check()
        if not isinstance(made, AggregatorStudent):
            raise StudyError(
                f"{name} must return the program that it was given, with other prompts, but "
                f"returned a {name_of(made)}."
            )
        return made

    def _arguments(
        self, optimizer: Any, examples: Sequence[dspy.Example], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        taken = inspect.signature(optimizer.compile).parameters
        rows, given = list(examples), dict(options)
        n_judging = round(self.share * len(rows))
        if "valset" in taken and 0 < n_judging < len(rows):
            random.Random(f"tuning-{self.seed}").shuffle(rows)
            given["valset"], rows = rows[:n_judging], rows[n_judging:]
        if "seed" in taken and not hasattr(optimizer, "seed"):
            given.setdefault("seed", self.seed)
        return {"trainset": rows, **given}


def _prepared(optimizer: Any, feedback: ReferenceFeedback) -> Any:
    """Return a copy that scores by our metric; the caller's optimizer stays as it is."""
    mine: Any = copy.copy(optimizer)
    metric = feedback if traits_of(optimizer).reads_feedback else feedback.value
    for name in ("metric", "metric_fn"):
        if hasattr(mine, name):
            setattr(mine, name, metric)
    if isinstance(optimizer, tp.GEPA):
        # Else it does not tell what it tried.
        mine.track_stats = True
    if isinstance(mine, tp.BetterTogether):
        mine.optimizers = {k: _prepared(one, feedback) for k, one in mine.optimizers.items()}
    return mine


@contextmanager
def _surroundings(optimizer: Any, student: AggregatorStudent) -> Iterator[None]:
    settings: dict[str, Any] = {}
    if dspy.settings.lm is None and traits_of(optimizer).copies_lm:
        # It copies the global LM to ask the seat anew; the seat asks its own agent all the same.
        settings["lm"] = student.get_lm()
    if isinstance(dspy.settings.adapter, PlainChat):
        # For one text in, one text out; optimizers ask for several fields.
        settings["adapter"] = None
    # MIPROv2 seeds the global generators, which are the caller's too.
    states = random.getstate(), np.random.get_state()
    try:
        with dspy.context(**settings):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _notes(stored: StoredRows, made: Any) -> tuple[str, ...]:
    lost = [found.row.id for found in stored.values() if found.failure is not None]
    notes = [f"{len(lost)} train rows have no references: {', '.join(lost[:5])}"] if lost else []
    if getattr(made, "flag_compilation_error_occurred", False):
        notes.append("A step of BetterTogether failed; its best program up to then was taken.")
    return tuple(notes)


_NOTED: Final = ("strategy", "seed", "depth", "prompt")
"""What optimizers note of a candidate beside its score."""


def _candidates(optimizer: Any, made: Any) -> tuple[Candidate, ...]:
    """Return every different prompt that the optimizer reports, the best first.

    Of optimizers that keep no list, such as BootstrapFewShot, it is the one they returned.
    """
    found = [*_listed(optimizer, made), *_of_gepa(made)]
    if not found:
        found = [Candidate(Prompt.of(made.aggregator), name_of(optimizer), None)]
    best: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda it: -1.0 if it.score is None else -it.score):
        best.setdefault(one.prompt.key, one)
    return tuple(best.values())


def _listed(optimizer: Any, made: Any) -> Iterator[Candidate]:
    scale = 100 if traits_of(optimizer).percent else 1
    name = name_of(optimizer)
    for attribute in ("candidate_programs", "mb_candidate_programs"):
        for entry in getattr(made, attribute, None) or ():
            noted = [f"{key} {entry[key]}" for key in _NOTED if entry.get(key) not in (None, "")]
            part = ["part of the rows"] if attribute.startswith("mb_") else []
            score = None if entry["score"] is None else float(entry["score"]) / scale
            origin = ", ".join([name, *noted, *part])
            yield Candidate(Prompt.of(entry["program"].aggregator), origin, score)


def _of_gepa(made: Any) -> Iterator[Candidate]:
    details = getattr(made, "detailed_results", None)
    if details is None:
        return
    for n, program in enumerate(details.candidates):
        parents = [str(parent) for parent in details.parents[n] if parent is not None]
        origin = f"GEPA, candidate {n}" + (f" of {' and '.join(parents)}" if parents else "")
        score = float(details.val_aggregate_scores[n])
        yield Candidate(Prompt.of(program.aggregator), origin, score)

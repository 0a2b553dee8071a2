"""The tuning of one prompt: references measured once, then an optimizer on train rows."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import dspy
import numpy as np
from dspy import teleprompt as tp
from dspy.utils.callback import BaseCallback

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.scope import CallFacts, CallScope, call_scope, current_scope
from moa_dspy.errors import LayerFailedError, MoaError, StudyError
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.metric import CheckedMetric, scores
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback, StoredRows
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
WRITING: Final = "writing"
"""The part of the stage ``tuning`` that is the prompt model's."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Numbers of requests to models.

    Attributes:
        made: Number that were sent, including failed ones.
        reused: Number that a store or recording answered.
    """

    made: int = 0
    reused: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.made + other.made, self.reused + other.reused)


@dataclass(frozen=True, slots=True)
class PromptComparison:
    """The new prompt against the incumbent, row by row.

    Attributes:
        n: Number of rows.
        before: Mean score of the incumbent with a 95 % interval.
        after: The same of the new prompt.
        difference: Paired interval of mean(after - before).
        p_value: One-sided, for after > before.
        n_more: Further rows that are needed to see the gain; 0 if the question is decided.
        is_proven: Whether the test finds that the new prompt is better.
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
        """Compare the two prompts by the test of a search's verdict.

        Args:
            before: Scores of the incumbent in [0, 1].
            after: Scores of the new prompt on the same rows.
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


def calls_by_stage(cache: NodeCache) -> dict[str, dict[str, Counted]]:
    """Return the calls of a cache's agents and of the prompt model by stage and role."""
    found: dict[str, dict[str, Counted]]
    found = {stage: dict.fromkeys(ROLES, Counted()) for stage in STAGES}
    for (part, _), count in cache.table.counts.items():
        stage = "tuning" if part == WRITING else part
        role = {"references": "proposers", WRITING: "prompt_model"}.get(part, "aggregator")
        found[stage][role] += Counted(count.made, count.reused)
    return found


@contextmanager
def _prompting(cache: NodeCache) -> Iterator[None]:
    """Count the calls made inside as the prompt model's, except those of the mixture's agents.

    Requests are counted where the LM logs its calls, as those of a pool do. Of another LM its
    calls are counted, with one for each even if DSPy's cache answered or ``n`` is above 1.
    """
    with call_scope() as scope:
        try:
            with dspy.context(callbacks=[*dspy.settings.callbacks, _UnloggedCalls(scope)]):
                yield
        finally:
            cache.table.stage = WRITING
            cache.table.add(scope.log)


class _UnloggedCalls(BaseCallback):
    """Adds calls of LMs that log none to the log of a scope."""

    def __init__(self, scope: CallScope) -> None:
        self._scope = scope

    def __deepcopy__(self, memo: dict[int, Any]) -> _UnloggedCalls:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Add the call of an LM unless its engine logs it in the scope."""
        is_logged = getattr(getattr(instance, "engine", None), "logs_calls", False)
        scope = current_scope()
        # Agents are asked about an example; threads of an optimizer have another log.
        if scope.example is None and not (is_logged and scope.log is self._scope.log):
            self._scope.note(CallFacts("", 0, 0, 0.0, 0.0, is_reused=False))


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """The prompt that an optimizer returned.

    Attributes:
        prompt: The whole of it.
        candidates: The prompts that the optimizer reports, the best first.
        notes: Sentences for the report.
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def train_score(self) -> float | None:
        """Mean metric on the rows that the optimizer scored by; None if it does not report it."""
        return next((c.score for c in self.candidates if c.prompt.key == self.prompt.key), None)


@dataclass(frozen=True, slots=True)
class PromptTuning:
    """Runs optimizers on the seats of a target; their references are measured first, and once.

    Attributes:
        target: The seats whose prompt is tuned.
        metric: The user's.
        cache: Answers of all agents that are asked here; its table counts the calls by stage.
        num_threads: Rows measured at the same time, outside of the optimizer.
        share: Part of the train rows that an optimizer scores by, if it uses separate rows.
        seed: Seed of the choice of these rows, and of an optimizer without a seed.
    """

    target: Target
    metric: CheckedMetric
    cache: NodeCache
    num_threads: int = 8
    share: float = 0.5
    seed: int = 0

    def references(self, rows: Sequence[dspy.Example]) -> StoredRows:
        """Return the references of the rows; known answers are not asked again."""
        self.cache.table.stage = "references"
        return measured_references(self.target, rows, self.cache, num_threads=self.num_threads)

    def compared(
        self, prompt: Prompt, rows: Sequence[dspy.Example], *, stage: str, **test: float
    ) -> PromptComparison:
        """Measure the seats' own prompt and another; ``test`` is as for ``PromptComparison.of``."""
        self.references(rows)
        self.cache.table.stage = stage
        before, after = (self._scores(tried, rows) for tried in (None, prompt))
        found = PromptComparison.of(before, after, **test)
        is_same = prompt.key == Prompt.of(self.target.modules[0]).key
        # No number of rows would tell a prompt from itself.
        return replace(found, n_more=0) if is_same else found

    def _scores(self, prompt: Prompt | None, rows: Sequence[dspy.Example]) -> list[float]:
        student = self.target.with_prompt(prompt)
        # Both know the references; their readers are the same nodes with different answers.
        known = self.cache.child()
        evaluator = Evaluator(student, self.metric.metric, self.num_threads, None, known)
        return scores(evaluator.measure(student.mixture.architecture, rows))

    def run(
        self, optimizer: Any, rows: Sequence[dspy.Example], options: Mapping[str, Any]
    ) -> TunedPrompt:
        """Return the prompt that an optimizer makes from train rows, with feedback on these alone.

        Args:
            optimizer: An instance; it is not changed.
            rows: With ids.
            options: Further arguments of its ``compile``.

        Raises:
            LayerFailedError: If no row has references.
            MoaError: The first error that is not due to the prompt: a budget, a replay, the metric.
            StudyError: If the optimizer itself raises, or returns another program.
        """
        stored = self.references(rows)
        mixture, is_alone = self.target.mixture, self.target.is_alone
        outputs = tuple(mixture.signature.output_fields)
        feedback = ReferenceFeedback(self.metric, stored, outputs, mixture.normalise, is_alone)
        reading = ReferenceReader(self.target, feedback, self.cache)
        signature = self.target.modules[0].predictors()[0].signature
        readable = [found for found in stored.values() if found.failure is None]
        if not readable:
            first = next(iter(stored.values()))
            raise LayerFailedError(f"No train row has references to read. {first.failure}")
        examples = [feedback.labelled(found, signature) for found in readable]
        self.cache.table.stage = "tuning"
        made = self._compiled(_prepared(optimizer, feedback), reading, examples, options)
        found = Prompt.of(made.aggregator)
        return TunedPrompt(found, _candidates(optimizer, made), _notes(stored, made))

    def _compiled(
        self,
        optimizer: Any,
        reading: ReferenceReader,
        examples: Sequence[dspy.Example],
        options: Mapping[str, Any],
    ) -> AggregatorStudent:
        student = make_student(reading)
        if isinstance(optimizer, tp.BetterTogether):
            student.set_lm(student.get_lm())  # it takes no program without an LM
        given = self._arguments(optimizer, examples, options)
        try:
            with _surroundings(optimizer, student), _prompting(self.cache):
                made = optimizer.compile(student, **given)
        except Exception as error:
            reading.feedback.stop.check()
            if isinstance(error, MoaError):
                raise
            raise StudyError(
                f"{name_of(optimizer)} raised {type(error).__name__}: {error}"
            ) from error
        # An optimizer may have handled the error as a bad score.
        reading.feedback.stop.check()
        if not isinstance(made, AggregatorStudent):
            raise StudyError(
                f"{name_of(optimizer)} must return the program that it was given, with other "
                f"prompts, but returned a {name_of(made)}."
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
    """Return a copy with the library's metric; the caller's optimizer is not changed."""
    mine: Any = copy.copy(optimizer)
    metric = feedback if traits_of(optimizer).reads_feedback else feedback.value
    for name in ("metric", "metric_fn"):
        if hasattr(mine, name):
            setattr(mine, name, metric)
    if isinstance(optimizer, tp.GEPA):
        # Else it does not report its candidates.
        mine.track_stats = True
    if isinstance(mine, tp.BetterTogether):
        mine.optimizers = {k: _prepared(step, feedback) for k, step in mine.optimizers.items()}
    return mine


@contextmanager
def _surroundings(optimizer: Any, student: AggregatorStudent) -> Iterator[None]:
    settings: dict[str, Any] = {}
    if dspy.settings.lm is None and traits_of(optimizer).copies_lm:
        # It copies the global LM for further samples; the seat still asks its own agent.
        settings["lm"] = student.get_lm()
    if isinstance(dspy.settings.adapter, PlainChat):
        # It takes one text output only; optimizers use several fields.
        settings["adapter"] = None
    # MIPROv2 seeds the global random generators, which the caller may use.
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
"""Keys under which optimizers describe a candidate."""
_ON_PART: Final = ", part of the rows"


def _candidates(optimizer: Any, made: Any) -> tuple[Candidate, ...]:
    """Return every different prompt that the optimizer reports, the best first.

    For optimizers without a list, such as BootstrapFewShot, it is the prompt they returned.
    """
    found = [*_listed(optimizer, made), *_of_gepa(made)]
    found = found or [Candidate(Prompt.of(made.aggregator), name_of(optimizer))]
    best: dict[str, Candidate] = {}
    for candidate in sorted(found, key=lambda it: -1.0 if it.score is None else -it.score):
        best.setdefault(candidate.prompt.key, candidate)
    return tuple(best.values())


def _listed(optimizer: Any, made: Any) -> Iterator[Candidate]:
    scale = 100 if traits_of(optimizer).percent else 1
    for attribute, part in (("candidate_programs", ""), ("mb_candidate_programs", _ON_PART)):
        for entry in getattr(made, attribute, None) or ():
            noted = [f", {key} {entry[key]}" for key in _NOTED if entry.get(key) not in (None, "")]
            origin = "".join([name_of(optimizer), *noted, part])
            score = None if entry["score"] is None else float(entry["score"]) / scale
            yield Candidate(Prompt.of(entry["program"].aggregator), origin, score)


def _of_gepa(made: Any) -> Iterator[Candidate]:
    if (details := getattr(made, "detailed_results", None)) is None:
        return
    for n, program in enumerate(details.candidates):
        parents = " and ".join(str(p) for p in details.parents[n] if p is not None)
        origin = f"GEPA, candidate {n}" + (f" of {parents}" if parents else "")
        score = float(details.val_aggregate_scores[n])
        yield Candidate(Prompt.of(program.aggregator), origin, score)

"""Runs an optimizer on the student: with our metric, on train rows only, and nothing of it kept."""

# DOCS: optimize/prompts/_rows: The rows of prompt optimisation: what tunes, what decides, what tests share nothing. | optimize/prompts/_guard: Whether a new prompt is better than the old one, on rows that nobody tuned it on. | optimize/prompts/_result: What prompt optimisation found, as plain data. | optimize/prompts/_run: The stages of tuning one prompt, over references that were computed once.

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import dspy
from dspy import teleprompt as tp

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import call_scope
from moa_dspy.data import find_overlap
from moa_dspy.errors import DataError, LayerFailedError, MoaError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback, labelled
from moa_dspy.optimize.prompts.optimizers import Candidate, name_of, traits_of
from moa_dspy.optimize.prompts.prompt import Prompt, prompt_diff
from moa_dspy.optimize.prompts.references import (
    CallCounter,
    Counted,
    StoredReferences,
    StoredRow,
    Target,
    continue_plan,
    count_prompting,
    in_threads,
    read_references,
    seat,
)
from moa_dspy.optimize.prompts.student import (
    AggregatorStudent,
    ReferenceReader,
    Scoring,
    make_student,
)
from moa_dspy.optimize.splits import with_ids
from moa_dspy.winrate import Interval, mean_interval, verdict


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
        self, optimizer: Any, reading: ReferenceReader, examples: Sequence[dspy.Example]
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
        habits = traits_of(optimizer)
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
    if dspy.settings.lm is None and traits_of(optimizer).copies_lm:
        # It copies the global LM to ask the seat anew; the seat asks its own agent all the same.
        settings["lm"] = student.get_lm()
    if isinstance(dspy.settings.adapter, PlainChat):
        # For one text in, one text out; optimizers ask for several fields.
        settings["adapter"] = None
    with dspy.context(**settings):
        yield


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows with ids; no id comes twice, and no question is in two of the three.

    Attributes:
        train: The optimizer's.
        val: The guard's.
        test: May be empty.

    Raises:
        DataError: If ``train`` or ``val`` is empty, an id comes twice, or inputs overlap.
    """

    train: tuple[dspy.Example, ...]
    val: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...] = ()

    def __post_init__(self) -> None:
        named = {"trainset": self.train, "valset": self.val, "testset": self.test}
        for name in ("trainset", "valset"):
            if not named[name]:
                raise DataError(f"`{name}` must have at least one row, but is empty.")
        places: dict[str, str] = {}
        for name, rows in named.items():
            for row in rows:
                if row.id in places:
                    raise DataError(f"Id {row.id!r} is in {places[row.id]} and again in {name}.")
                places[row.id] = name
        for one, other in (("trainset", "valset"), ("trainset", "testset"), ("valset", "testset")):
            if pairs := find_overlap(named[one], named[other]):
                first, second = pairs[0]
                raise DataError(
                    f"`{one}` and `{other}` overlap: {first!r} and {second!r} have the same inputs."
                )

    @classmethod
    def of(
        cls,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example],
        testset: Sequence[dspy.Example] | None,
    ) -> PromptRows:
        """Name the rows and check them."""
        given = (("train", trainset), ("val", valset), ("test", testset or ()))
        return cls(**{name: tuple(with_ids(rows, name)) for name, rows in given})


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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def compare(
    before: Sequence[float], after: Sequence[float], *, alpha: float, gain: float
) -> PromptComparison:
    """Test the new prompt once.

    Args:
        before: Scores of the incumbent in [0, 1].
        after: Of the new prompt on the same rows.
        alpha: Level of the one-sided paired test.
        gain: Smallest gain worth having, for the number of rows that are missing.
    """
    found = verdict(after, before, pick_is_single=False, alpha=alpha, gain=gain)
    return PromptComparison(
        n=found.n,
        before=mean_interval(before),
        after=mean_interval(after),
        difference=found.interval,
        p_value=1.0 if found.p_value is None else found.p_value,
        n_more=found.n_more,
        is_proven=found.kind == "mixture",
    )


def score_program(
    program: MixtureOfAgents,
    bank: StoredReferences,
    scoring: Scoring,
    tally: CallCounter,
    *,
    num_threads: int,
) -> list[float]:
    """Return the metric of the mixture's own answer to every row of the bank, in order.

    Only who reads the stored references is asked, and who reads those. A row without an
    answer scores 0.

    Raises:
        MetricError: If the metric raises or returns no number in [0, 1].
        MoaError: If a call cannot be made for a reason that is not the model's.
    """

    def score(found: StoredRow) -> float:
        with call_scope(example=found.row.id), seat() as scope:
            try:
                plan = program.plan(found.row.inputs().toDict())
                answer = continue_plan(plan, found.rounds, program.seats.ask_all)
            except LayerFailedError:
                return 0.0
            finally:
                tally.add("aggregator", scope.log)
        return scoring.score(found.row, dspy.Prediction(**answer.final.values))

    return in_threads(score, list(bank.rows.values()), num_threads)


@dataclass(frozen=True, slots=True)
class PromptOrigin:
    """Who made the new prompt.

    Attributes:
        optimizer: Name of its class.
        settings: Its plain settings and the options of ``compile``; no LM, no key.
    """

    optimizer: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The outcome of ``optimize_aggregator``.

    Attributes:
        program: The mixture with the accepted prompt; with the incumbent's if none was.
        accepted: Whether the new prompt was proven better on ``val``.
        before: The incumbent's prompt.
        after: The optimizer's, accepted or not.
        val: Both on the validation rows, which the optimizer never saw.
        test: Both on the test rows, after the decision; None without a ``testset``.
        calls: Requests by stage and role, over all rows.
        origin: Who made the prompt.
        candidates: What the optimizer tried, where it tells, the best first.
        layer: Whose prompt it is: None is the last step.
        notes: What a reader must know of this run.
    """

    program: MixtureOfAgents
    accepted: bool
    before: Prompt
    after: Prompt
    val: PromptComparison
    test: PromptComparison | None
    calls: Mapping[str, Mapping[str, Counted]]
    origin: PromptOrigin
    candidates: tuple[Candidate, ...]
    layer: int | None = None
    notes: tuple[str, ...] = ()

    def calls_of(self, role: str) -> Counted:
        """Return what was asked of ``proposers``, ``aggregator`` or ``prompt_model`` in all."""
        found = [roles[role] for roles in self.calls.values()]
        return Counted(sum(one.made for one in found), sum(one.reused for one in found))

    @property
    def proposer_calls(self) -> int:
        """Requests made to whom the optimised seats read; 0 if all of it was stored."""
        return self.calls_of("proposers").made

    @property
    def aggregator_calls(self) -> int:
        """Requests made to the optimised seats, and to who reads them."""
        return self.calls_of("aggregator").made

    @property
    def prompt_model_calls(self) -> int:
        """Requests made by the optimizer itself, to write prompts."""
        return self.calls_of("prompt_model").made

    @property
    def diff(self) -> str:
        """The two prompts as a unified diff; "" if the optimizer changed nothing."""
        return prompt_diff(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        roles = ("proposers", "aggregator", "prompt_model")
        return {
            "architecture": str(self.program.architecture),
            "layer": self.layer,
            "accepted": self.accepted,
            "origin": asdict(self.origin),
            "val": self.val.to_json(),
            "test": self.test.to_json() if self.test else None,
            "calls": {role: asdict(self.calls_of(role)) for role in roles},
            "calls_by_stage": {
                stage: {role: asdict(one) for role, one in found.items()}
                for stage, found in self.calls.items()
            },
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "diff": self.diff,
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class PromptRun:
    """References, tuning, comparison: each is counted as a stage of its own.

    Attributes:
        target: Whose prompt it is.
        scoring: The user's metric.
        tally: Counts the calls.
        num_threads: Rows measured at the same time, outside of the optimizer.
        alpha: Level of the guard's test.
        gain: Smallest gain worth having.
    """

    target: Target
    scoring: Scoring
    tally: CallCounter
    num_threads: int
    alpha: float = 0.05
    gain: float = 0.03

    def read(self, rows: Sequence[dspy.Example]) -> StoredReferences:
        """Compute the references of the rows, or read stored ones."""
        self.tally.stage = "references"
        return read_references(self.target, rows, self.tally, num_threads=self.num_threads)

    def tuned(
        self,
        optimizer: Any,
        bank: StoredReferences,
        options: Mapping[str, Any],
        *,
        share: float,
        seed: int,
    ) -> AggregatorStudent:
        """Let the optimizer have the train rows; feedback is made of these and no others."""
        program, stop = self.target.program, self.scoring.stop
        outputs = tuple(program.signature.output_fields)
        feedback = ReferenceFeedback(self.scoring, bank, outputs, program.normalise)
        self.tally.stage = "tuning"
        tuning = Tuning(self.scoring, feedback, options, share, seed)
        reading = ReferenceReader(self.target, bank, self.tally, stop)
        return tuning.compile(optimizer, reading, _examples(bank, feedback, self.target))

    def compared(self, after: Prompt, rows: Sequence[dspy.Example], stage: str) -> PromptComparison:
        """Measure the incumbent and the new prompt on rows whose references are read first."""
        bank = self.read(rows)
        self.tally.stage = stage
        before, then = (
            score_program(
                self.target.with_prompt(prompt),
                bank,
                self.scoring,
                self.tally,
                num_threads=self.num_threads,
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


def _examples(
    bank: StoredReferences, feedback: ReferenceFeedback, target: Target
) -> list[dspy.Example]:
    signature = target.modules[0].predictors()[0].signature
    readable = [found for found in bank.rows.values() if found.failure is None]
    if not readable:
        first = next(iter(bank.rows.values()))
        raise LayerFailedError(f"No train row has references to read. {first.failure}")
    return [labelled(found, feedback, signature) for found in readable]


def notes_of(bank: StoredReferences, made: Any) -> tuple[str, ...]:
    """Return what a reader must know of the rows and the optimizer."""
    lost = [found.row.id for found in bank.rows.values() if found.failure is not None]
    notes = [f"{len(lost)} train rows have no references: {', '.join(lost[:5])}"] if lost else []
    if getattr(made, "flag_compilation_error_occurred", False):
        notes.append("A step of BetterTogether failed; its best program up to then was taken.")
    return tuple(notes)

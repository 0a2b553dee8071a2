"""The checked metric and judge of a search, and the facts that they give of one row."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

import dspy

from moa_dspy.agent import Agent
from moa_dspy.aggregators import Ballot
from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget, Ledger, spending_under
from moa_dspy.data import FieldMetric, Splits, accepted_answers, is_absent, is_pure, plain_text
from moa_dspy.data.metrics import choices_of
from moa_dspy.data.rows import check_outputs
from moa_dspy.errors import BudgetReachedError, MetricError, MoaError, StudyError
from moa_dspy.files import shown_value
from moa_dspy.optimize.early_facts import COSTS
from moa_dspy.optimize.judge_facts import members_of
from moa_dspy.winrate.length_control import GamedRows

_MOST: Final = 5
"""Arguments of a GEPA metric: example, prediction, trace, pred_name, pred_trace."""


@dataclass(frozen=True, slots=True)
class CheckedMetric:
    """A metric that is called with as many arguments as it accepts.

    Attributes:
        metric: The user's metric.
        arity: Number of positional arguments it is called with, from 2 to 5.
    """

    metric: Callable[..., Any]
    arity: int = 2

    @classmethod
    def of(cls, metric: Any) -> CheckedMetric:
        """Inspect the metric's signature.

        Raises:
            StudyError: If it cannot be called with an example and a prediction.
        """
        return cls(metric, _arity(metric))

    def value(self, example: Any, prediction: Any, *rest: Any) -> Any:
        """Return the metric's value, which may be a prediction with a score and feedback.

        Raises:
            MetricError: If the metric raises, or its score is no finite number in [0, 1].
            MoaError: If the metric raises it, as when a budget is reached.
        """
        try:
            value = self.metric(example, prediction, *rest[: self.arity - 2])
        except MoaError:
            raise
        except Exception as error:
            raise MetricError(
                f"The metric raised {type(error).__name__} on example {example.get('id', '?')!r}: "
                f"{error}"
            ) from error
        score = _number_in(value)
        if score is None or not (math.isfinite(score) and 0 <= score <= 1):
            is_plain = isinstance(value, str | None)
            shown = shown_value(value) if is_plain else f"a {type(value).__name__} without a number"
            raise MetricError(
                "The metric must return a number in [0, 1], but gave "
                f"{shown if score is None else score} on {example.get('id', '?')!r}."
            )
        return value

    def score(self, example: Any, prediction: Any, *rest: Any) -> float:
        """Return the metric's number; raises as ``value`` does."""
        return score_of(self.value(example, prediction, *rest))


def _number_in(value: Any) -> float | None:
    """Return the number in a metric's value, or None if it is not a number and has none."""
    with suppress(TypeError, ValueError, RuntimeError):  # the last of a tensor with many values
        return score_of(value)
    return None


def score_of(value: Any) -> float:
    """Return the number in a metric's value."""
    return float(value.score if hasattr(value, "score") else value)


_TRIED_SECONDS, _QUICK_SECONDS = 1.0, 0.05
"""Time that a user's metric may take when it is tried, in all and on one row."""


def check_metric(metric: Any, signature: Any, splits: Splits) -> None:
    """Score made-up predictions, so that what cannot be scored is found before a call is paid.

    Each row of val and test is scored with its right answer, and one with a wrong answer too. A
    user's metric is tried for about a second, and on one row only if it is slow.

    Raises:
        MetricError: If the metric raises, or returns no number in [0, 1], or a right answer is
            none of the choices.
    """
    is_named, started = is_pure(metric), time.monotonic()
    rows = [(split, row) for split in ("val", "test") for row in getattr(splits, split)]
    # A metric that calls a model is not tried, as that would cost money.
    with suppress(BudgetReachedError), spending_under(Ledger(Budget(calls=1)), share=0.0):
        for number, (split, row) in enumerate(rows):
            _try_metric(metric, signature, row, split)
            seconds = time.monotonic() - started
            if not is_named and seconds > (_TRIED_SECONDS if number else _QUICK_SECONDS):
                return
            if number == 0:
                _try_metric(metric, signature, row, split, is_right=False)


def _try_metric(
    metric: Any, signature: Any, row: dspy.Example, split: str, *, is_right: bool = True
) -> None:
    outputs, where = signature.output_fields, f"Row {row.id!r} of {split}"
    values = {n: _made_up(f, row.get(n, None), is_right=is_right) for n, f in outputs.items()}
    try:
        score = CheckedMetric.of(metric).score(row, dspy.Prediction(**values))
    except BudgetReachedError:
        raise
    except MoaError as error:
        if is_pure(metric) and error.__cause__ is None:  # of the row, not of the signature
            raise MetricError(f"{where}: {error}") from error
        raise MetricError(
            "`task.metric` cannot score a made-up prediction of `task.signature`, whose outputs "
            f"are {', '.join(outputs)}: {error} {where} has {', '.join(map(str, row.keys()))}."
        ) from error
    if is_right and isinstance(metric, FieldMetric) and metric.name == "choice" and score < 1:
        name = min(
            metric.choices, key=lambda name: plain_text(values[name]) in metric.choices[name]
        )
        raise MetricError(
            f"{where}: the right answer of {name!r} must be one of "
            f"{', '.join(metric.choices[name])}, but is {shown_value(values[name])}."
        )


def _made_up(field: Any, right: Any, *, is_right: bool) -> Any:
    """Return the row's own answer; or, if a wrong one is wanted, a value of the field's type."""
    annotation = field.annotation
    if is_right and not is_absent(right):
        is_list_of_texts = annotation is str and isinstance(right, list | tuple)
        return accepted_answers(right)[0] if is_list_of_texts else right
    if choices := choices_of(annotation):
        return next((choice for choice in choices if choice != right), choices[0])
    try:
        return "text" if annotation is str else annotation()
    except Exception:
        # A type defined by the user whose constructor needs arguments.
        return None


def _arity(metric: Any) -> int:
    requirement = (
        "`metric` must be a function of (example, prediction) with more arguments optional"
    )
    if isinstance(metric, str):
        requirement += " (by name they are in moa_dspy.data.METRICS)"
    return arity_of(metric, requirement, most=_MOST)


def arity_of(function: Any, requirement: str, *, most: int) -> int:
    """Return with how many arguments a function can be called: 2 to ``most``, as many as it takes.

    Args:
        function: The function that was given.
        requirement: Beginning of the error: the option, and what it must be.
        most: Maximum number of arguments.

    Raises:
        StudyError: If it is no function, is async, or cannot be called with two arguments.
    """
    if not callable(function):
        raise StudyError(f"{requirement}, but got {shown_value(function)}.")
    name = getattr(function, "__name__", type(function).__name__)
    # A module's arguments are those of its `forward`, as `__call__` takes any. DSPy warns of any
    # access to an object's `forward`, but not to that of its class.
    kind = type(function) if isinstance(function, dspy.Module) else object
    forward = getattr(kind, "forward", None)
    called = function if forward is None else MethodType(forward, function)
    if any(map(inspect.iscoroutinefunction, (called, type(called).__call__))):
        raise StudyError(f"{requirement}, but {name} is async, and nothing would await it.")
    try:
        signature = inspect.signature(called)
    except ValueError:
        return 2  # a builtin without a signature
    fits: list[int] = []
    for count in range(2, most + 1):
        with suppress(TypeError):
            signature.bind(*[None] * count)
            fits.append(count)
    if 2 in fits:
        return fits[-1]
    raise StudyError(f"{requirement}, but {name} has the signature {signature}.")


@dataclass(slots=True)
class PreferenceMetric:
    """A judge as a DSPy metric, for the tuning of prompts: the preference over the reference.

    Attributes:
        preference: Function of the judge of an example, an answer and ``agents``.
        agents: Evaluator that gives the answers of the reference; None before the search begins.
    """

    preference: Callable[[Any, Any, Any], float]
    agents: Any = None

    def __call__(
        self,
        example: Any,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> float:
        """Return a number in [0, 1]; while demonstrations are collected, 1 for a win, else 0."""
        value = self.preference(example, prediction, self.agents)
        is_collecting = trace is not None and pred_name is None
        return float(value > 0.5) if is_collecting else value


Picks: TypeAlias = Literal["judge", "metric"]
BEST_SINGLE: Final = "best_single"
"""The reference that a round robin of the single agents chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """A judge and how a search uses it.

    Attributes:
        judge: Compares two answers to an example; see ``moa_dspy.judges``.
        picks: Whether the judge or the metric picks; needed if a search has both.
        reference: Answers with which all others are compared: of an agent of the pool, of
            ``best_single`` (the winner of a small round robin on val), or a field of the rows.
        length_controlled: Whether the score is the win rate at equal lengths.
        second: Another judge, which is asked about a sample to measure the agreement of the two.
        difficulty: Field of the rows that the length-controlled win rate takes into account.
        gamed: Judgements that regularise the length effect, as in AlpacaEval 2.
        name: Name of the judge in reports; None derives it.

    Raises:
        StudyError: If an option is invalid; the message names it, the value and the choices.
    """

    judge: Any
    picks: Picks | None = None
    reference: str = BEST_SINGLE
    length_controlled: bool = False
    second: Any = None
    difficulty: str | None = None
    gamed: GamedRows | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.picks is not None and self.picks not in get_args(Picks):
            raise StudyError(f"`judge.picks` must be 'judge' or 'metric', but got {self.picks!r}.")
        for key, judge in (("judge", self.judge), ("judge.second", self.second)):
            if judge is not None and not callable(getattr(judge, "compare", None)):
                raise StudyError(
                    f"`{key}` must have `compare(example, candidate, reference)`, as the judges of "
                    f"moa_dspy.judges have, but is a {type(judge).__name__}."
                )

    @classmethod
    def of(cls, judge: Any, *, has_metric: bool) -> JudgeOptions | None:
        """Return the options of a judge, given as None, a judge, or options.

        Raises:
            StudyError: If it is not defined which of metric and judge picks, or that is missing.
        """
        if judge is None:
            return None
        options = judge if isinstance(judge, JudgeOptions) else cls(judge=judge)
        if options.picks is None and has_metric:
            raise StudyError(
                "There is a metric and a judge, and both are measured: set which one decides, by "
                '`picks = "judge"` or `picks = "metric"` (in Python: JudgeOptions(judge=..., '
                "picks=...))."
            )
        if options.picks == "metric" and not has_metric:
            raise StudyError('`picks = "metric"` needs a metric, but there is none.')
        return options if options.picks else replace(options, picks="judge")

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of the judges' agents whose price is unknown."""
        members = [*members_of(self.judge), *members_of(self.second)]
        asking = [(member.pool, member.agent) for member in members if hasattr(member, "agent")]
        return tuple(agent for pool, agent in asking if agent in pool.unpriced)

    @property
    def label(self) -> str:
        """Readable name of the judge: its class, and the agents that it asks."""
        return self.name or label_of(self.judge)


def label_of(judge: Any) -> str:
    """Return a readable name of the judge: its class, and the agents that it asks."""
    agents = [str(member.agent) for member in members_of(judge) if hasattr(member, "agent")]
    return " ".join([type(judge).__name__, ", ".join(agents)]).strip()


def check_reference_field(name: str, agents: Sequence[str], rows: Mapping[str, Any]) -> None:
    """Check that every row has a response in a field.

    Args:
        name: The field.
        agents: Agent names, which are the other choices of a reference.
        rows: Rows by split; empty if they are not known.

    Raises:
        StudyError: If no row has such a field; the message names the choices.
        DataError: If the field of a row is empty.
    """
    fields = sorted({key for examples in rows.values() for row in examples for key in row.keys()})  # noqa: SIM118  # no dict
    if rows and name not in fields:
        raise StudyError(
            f"`judge.reference`: {name!r} is neither `{BEST_SINGLE}`, nor an agent of the pool "
            f"({', '.join(agents)}), nor a field of the rows ({', '.join(fields)})."
        )
    for split, split_rows in rows.items():
        check_outputs(split_rows, [name], where=f"Split {split!r}")


@dataclass(frozen=True, slots=True)
class RowJudgement:
    """The verdict of a judge, and of a metric beside it, on one answer.

    Attributes:
        preference: Preference for the answer over the reference, in [0, 1]; None if no verdict.
        excluded: Why there is no verdict; None if there is one.
        length: Length of the answer, in characters; 0 if there is no answer.
        reference_length: Length of the reference.
        difficulty: Difficulty of the example, if length-controlled win rates use it.
        metric: Value of the metric, if the study has one beside the judge.
    """

    preference: float | None
    excluded: str | None = None
    length: int = 0
    reference_length: int = 0
    difficulty: float = 0.0
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of one architecture on one example.

    Attributes:
        score: Value of the metric or judge that picks, in [0, 1]; 0 if there is no answer. If the
            judge gave no verdict, the mean of the rows that have one.
        layer: Texts that the last step read; for a single agent, its answer.
        calls: Requests, stored ones included.
        usd: Price, as if no call were stored.
        seconds: Critical path, as if no call were stored.
        tokens: Prompt and completion tokens; ``reply_tokens`` are the latter.
        failure: Why there is no answer; None if there is one.
        ballot: What a vote counts of a single agent's answer; None if there is no ballot.
        judged: Verdict on the answer, in a study with a judge.
        is_filled: Whether the judge gave no verdict, so that the score is a mean of other rows.
        answer: Text of the answer that was scored.
    """

    score: float
    layer: tuple[str, ...]
    calls: int
    usd: float
    seconds: float
    tokens: int = 0
    reply_tokens: int = 0
    failure: str | None = None
    ballot: Ballot | None = None
    judged: RowJudgement | None = None
    is_filled: bool = False
    answer: str = ""


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the metric per example."""
    return [outcome.score for outcome in outcomes]


def means(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return calls, usd, seconds and the share of failures per question."""
    n = len(outcomes)
    costs = {name: sum(getattr(o, name) for o in outcomes) / n for name in COSTS}
    return {**costs, "failures": sum(o.failure is not None for o in outcomes) / n}


VERSUS: Final = " vs "
"""Separator of the two systems of a task that a judge compares; no architecture contains it."""


class AsksAgents(Protocol):
    """Gives the answer of an architecture to a row; see ``Evaluator``."""

    def ask(self, architecture: Architecture, row: dspy.Example) -> Any:
        """Return the prediction; None if no model answered."""
        ...


def own_seconds(
    measured: Mapping[str, Sequence[Outcome]],
    pool: Mapping[str, Agent],
    num_threads: int,
    seconds: float,
    n_made: int,
) -> float:
    """Return the seconds of this process's own work per call made; 0 if no call was made.

    Args:
        measured: The outcomes of each agent.
        pool: Pool of the agents.
        num_threads: Requests at the same time, as far as an agent allows.
        seconds: Wall time of all calls.
        n_made: Calls that were made; calls found in the store took no waiting.
    """
    n_calls = sum(outcome.calls for outcomes in measured.values() for outcome in outcomes)
    if not n_made or not n_calls:
        return 0.0
    n_at_once = {n: min(num_threads, pool[n].max_concurrent or num_threads) for n in measured}
    waited = sum(
        outcome.seconds / n_at_once[name]
        for name, outcomes in measured.items()
        for outcome in outcomes
    )
    return max(0.0, seconds / n_made - waited / n_calls)

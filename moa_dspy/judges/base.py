"""The judges' protocol, their outcomes with counts, and the base of judges that ask a model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypeAlias

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.scope import call_scope, current_scope
from moa_dspy.errors import DataError, MetricError, MoaError, PoolError
from moa_dspy.pool import Pool
from moa_dspy.prediction import render

Exclusion: TypeAlias = Literal["missing", "failed", "unparsable"]
"""Why an example has no number: no response or record to judge; the judge's model did not answer;
its answer was not a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOutcome:
    """Outcome of a judge on one example: a number, or the reason why there is none."""

    excluded: Exclusion | None = None
    reason: str = ""
    """The judge's own reasoning where it gives any, or what is wrong; for people and optimizers."""
    n_sampled: int = 0
    """Verdicts taken as they were sampled although log-probabilities were asked for."""

    @property
    def is_tie(self) -> bool:
        """Whether the judge saw no difference."""
        return False

    @property
    def is_inconsistent(self) -> bool:
        """Whether the two orders of one pair preferred different systems."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(JudgeOutcome):
    """A preference between two systems on one example.

    Attributes:
        preference: In [0, 1], 1 if the candidate is preferred; None where ``excluded`` says why.
        verdicts: The preference for the candidate in each order that was asked; of two, the first
            is from the order in which the candidate was shown second.
    """

    preference: float | None = None
    verdicts: tuple[float, ...] = ()

    @property
    def is_tie(self) -> bool:
        """Whether neither is preferred, by the same word in every order."""
        return self.preference == 0.5 and not self.is_inconsistent

    @property
    def is_inconsistent(self) -> bool:
        """Whether the two orders of one pair preferred different systems."""
        return bool(self.verdicts) and min(self.verdicts) < 0.5 < max(self.verdicts)

    @property
    def turned(self) -> Judgement:
        """The judgement with candidate and reference exchanged."""
        if self.preference is None:
            return self
        verdicts = tuple(1 - verdict for verdict in reversed(self.verdicts))
        return replace(self, preference=1 - self.preference, verdicts=verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades(JudgeOutcome):
    """The grades of one system on one example.

    Attributes:
        grades: Per turn or skill, on the judge's scale; None where the reply was no grade.
        score: Mean grade, scaled to [0, 1]; None unless every grade is there, because means over
            different turns or skills cannot be compared.
    """

    grades: Mapping[str, float | None]
    score: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """Counts of the examples that a judge saw, by what became of them.

    ``n = judged + missing + failed + unparsable``, of which only ``judged`` have a number.
    ``inconsistent``, ``ties`` and ``sampled`` are parts of ``judged``.
    """

    n: int = 0
    judged: int = 0
    missing: int = 0
    failed: int = 0
    unparsable: int = 0
    inconsistent: int = 0
    ties: int = 0
    sampled: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[JudgeOutcome]) -> JudgeReport:
        """Count outcomes."""
        counts: Counter[str] = Counter()
        for outcome in outcomes:
            counts.update(_counted(outcome))
        return cls(**counts)

    def __add__(self, other: JudgeReport) -> JudgeReport:
        names = [field.name for field in fields(self)]
        return JudgeReport(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def excluded(self) -> int:
        """Examples without a number; none of them is scored."""
        return self.missing + self.failed + self.unparsable

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name)}" for name in _PARTS if getattr(self, name)]
        return f"{self.judged} of {self.n} judged" + "".join(f", {part}" for part in parts)


_PARTS = ("missing", "failed", "unparsable", "inconsistent", "ties", "sampled")


def _counted(outcome: JudgeOutcome) -> list[str]:
    if outcome.excluded is not None:
        return ["n", outcome.excluded]
    claims = {
        "inconsistent": outcome.is_inconsistent,
        "ties": outcome.is_tie,
        "sampled": outcome.n_sampled > 0,
    }
    return ["n", "judged", *(name for name, holds in claims.items() if holds)]


class OutcomeCounter:
    """Counts outcomes as they come; shared by the copies of a judge and safe for threads."""

    def __init__(self) -> None:
        self._report = JudgeReport()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> OutcomeCounter:
        # DSPy's optimizers judge with copies, whose exclusions must not go unseen.
        return self

    def __reduce__(self) -> tuple[type[OutcomeCounter], tuple[()]]:
        return OutcomeCounter, ()

    def add(self, outcome: JudgeOutcome) -> None:
        """Count one outcome."""
        with self._lock:
            self._report += JudgeReport.of([outcome])

    @property
    def report(self) -> JudgeReport:
        """The counts up to now."""
        with self._lock:
            return self._report


N_ALTERNATIVES = 5
"""Alternatives asked for per token, as many as AlpacaEval 2 asks for."""

_REFUSALS = ("UnsupportedFeatureError:", "InvalidRequestError:")


class Judge(Protocol):
    """Says per example which of two systems did better.

    The preference is in [0, 1]: 1 if the candidate is preferred, 0 if the reference is, 0.5 for a
    tie; None where there is no verdict, with the reason in ``excluded``. It is never a loss for
    want of a verdict. Arguments are only read. ``report`` counts what was asked up to now.
    """

    def compare(self, example: dspy.Example, candidate: Any, reference: Any, /) -> Judgement:
        """Compare two answers to one example."""
        ...

    def report(self) -> JudgeReport:
        """Return the counts of this judge and its copies."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's outputs by name, or why there are none."""

    values: Mapping[str, Any]
    logprobs: Any = None
    excluded: Exclusion | None = None
    reason: str = ""


class JudgeProgram(dspy.Module):
    """A judge that asks a model: a DSPy program to optimise, save, store and replay.

    The model is bound at each call, so no copy, reset or load can lose it; its temperature and
    ``max_tokens`` are those of the agent (8 tokens are enough where only a verdict is asked for).

    Args:
        pool: Where ``agent`` becomes an LM whose calls are stored.
        agent: The name of the judge's model in the pool.
        lm: Instead of both: an LM as it is.
        adapter: A DSPy adapter; None is plain chat, which wants one output.

    Raises:
        PoolError: Both or neither of ``lm`` and ``pool`` with ``agent``, or no such agent.
    """

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        agent: str | None = None,
        lm: dspy.LM | None = None,
        adapter: Any = None,
    ) -> None:
        super().__init__()
        self.pool, self.agent = _seat(pool, agent, lm)
        self.adapter = adapter or PlainChat()
        self.counter = OutcomeCounter()

    def report(self) -> JudgeReport:
        """Return the counts of every comparison of this judge and its copies."""
        return self.counter.report

    def ask(self, predictor: Any, inputs: Mapping[str, str], *, weighted: bool = False) -> Reply:
        """Ask the judge's model once; what the model does wrong is a reply too.

        Args:
            predictor: One of this judge's modules.
            inputs: Its inputs, guarded.
            weighted: Ask for log-probabilities too, and once more without if that is refused.

        Raises:
            MoaError: If the reason for no reply is not the model: budget, replay, store, pool.
        """
        config = {"logprobs": True, "top_logprobs": N_ALTERNATIVES} if weighted else {}
        lm = self.pool.lm(self.agent)
        # Sample 0: a judge is not part of what it judges, which may be one of several samples.
        outer = current_scope()
        with call_scope(sample=0) as scope, dspy.context(lm=lm, adapter=self.adapter):
            try:
                prediction = predictor(**inputs, config=config)
            except Exception as error:
                raise_if_ours(error)
                if weighted and _refuses(error):
                    return self.ask(predictor, inputs)
                is_unread = isinstance(error, dspy.AdapterParseError)
                why = f"{type(error).__name__}: {error}"
                return Reply({}, excluded="unparsable" if is_unread else "failed", reason=why)
            finally:
                # What surrounds the judge counts what it cost.
                outer.log.extend(scope.log)
        values = {name: prediction[name] for name in prediction.keys()}  # noqa: SIM118  # no dict
        return Reply(values, values.pop("logprobs", None), reason=str(values.get("reasoning", "")))

    def count(self, outcome: JudgeOutcome) -> None:
        """Add one outcome to the report."""
        self.counter.add(outcome)


def as_judgement(found: Any, example: dspy.Example) -> Judgement:
    """Return what a judge returned as a judgement: a number is one too, and None is unparsable.

    Raises:
        MetricError: It is none of these, or a preference outside [0, 1].
    """
    if found is None:
        return Judgement(excluded="unparsable", reason="The judge returned None.")
    if isinstance(found, Judgement):
        value = found.preference
        if found.excluded is not None if value is None else 0 <= value <= 1:
            return found
    elif isinstance(found, int | float) and 0 <= found <= 1:
        return Judgement(preference=float(found))
    raise MetricError(
        f"The judge must return a Judgement, or a preference in [0, 1], but returned {found!r} on "
        f"example {id_of(example)!r}."
    )


def raise_if_ours(error: BaseException, *, but: tuple[type[MoaError], ...] = ()) -> None:
    """Raise the ``MoaError`` that DSPy may have wrapped in ``error``: it is no model's failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoaError) and not isinstance(cause, but):
            raise cause
        cause = cause.__cause__


def _refuses(error: Exception) -> bool:
    """Tell whether an endpoint refused the request as such; a stored refusal has only its text."""
    if isinstance(error, dspy.ContextWindowExceededError):
        return False
    if isinstance(error, (dspy.LMUnsupportedFeatureError, dspy.LMInvalidRequestError)):
        return True
    return isinstance(error, dspy.LMProviderError) and any(r in str(error) for r in _REFUSALS)


def _seat(pool: Pool | None, agent: str | None, lm: dspy.LM | None) -> tuple[Pool, str]:
    if lm is not None and pool is None and agent is None:
        return Pool.from_lms({"judge": lm}), "judge"
    if lm is None and pool is not None and agent is not None:
        return pool, pool[agent].name
    given = [n for n, v in (("pool", pool), ("agent", agent), ("lm", lm)) if v is not None]
    raise PoolError(
        "A judge needs either `lm`, or `pool` and `agent`, "
        f"but got {' and '.join(given) or 'none of them'}."
    )


_BESIDE = ("mixture", "logprobs", "reasoning")


def instruction_of(example: dspy.Example) -> str:
    """Return the example's inputs as one text: the value alone, or ``name: value`` lines.

    Raises:
        DataError: The example does not say which of its fields are inputs.
    """
    try:
        inputs = example.inputs().toDict()
    except ValueError as error:
        raise DataError(f"Example {id_of(example)!r}: {error}") from error
    if not inputs:
        raise DataError(f"Example {id_of(example)!r} has no inputs to judge a response to.")
    return render(inputs)


def id_of(example: dspy.Example) -> str:
    """Return the field ``id`` as text; "?" of an example without one, for messages only."""
    return str(example.get("id", "?"))


def texts_of(answer: Any) -> tuple[str, ...] | None:
    """Return an answer as its texts, one per turn; None where there is no answer.

    Of a prediction, a mixture's facts, log-probabilities and, beside other fields, the reasoning
    are left out; what remains is one text, or, of a single field that holds a list, one per turn.
    """
    if answer is None:
        return None
    if isinstance(answer, dspy.Prediction):
        return _of_prediction(answer)
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return tuple(map(str, answer)) or None
    return (str(answer),)


def answer_text(answer: Any, example: dspy.Example) -> str | None:
    """Return an answer of one turn as its text; None where there is no answer.

    Raises:
        DataError: The answer has several turns.
    """
    texts = texts_of(answer)
    if texts is not None and len(texts) != 1:
        raise DataError(
            f"Example {id_of(example)!r}: this judge reads one response, but got {len(texts)}; "
            "several turns are for GradeJudge."
        )
    return texts[0] if texts else None


def _of_prediction(prediction: dspy.Prediction) -> tuple[str, ...] | None:
    values = {name: prediction[name] for name in prediction.keys()}  # noqa: SIM118  # not a dict
    shown = {name: value for name, value in values.items() if name not in _BESIDE}
    if not shown and "reasoning" in values:
        shown = {"reasoning": values["reasoning"]}
    if not shown or all(value is None for value in shown.values()):
        return None
    if len(shown) == 1:
        return texts_of(next(iter(shown.values())))
    return (render(shown),)

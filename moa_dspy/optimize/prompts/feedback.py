"""Rows with their references, the metric of an optimizer, and feedback in words on both.

The feedback says which references of a row were right, and how the answer used them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.adapters import neutral
from moa_dspy.aggregators import NORMALISERS, ballot_of
from moa_dspy.errors import MoaError, moa_error_of
from moa_dspy.optimize.metric import CheckedMetric, score_of
from moa_dspy.optimize.nodes import place_of
from moa_dspy.prediction import Response, render
from moa_dspy.signatures import REFERENCES

RIGHT: Final = 0.5
"""From this score on an answer counts as right."""

_SHOWN: Final = 160
"""Characters of a reference, or of an expected answer, that the feedback quotes."""

BEST: Final = "best"
"""The output field of a ranker: the number of a reference."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row and its references.

    Attributes:
        row: The user's own example, with an id.
        number: Its place among the rows, from 0.
        read: The responses that the target reads, in the order in which it reads them.
        references: Their texts as they are sent: guarded, and cut if need be.
        failure: Why there are no references; None if there are.
    """

    row: dspy.Example
    number: int
    read: tuple[Response, ...] = ()
    references: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def example(self) -> dspy.Example:
        """The row with its references as one more input."""
        inputs = self.row.inputs().keys()
        made = self.row.copy(**{REFERENCES: list(self.references)})
        return made.with_inputs(*inputs, REFERENCES)


StoredRows: TypeAlias = Mapping[object, StoredRow]
"""Rows whose references are known nodes of a cache, by their ``place_of_row``."""


def place_of_row(inputs: Mapping[str, Any]) -> object:
    """Return a key that rows with equal inputs share; references among them do not count."""
    return place_of({name: value for name, value in inputs.items() if name != REFERENCES})


class NoAnswer(dspy.Prediction):
    """An empty prediction, as the aggregator failed: ``reason`` has error type and message."""

    reason = ""  # an attribute of the class, so DSPy makes no field of it

    def __init__(self, reason: str = "") -> None:
        super().__init__()
        self.reason = reason


@dataclass(slots=True)
class Stop:
    """The first error that is not due to a prompt; optimizers would take it for a bad score."""

    error: MoaError | None = None

    def check(self) -> None:
        """Raise the error again, if there is one."""
        if self.error is not None:
            raise self.error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the first such error that is raised inside; raise an earlier one at once."""
        self.check()
        try:
            yield
        except Exception as error:
            cause = moa_error_of(error)
            if cause is None:
                raise
            self.error = self.error or cause
            if self.error is error:
                raise
            raise self.error from None


class ScoreWithFeedback(dspy.Prediction):
    """A score with feedback; its truth value is that of the score."""

    def __bool__(self) -> bool:
        return bool(self.score)


@dataclass(frozen=True, slots=True)
class ReferenceFeedback:
    """A metric with GEPA's signature, with feedback on the references and their use.

    Only rows with stored references get this feedback; no other row is ever quoted. The metric's
    own feedback comes first.

    Attributes:
        metric: The user's metric.
        rows: Those that may be quoted, with their references.
        outputs: Names of the signature's output fields.
        normalise: Name of the comparison of answers.
        judges_references: Whether the metric can score a reference as it scores an answer; in a
            larger program it cannot, and references are only quoted.
        stop: Keeps the metric's first error, which ends the tuning instead of scoring 0.
    """

    metric: CheckedMetric
    rows: StoredRows
    outputs: tuple[str, ...]
    normalise: str = "text"
    judges_references: bool = True
    stop: Stop = field(default_factory=Stop)
    _scores: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceFeedback:
        return self

    def value(self, example: Any, prediction: Any, *rest: Any) -> Any:
        """Return the metric's own value, which may be no number; 0 where there is no answer.

        Raises:
            MoaError: As ``CheckedMetric.value``, and at every call after that.
        """
        if isinstance(prediction, NoAnswer):
            return 0.0
        with self.stop.watched():
            return self.metric.value(example, prediction, *rest)

    def __call__(self, gold: Any, pred: Any, *rest: Any) -> ScoreWithFeedback:
        """Return score and feedback; raises as ``value`` does."""
        value = self.value(gold, pred, *rest)
        score = score_of(value)
        parts = value.toDict() if isinstance(value, dspy.Prediction) else {}
        found = self.rows.get(place_of_row(gold.inputs()))
        about = self._about(found, pred, score) if found else [f"Score {score:g}."]
        lines = [str(parts.pop("feedback", None) or ""), *about]
        return ScoreWithFeedback(
            **{**parts, "score": score, "feedback": "\n".join(filter(None, lines))}
        )

    def _about(self, found: StoredRow, pred: Any, score: float) -> Iterator[str]:
        has_answer = not isinstance(pred, NoAnswer)
        if has_answer:
            yield f"The answer is {_word(score)} (score {score:g})."
        else:
            yield f"There is no answer: {_short(pred.reason)}"
        if known := {name: found.row[name] for name in self.outputs if name in found.row}:
            yield f"The expected answer: {_short(render(known))}"
        if not self.judges_references:
            yield from (f"Reference {n}: {_short(r.text)}" for n, r in enumerate(found.read, 1))
            return
        normalised = NORMALISERS[self.normalise]
        mine = ballot_of(pred, self.outputs, normalised) if has_answer else None
        answers = [ballot_of(read.values, self.outputs, normalised) for read in found.read]
        worths = self.reference_scores(found)
        for n, (read, answer, worth) in enumerate(zip(found.read, answers, worths, strict=True), 1):
            has_misled = answer == mine and worth < RIGHT and score < RIGHT
            effect = " and misled the answer" if has_misled else ""
            yield f"Reference {n} is {_word(worth)}{effect}: {_short(read.text)}"
        if mine is not None and answers:
            yield from _use(mine, answers, worths, score)

    def reference_scores(self, found: StoredRow) -> tuple[float, ...]:
        """Return the metric of every reference of a row; computed once."""
        if found.number not in self._scores:
            self._scores[found.number] = tuple(
                score_of(self.value(found.row, dspy.Prediction(**response.values)))
                for response in found.read
            )
        return self._scores[found.number]

    def labelled(self, found: StoredRow, signature: Any) -> dspy.Example:
        """Return the row with its references and, for a ranker, the number of the first right one.

        Raises:
            MetricError: If the metric cannot score a reference.
        """
        if not self.judges_references:
            # In a larger program the questions to its mixture are known only while it runs.
            return found.row
        example: dspy.Example = found.example
        if BEST in signature.output_fields and BEST not in self.outputs:
            worths = self.reference_scores(found)
            right = [number for number, worth in enumerate(worths, start=1) if worth >= RIGHT]
            example = example.copy(**{BEST: str(right[0])}) if right else example
        return example


def _use(mine: Any, answers: Sequence[Any], worths: Sequence[float], score: float) -> Iterator[str]:
    """Yield sentences on how the answer relates to the references."""
    copied = [number for number, answer in enumerate(answers, start=1) if answer == mine]
    right = [number for number, worth in enumerate(worths, start=1) if worth >= RIGHT]
    if copied:
        yield f"The answer says the same as {_list(copied)}."
    elif score >= RIGHT and not right:
        yield "The answer is in none of the references: all of them were rightly ignored."
    else:
        yield "The answer says the same as none of the references."
    if score < RIGHT and right:
        yield f"It contradicts {_list(right)}, right all along."
    most, count = Counter(answers).most_common(1)[0]
    if 2 * count > len(answers) > 1:
        followed = "follows" if mine == most else "goes against"
        worth = _word(worths[answers.index(most)])
        yield f"It {followed} the majority of the references, which is {worth}."


def _list(numbers: Sequence[int]) -> str:
    shown = " and ".join(map(str, numbers))
    return f"reference {shown}" if len(numbers) == 1 else f"references {shown}"


def _word(score: float) -> str:
    return "right" if score >= RIGHT else "wrong"


def _short(text: str) -> str:
    # A model's answer must stay data in the prompt of the next one too.
    line = " ".join(neutral(text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."

"""Metrics of checkable answers: by the final answer, or field by field."""

from __future__ import annotations

import json
import re
import string
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any, Final, Literal

import dspy

from moa_dspy.data.answers import (
    answer_words,
    normalise_answer,
    normalise_text,
    normalise_version,
)
from moa_dspy.data.tables import accepted_answers, comparable, is_absent, is_container, plain_text
from moa_dspy.errors import MetricError, StudyError


def answer_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
    *,
    as_written: bool = False,
) -> float:
    """Return 1.0 if `prediction.answer` ends in `example.answer`, else 0.0.

    Both are normalised by `normalise_answer`, except that a right answer of several words must be
    present in full. A prediction without text is always wrong. A predicted list or model is
    compared by value, with its texts normalised. All DSPy optimizers accept this metric.

    Args:
        example: Has a field `answer`; a list holds all accepted answers.
        prediction: Has a field `answer`; numbers are converted to text, None is a missing answer.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.
        as_written: Whether numbers must be written in the same way: then "3.10" is not "3.1".

    Raises:
        MetricError: If the right answer is missing, or is a mapping with unknown keys.
    """
    answer, gold = prediction.answer, example.answer
    if not isinstance(answer, str) and is_container(answer):
        return float(_is_same_value(gold, answer, as_written))
    if isinstance(gold, str) and is_absent(gold):
        return 0.0
    rights = [plain_text(right) for right in accepted_answers(gold)]
    text = "" if is_absent(answer) else plain_text(answer)
    is_right = any(_ends_in(text, right, as_written) for right in rights)
    return float(is_right and not (len(rights) > 1 and _lists(text, rights, as_written)))


def version_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """Score as `answer_match`, with numbers as written: "3.10" is not "3.1", nor "42.0" "42"."""
    return answer_match(example, prediction, as_written=True)


def _is_same_value(right: Any, answer: Any, as_written: bool) -> bool:
    normalise = normalise_version if as_written else normalise_answer
    rights = [right, *(right if isinstance(right, list | tuple) else ())]
    value = comparable(answer, normalise)
    return any(comparable(accepted, normalise) == value for accepted in rights)


def _lists(text: str, rights: list[str], as_written: bool) -> bool:
    """Return whether a text consists only of several accepted answers."""
    accepted = [answer_words(right, as_written=as_written) for right in rights]
    left = answer_words(text, as_written=as_written)
    if left in accepted:
        return False
    while left:
        ends = [words for words in accepted if words and left[-len(words) :] == words]
        if not ends:
            return False
        left = left[: -max(map(len, ends))]
    return True


def _ends_in(text: str, right: str, as_written: bool) -> bool:
    words = answer_words(right, as_written=as_written)
    if words:
        return answer_words(text, as_written=as_written)[-len(words) :] == words
    answer = normalise_answer(text)
    return bool(answer) and answer == normalise_answer(right)


@dataclass(frozen=True, slots=True)
class FieldMetric:
    """A DSPy metric that compares output fields with the row's fields of the same names.

    The score is the mean over the fields, by weight. A missing field of the prediction scores 0.

    Attributes:
        name: One of ``FIELD_METRICS``.
        weights: Weight by output field, each above 0.
        tolerance: For ``numeric_match``: largest difference, as a share of the right number.
        choices: For ``choice``: the allowed texts by field; without them, the answer must end in
            the right text.

    Raises:
        StudyError: If the name is unknown, no field is weighted, or a number is out of range.
    """

    name: str
    weights: Mapping[str, float]
    tolerance: float = 0.0
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in FIELD_METRICS:
            choices = ", ".join(sorted(FIELD_METRICS))
            raise StudyError(f"Unknown metric {self.name!r}; known ones are {choices}.")
        if not self.weights or not all(
            0 < weight < float("inf") for weight in self.weights.values()
        ):
            raise StudyError(
                "`task.weights` must give every field that is scored a number above 0, but got "
                f"{dict(self.weights)}."
            )
        if self.tolerance and self.name != "numeric_match":
            raise StudyError(
                "`task.tolerance` can only be set with `numeric_match`, but the metric is "
                f"{self.name!r}."
            )
        if not 0 <= self.tolerance < 1:
            raise StudyError(f"`task.tolerance` must be in [0, 1), but got {self.tolerance}.")

    @classmethod
    def of(
        cls,
        name: str,
        signature: Any,
        *,
        weights: Mapping[str, float] | None = None,
        tolerance: float = 0.0,
    ) -> FieldMetric:
        """Return the metric ``name`` for the outputs of a signature.

        Args:
            name: One of ``FIELD_METRICS``.
            signature: A DSPy signature, or its text; a ``Literal`` or ``Enum`` gives the choices.
            weights: Weights by output field; default: 1 for each except ``reasoning``.
            tolerance: See the attribute.

        Raises:
            StudyError: If an option is not valid, or a weighted field is not an output.
        """
        checked: Any = dspy.ensure_signature(signature)
        outputs = checked.output_fields
        field_weights = dict(weights or {name: 1.0 for name in outputs if name != "reasoning"})
        if unknown := sorted(set(field_weights) - set(outputs)):
            raise StudyError(
                f"`task.weights`: {unknown[0]!r} is not an output of the signature, whose "
                f"outputs are {', '.join(outputs)}."
            )
        listed = {name: choices_of(outputs[name].annotation) for name in field_weights}
        return cls(
            name, field_weights, tolerance, {k: texts for k, texts in listed.items() if texts}
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The output fields that are scored."""
        return tuple(self.weights)

    def __call__(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> float:
        """Return the weighted mean, in [0, 1].

        Raises:
            MetricError: If a field of the row has no right answer, or an answer that cannot be
                compared.
        """
        total = sum(self.weights.values())
        return (
            sum(
                weight * self._score(name, example.get(name, None), getattr(prediction, name, None))
                for name, weight in self.weights.items()
            )
            / total
        )

    def _score(self, name: str, right: Any, answer: Any) -> float:
        if self.name in ("json_match", "labels"):
            return FIELD_METRICS[self.name](right, answer)
        rights = accepted_answers(right)
        if is_absent(answer):
            return 0.0
        if self.name == "numeric_match":
            return numeric_match(rights, answer, self.tolerance)
        if self.name == "choice":
            return choice_match(rights, answer, self.choices.get(name, ()))
        return FIELD_METRICS[self.name](rights, answer)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the texts of a ``Literal`` or an ``Enum``; none for other types."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(plain_text(member) for member in annotation)
    is_literal = typing.get_origin(annotation) is Literal
    return tuple(map(plain_text, typing.get_args(annotation))) if is_literal else ()


def exact_match(rights: Sequence[Any], answer: Any) -> float:
    """Return 1.0 for an accepted answer, ignoring blanks, case and Unicode spelling, else 0.0."""
    value = comparable(answer, normalise_text)
    texts = {normalise_text(plain_text(right)) for right in rights}
    is_same = any(comparable(right, normalise_text) == value for right in (*rights, list(rights)))
    return float(
        is_same or (not is_container(answer) and normalise_text(plain_text(answer)) in texts)
    )


def contains(rights: Sequence[Any], answer: Any) -> float:
    """Return 1.0 if the text contains an accepted answer as whole words, else 0.0."""
    text = _words_of(plain_text(answer))
    for right in rights:
        words = _words_of(plain_text(right))
        starts = range(len(text) - len(words) + 1)
        if words and any(text[start : start + len(words)] == words for start in starts):
            return 1.0
    return 0.0


def f1(rights: Sequence[Any], answer: Any) -> float:
    """Return the best F1 score of words over the accepted answers, as in SQuAD."""
    return max(
        _f1(_squad_words(plain_text(right)), _squad_words(plain_text(answer))) for right in rights
    )


def numeric_match(rights: Sequence[Any], answer: Any, tolerance: float = 0.0) -> float:
    """Return 1.0 if the answer's last number is accepted, within ``tolerance``, else 0.0.

    A comma before one, two or more than three digits is a decimal comma, as are those of
    "3.456,50" and "0,125"; any other comma groups thousands, as in "1,500".
    """
    number = _last_number(answer)
    for right in rights:
        expected = _last_number(right)
        if expected is None:
            raise MetricError(f"The right answer must hold a number, but is {right!r}.")
        if number is not None and abs(number - expected) <= Fraction(str(tolerance)) * abs(
            expected
        ):
            return 1.0
    return 0.0


def choice_match(rights: Sequence[Any], answer: Any, choices: Sequence[str] = ()) -> float:
    """Return 1.0 if the answer names exactly one choice and it is accepted, else 0.0.

    The last line that names a choice counts. A choice of one letter must be a capital there, unless
    it is the whole answer.
    """
    texts = [plain_text(right) for right in rights]
    if not choices:
        return float(any(_ends_in(plain_text(answer), text, as_written=False) for text in texts))
    accepted = {normalise_text(text) for text in texts}
    whole = normalise_text(plain_text(answer)).strip(string.punctuation + " ")
    if whole in {normalise_text(choice) for choice in choices}:
        return float(whole in accepted)
    for line in reversed(plain_text(answer).splitlines()):
        if named := _named(line, choices):
            return float(len(named) == 1 and named <= accepted)
    return 0.0


def json_match(right: Any, answer: Any) -> float:
    """Return the share of keys with equal values among all keys of both objects.

    For other values it is 1.0 if they are equal, else 0.0. A text is read as JSON; of an answer
    with further text, the part from the first to the last bracket is read.

    Raises:
        MetricError: If the right answer is missing, or is a text that is not JSON.
    """
    expected = _json(right)
    if is_absent(right) or expected is _NO_JSON:
        raise MetricError(f"The right answer must be JSON, but is {right!r}.")
    value = _json(answer)
    if value is _NO_JSON:
        return 0.0
    if not isinstance(expected, Mapping) or not isinstance(value, Mapping):
        return float(comparable(value, normalise_text) == comparable(expected, normalise_text))
    keys = {*expected, *value}
    equal = [
        key in expected
        and key in value
        and comparable(value[key], normalise_text) == comparable(expected[key], normalise_text)
        for key in keys
    ]
    return sum(equal) / len(keys) if keys else 1.0


def label_match(right: Any, answer: Any) -> float:
    """Return the F1 of two sets of labels, in any order: twice the shared ones over all of both.

    A text is read as a JSON list, or cut at commas, semicolons, bars and line ends; bullets,
    quotes and case are ignored. Two empty sets are equal.

    Raises:
        MetricError: If the right answer is missing; an empty list is not.
    """
    if is_absent(right):
        raise MetricError(f"The right answer must be labels, or an empty list, but is {right!r}.")
    expected, given = (set(map(normalise_text, _labels(value))) for value in (right, answer))
    n_all = len(expected) + len(given)
    return 2 * len(expected & given) / n_all if n_all else 1.0


FIELD_METRICS: Final[dict[str, Callable[..., float]]] = {
    "choice": choice_match,
    "contains": contains,
    "exact_match": exact_match,
    "f1": f1,
    "json_match": json_match,
    "labels": label_match,
    "numeric_match": numeric_match,
}
"""Names in a study file, with functions of the accepted answers and the given answer to [0, 1]."""

_ARTICLES: Final = frozenset({"a", "an", "the"})
_NUMBER_WORD: Final = re.compile(
    r"(?:(?<![0-9])-)?[0-9]+(?:\.[0-9]+)?(?:/[0-9]*[1-9][0-9]*)?(?:e[-+]?[0-9]{1,3})?"
)
_DECIMAL_COMMA: Final = re.compile(
    r"(?<![0-9.,(\[{])(?:(?P<groups>[0-9]{1,3}(?:\.[0-9]{3})+),(?P<part>[0-9]+)"
    r"|(?P<whole>[0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})"
    r"|(?P<plain>[0-9]+),(?P<rest>[0-9]{1,2}|[0-9]{4,}|(?<=(?<![0-9])0,)[0-9]{3}))"
    r"(?![0-9]|[.,][0-9])"
)
"""Numbers with a decimal comma, with points between thousands, or grouped as in "12,34,567"."""

_NO_JSON: Final = object()


def _words_of(text: str) -> list[str]:
    pieces = (piece.strip(string.punctuation) for piece in normalise_text(text).split())
    return [piece for piece in pieces if piece]


def _squad_words(text: str) -> list[str]:
    kept = normalise_text(text).translate(str.maketrans("", "", string.punctuation))
    return [word for word in kept.split() if word not in _ARTICLES]


def _f1(right: Sequence[str], answer: Sequence[str]) -> float:
    if not right or not answer:
        return float(list(right) == list(answer))
    n_common = (Counter(right) & Counter(answer)).total()
    return 2 * n_common / (len(right) + len(answer))


def _last_number(value: Any) -> Fraction | None:
    text = _DECIMAL_COMMA.sub(_with_point, plain_text(value))
    for word in reversed(answer_words(text)):
        for number in reversed(_NUMBER_WORD.findall(word)):
            whole, slash, exponent = number.partition("e")
            return Fraction(whole) * Fraction(10) ** int(exponent) if slash else Fraction(whole)
    return None


def _with_point(match: re.Match[str]) -> str:
    whole = match["groups"] or match["whole"] or match["plain"]
    part = match["part"] or match["rest"]
    return re.sub("[.,]", "", whole) + (f".{part}" if part else "")


def _named(line: str, choices: Sequence[str]) -> set[str]:
    """Return the choices in a line as whole words, without those inside a longer choice."""
    named, left = set(), line
    for choice in sorted(choices, key=len, reverse=True):
        flags = re.NOFLAG if len(choice) == 1 else re.IGNORECASE
        pattern = re.compile(rf"(?<!\w){re.escape(choice)}(?!\w)", flags)
        if pattern.search(left):
            named.add(normalise_text(choice))
            left = pattern.sub(" ", left)
    return named


def _labels(value: Any) -> list[str]:
    if isinstance(value, str):
        read = _json(value) if "[" in value else _NO_JSON
        value = read if isinstance(read, list) else re.split(r"[,;|\n]", value)
    if is_absent(value):
        return []
    items = value if isinstance(value, list | tuple | set | frozenset) else [value]
    texts = (re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", plain_text(item)) for item in items)
    return [text for text in (text.strip(" \t\"'`.*") for text in texts) if text]


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    start = min((at for at in map(value.find, "[{") if at >= 0), default=0)
    end = max(value.rfind("]"), value.rfind("}")) + 1
    for text in (value, value[start:end]):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            continue
    return _NO_JSON

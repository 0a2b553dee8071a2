"""Typed values as data: what is absent, a number's plain text, and equality beyond texts."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Number
from typing import Any

from pydantic import BaseModel

from moa_dspy.data.answers import normalise_text
from moa_dspy.errors import MetricError

_LONGEST_EXPONENT = 1000
_ABSENT_TYPES = ("NAType", "NaTType")
"""Of pandas' own values for a missing cell, which must not be imported for this."""


def is_absent(value: Any) -> bool:
    """Say whether a cell holds no value: None, NaN, pandas' NA and NaT, or a blank text.

    A text such as "None", "nan" or "N/A" is a value: it may be the right answer.
    """
    if value is None or type(value).__name__ in _ABSENT_TYPES:
        return True
    if isinstance(value, str):
        return not value.strip()
    return _is_nan(value)


def holds_answer(value: Any) -> bool:
    """Say whether a cell of right answers holds at least one; a list may hold none."""
    value = _python(value)
    if isinstance(value, Mapping):
        return any(map(holds_answer, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_answer, value))
    return not is_absent(value)


def plain_text(value: Any) -> str:
    """Return a value's text; of a number without an exponent, and without ".0"."""
    if isinstance(value, Enum):
        return plain_text(value.value)
    value = _python(value)
    if isinstance(value, Number) and not isinstance(value, bool | complex):
        return _number(value)
    return str(value)


def comparable(value: Any, normalise: Callable[[str], str]) -> Hashable:
    """Return what is equal for equal values, and only for these.

    Numbers are equal by value, mappings and sets whatever their order, models and dataclasses
    field by field; texts, wherever they stand, after ``normalise`` (keys by `normalise_text`).
    None, booleans, numbers and texts are never equal to each other.

    Args:
        value: Anything that a signature's output can be.
        normalise: Says when two texts are equal.
    """
    if isinstance(value, Enum):
        return ("enum", type(value).__qualname__, value.name)
    value = _python(value)
    if isinstance(value, str):
        return normalise(value)
    if value is None or _is_nan(value):
        return ("absent",)
    if isinstance(value, bool | bytes):
        return (type(value).__name__, value)
    if isinstance(value, Number):
        return ("number", str(value) if isinstance(value, complex) else _number(value))
    if isinstance(value, datetime.date | datetime.time):
        return ("time", type(value).__name__, _moment(value))
    return _container(value, normalise)


def _container(value: Any, normalise: Callable[[str], str]) -> Hashable:
    if fields := _fields(value):
        return (type(value).__qualname__, comparable(fields, normalise))
    if isinstance(value, Mapping):
        pairs = [
            (comparable(k, normalise_text), comparable(v, normalise)) for k, v in value.items()
        ]
        return ("mapping", *sorted(pairs, key=repr))
    if isinstance(value, Set):
        return ("set", *sorted({comparable(item, normalise) for item in value}, key=repr))
    if isinstance(value, Sequence):
        return ("list", *(comparable(item, normalise) for item in value))
    return (type(value).__qualname__, normalise(str(value)))


def accepted_answers(gold: Any) -> list[Any]:
    """Return the answers that count as right: the value itself, or each of a list of them.

    A mapping is read as SQuAD ("text") and TriviaQA ("value" and "aliases") write theirs.

    Raises:
        MetricError: There is none, or the mapping has none of these keys.
    """
    if isinstance(gold, Mapping):
        held = [gold[key] for key in ("text", "value", "aliases") if key in gold]
        if not held:
            raise MetricError(
                "The right answer must be a value, a list of accepted ones, or a mapping with "
                f"'text', or 'value' and 'aliases', but has the keys {', '.join(map(str, gold))}."
            )
        found = [answer for part in held for answer in _items(part)]
    else:
        found = _items(gold)
    if not (present := [answer for answer in found if not is_absent(answer)]):
        raise MetricError(f"The right answer is missing: it is {gold!r}.")
    return present


def is_container(value: Any) -> bool:
    """Say whether a value holds others, such as a list, a mapping or a model."""
    value = _python(value)
    is_many = isinstance(value, Mapping | Set | Sequence) and not isinstance(value, str | bytes)
    return is_many or bool(_fields(value))


def _items(value: Any) -> list[Any]:
    value = _python(value)
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _python(value: Any) -> Any:
    """Return numpy's scalars and arrays as Python's values."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
    return {}


def _is_nan(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float) and math.isnan(value)


def _moment(value: datetime.date | datetime.time) -> str:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    return value.isoformat()


def _number(value: Any) -> str:
    """Return the only text of a number."""
    if isinstance(value, Fraction) and value.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    exact = _decimal(value)
    if not exact.is_finite():
        return str(exact).lower()
    sign, digits, exponent = exact.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return "0"
    kept = text.rstrip("0")
    power = int(exponent) + len(text) - len(kept)
    if abs(power) > _LONGEST_EXPONENT + len(kept):
        shown = f"{kept}e{power}"
    elif power >= 0:
        shown = kept + "0" * power
    else:
        padded = kept.rjust(1 - power, "0")
        shown = f"{padded[:power]}.{padded[power:]}"
    return f"-{shown}" if sign else shown


def _decimal(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    # The digits that Python shows, not those of the nearest binary number.
    return Decimal(repr(float(value)) if isinstance(value, float) else int(value))

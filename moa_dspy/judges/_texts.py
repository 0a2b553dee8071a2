"""Examples and predictions as the texts that a judge reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from moa_dspy.errors import DataError
from moa_dspy.response import render

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


def text_of(answer: Any, example: dspy.Example) -> str | None:
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

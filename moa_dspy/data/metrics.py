"""Metrics of short answers: right or wrong by the final answer, however it is written."""

from __future__ import annotations

from typing import Any

import dspy

from moa_dspy.data.answers import answer_words, normalise_answer, normalise_version
from moa_dspy.data.values import accepted_answers, comparable, is_absent, is_container, plain_text


def answer_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
    *,
    as_written: bool = False,
) -> float:
    """1.0 if `prediction.answer` ends in `example.answer`, else 0.0; any DSPy optimizer takes it.

    Both are read as `normalise_answer` reads them, except that a right answer of several words
    must be there in full. A prediction without text is wrong, whatever the right answer is. A list
    or a model that was predicted is compared by value, with texts read as answers.

    Args:
        example: Has a field `answer`; a list holds every answer that is accepted.
        prediction: Has a field `answer`; numbers count as their plain text, None as none.
        trace: Not read; here for DSPy's optimizers, like the two below.
        pred_name: Not read.
        pred_trace: Not read.
        as_written: Whether numbers must be written alike: then "3.10" is not "3.1".

    Raises:
        MetricError: The right answer is missing, or a mapping of unknown keys.
    """
    given = prediction.answer
    if is_container(given):
        return float(_is_same_value(example.answer, given, as_written))
    if is_absent(example.answer) and isinstance(example.answer, str):
        return 0.0
    rights = [plain_text(right) for right in accepted_answers(example.answer)]
    text = "" if is_absent(given) else plain_text(given)
    is_right = any(_ends_in(text, right, as_written) for right in rights)
    return float(is_right and not (len(rights) > 1 and _lists(text, rights, as_written)))


def version_match(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float:
    """`answer_match` with numbers as they are written: "3.10" is not "3.1", nor "42.0" "42"."""
    return answer_match(example, prediction, as_written=True)


def _is_same_value(right: Any, given: Any, as_written: bool) -> bool:
    normalise = normalise_version if as_written else normalise_answer
    rights = [right, *(right if isinstance(right, list | tuple) else ())]
    value = comparable(given, normalise)
    return any(comparable(one, normalise) == value for one in rights)


def _lists(text: str, rights: list[str], as_written: bool) -> bool:
    """Say whether a text is nothing but several accepted answers, one after the other."""
    known = [answer_words(right, as_written=as_written) for right in rights]
    left = answer_words(text, as_written=as_written)
    if left in known:
        return False
    while left:
        ends = [words for words in known if words and left[-len(words) :] == words]
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

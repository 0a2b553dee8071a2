from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from dspy import lm15

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import ArchitectureError, LayerFailedError, PoolError
from moa_dspy.pool import Pool
from moa_dspy.prediction import MixturePrediction
from moa_dspy.presets import SelfMoASeq
from moa_dspy.testing import Script, scripted_pool


def joined(prompt: str) -> str:
    """Says what was read, so that every step can be seen in the answer."""
    return "(" + " ".join(re.findall(r'"(.*)"', prompt)) + ")"


def counting() -> Script:
    numbers = iter(range(99))
    return lambda _: str(next(numbers))


def ask(pool: Pool, *, is_async: bool = False, **options: Any) -> MixturePrediction:
    program = SelfMoASeq(
        "question -> answer", "a", pool=pool, aggregator="b", adapter=PlainChat(), **options
    )
    found = asyncio.run(program.acall(question="q")) if is_async else program(question="q")
    assert isinstance(found, MixturePrediction)
    return found


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("samples", "window", "answer"),
    [
        (1, 3, "0"),
        (3, 3, "(0 1 2)"),
        (4, 3, "((0 1 2) 3)"),
        (6, 3, "(((0 1 2) 3 4) 5)"),
        (4, 2, "(((0 1) 2) 3)"),
        (5, 9, "(0 1 2 3 4)"),
    ],
)
def test_the_best_so_far_is_carried_along_the_window(
    samples: int, window: int, answer: str, is_async: bool
) -> None:
    # One thread of samples at a time would be needed to know which sample is which.
    pool = scripted_pool({"a": counting(), "b": joined}, temperature=0.7)
    found = ask(pool, samples=samples, window=window, is_async=is_async)
    drawn = [response.text for response in found.mixture.layers[0]]
    named = {text: str(seat) for seat, text in enumerate(drawn)}
    assert re.sub(r"\d", lambda text: named[text[0]], found.answer) == answer
    steps = answer.count("(")
    assert found.mixture.calls == pool.calls.ledger.spending.made == samples + steps


def test_a_sample_that_failed_is_passed_over() -> None:
    replies = iter(["0", "", "2"])
    pool = scripted_pool({"a": lambda _: next(replies), "b": joined}, temperature=0.7)
    found = ask(pool, samples=3, window=2)
    assert sorted(re.findall(r"\d", found.answer)) == ["0", "2"]
    assert len(found.mixture.failures) == 1


def test_no_sample_or_no_aggregation_is_an_error_with_its_cause() -> None:
    down = lm15.ServerError("down")
    with pytest.raises(LayerFailedError, match=r"No sample got an answer\. a: .*down"):
        ask(scripted_pool({"a": down, "b": "x"}))
    with pytest.raises(LayerFailedError, match=r"The aggregator did not answer\. b: .*down"):
        ask(scripted_pool({"a": "x", "b": down}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` must be at least 1, but got 0"),
        ({"window": 1}, "`window` must be at least 2, but got 1"),
    ],
)
def test_a_sequence_that_cannot_be_is_an_error_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        ask(scripted_pool({"a": "x", "b": "y"}), **options)
    with pytest.raises(PoolError, match="Unknown agent 'b'"):
        ask(scripted_pool({"a": "x"}))

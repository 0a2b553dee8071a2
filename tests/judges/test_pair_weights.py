"""Verdicts weighted by log-probabilities, where an endpoint gives them and where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.calls import Calls
from moa_dspy.judges import PairJudge, judge_all


def weighted(prompt: str) -> tuple[list[str], Mapping[str, float]]:
    """Prefer "ours" with .6 to .2 shown second, with .3 to .5 shown first."""
    if prompt.endswith('response_2: "ours"'):
        return ["2"], {"2": 0.6, "1": 0.2, "The": 0.1}
    return ["1"], {"1": 0.3, "2": 0.5}


def test_verdicts_are_weighted_by_log_probabilities(
    rows: list[dspy.Example], weighing: Any, pool_of: Any
) -> None:
    engine = weighing(weighted)
    judge = PairJudge(pool=pool_of(engine), agent="judge")
    judgement = judge.compare(rows[0], "ours", "theirs")
    # Shown second .6 / (.6 + .2) = .75; shown first .3 / (.3 + .5) = .375, whatever was sampled.
    assert judgement.verdicts == pytest.approx((0.75, 0.375))
    assert judgement.preference == pytest.approx(0.5625)
    assert judgement.is_inconsistent
    assert judge.report().sampled == 0
    assert {request.config.logprobs for request in engine.asked} == {5}


def test_a_stored_verdict_keeps_its_weight(
    rows: list[dspy.Example], weighing: Any, pool_of: Any
) -> None:
    engine, calls = weighing(weighted), Calls()
    first = PairJudge(pool=pool_of(engine, calls), agent="judge")
    before = first.compare(rows[0], "ours", "theirs")
    replayed = Calls(calls.store, replay_only=True)
    again = PairJudge(pool=pool_of(OSError("no call"), replayed), agent="judge")
    assert again.compare(rows[0], "ours", "theirs") == before
    assert (len(engine.asked), replayed.ledger.spending.made) == (2, 0)


@pytest.mark.parametrize(
    "refusal",
    [
        lm15.UnsupportedFeatureError("no logprobs", feature="logprobs"),
        lm15.InvalidRequestError("logprobs are off", status=400),
    ],
)
def test_an_endpoint_without_log_probabilities_is_asked_without(
    rows: list[dspy.Example], weighing: Any, pool_of: Any, refusal: Exception
) -> None:
    calls = Calls()
    engine = weighing(weighted, refusal)
    judge = PairJudge(pool=pool_of(engine, calls), agent="judge", order="seeded")
    run = judge_all(judge, rows[:2], "ours", "theirs", num_threads=1)
    assert set(run.preferences) <= {0.0, 1.0}
    assert (run.report.judged, run.report.sampled) == (2, 2)
    assert [request.config.logprobs for request in engine.asked] == [5, None, 5, None]
    replay = pool_of(OSError("no call"), Calls(calls.store, replay_only=True))
    again = PairJudge(pool=replay, agent="judge", order="seeded")
    assert list(judge_all(again, rows[:2], "ours", "theirs").preferences) == list(run.preferences)


def test_a_prompt_too_long_is_not_asked_twice(
    rows: list[dspy.Example], weighing: Any, pool_of: Any
) -> None:
    engine = weighing(weighted, lm15.ContextLengthError("too long", status=400))
    judge = PairJudge(pool=pool_of(engine), agent="judge", order="seeded")
    assert judge.compare(rows[0], "ours", "theirs").excluded == "failed"
    assert len(engine.asked) == 1


def test_weights_are_not_asked_for_where_nobody_wants_them(
    rows: list[dspy.Example], weighing: Any, pool_of: Any
) -> None:
    engine = weighing(weighted)
    judge = PairJudge(pool=pool_of(engine), agent="judge", is_weighted=False)
    assert judge.compare(rows[0], "ours", "theirs").verdicts == (1.0, 1.0)
    assert [request.config.logprobs for request in engine.asked] == [None, None]
    assert judge.report().sampled == 0

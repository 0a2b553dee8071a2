"""The parts of a judged search, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls.budget import Budget
from moa_dspy.errors import MetricError, StudyError
from moa_dspy.judges import Judgement, Jury, PairJudge, RecordedPairs
from moa_dspy.optimize import JudgeOptions
from moa_dspy.optimize.judge_facts import (
    JudgeDiagnostics,
    JudgedPair,
    self_preference_warnings,
    trust_warnings,
)
from moa_dspy.pool import Pool
from moa_dspy.winrate.length_control import at_equal_length
from tests.optimize.judging.world import pair_judge, pool_of, searched

ROW = dspy.Example(id="q", question="q").with_inputs("question")


def pool(*models: str) -> Pool:
    return Pool([Agent(name=f"a{n}", model=model) for n, model in enumerate(models)])


@pytest.mark.parametrize(
    ("judge", "agents", "says"),
    [
        ("openai/gpt-5", ["openai/gpt-5", "openai/o3"], "also answers, as a0"),
        ("openai/gpt-5", ["openai/gpt-4o", "anthropic/claude-5"], "is of the family of a0"),
        (
            "local/qwen2.5-coder-1.5b-instruct",
            ["together/Qwen/Qwen1.5-72B-Chat"],
            "is of the family of a0",
        ),
        ("openai/gpt-5", ["anthropic/claude-5", "openai/o3"], None),
    ],
)
def test_self_preference_is_warned_of_by_model_and_by_family(
    judge: str, agents: list[str], says: str | None
) -> None:
    answering, judging = pool(*agents), PairJudge(pool=pool(judge), agent="a0")
    found = self_preference_warnings(judging, answering, tuple(answering))
    assert [says in text for text in found if says] == ([True] if says else [])


def pairs(*verdicts: tuple[float, float], gaps: tuple[int, ...] = ()) -> list[JudgedPair]:
    given = gaps or (0,) * len(verdicts)
    return [
        JudgedPair(Judgement(preference=sum(two) / 2, verdicts=two), 100 + gap, 100)
        for two, gap in zip(verdicts, given, strict=True)
    ]


def test_a_judge_that_always_names_the_first_has_an_advantage_of_one() -> None:
    # The first verdict is of the order that showed the response second: it loses there.
    found = JudgeDiagnostics.of(pairs(*[(0.0, 1.0)] * 10))
    assert found.consistency is not None
    assert found.first_advantage is not None
    assert (found.consistency.estimate, found.first_advantage.estimate) == (0, 1)
    assert (found.inconsistent, found.ties, found.judged) == (10, 0, 10)
    chance, place = trust_warnings(found)
    assert "may be chance" in chance
    assert "prefers what it is shown first, by 100.0 points" in place


def test_a_judge_that_leans_to_a_place_but_reads_is_not_chance() -> None:
    # Of 80 verdicts 66 are for the first place, and no pair has two of the other 14, at best: of
    # all ways to pair them, prod((66 - i) / (79 - 2 i), i < 14) = 25 % have none either.
    leaning = [(0.0, 1.0)] * 26 + [(1.0, 1.0)] * 7 + [(0.0, 0.0)] * 7
    assert JudgeDiagnostics.of(pairs(*leaning)).p_chance == pytest.approx(0.25, abs=0.03)
    assert "35.0 %" in (JudgeDiagnostics.of(pairs(*leaning)).chance or "")
    # With 20 of 80 it is prod((60 - i) / (79 - 2 i), i < 20) = 1 %: one verdict on half of the
    # pairs, as a coin has that leans to no place, is more than this judge would give by chance.
    reading = [(0.0, 1.0)] * 20 + [(1.0, 1.0), (0.0, 0.0)] * 10
    assert JudgeDiagnostics.of(pairs(*reading)).chance is None


def test_a_judge_without_faults_is_not_warned_of() -> None:
    right = [(1.0, 1.0), (0.0, 0.0)] * 10
    found = JudgeDiagnostics.of(pairs(*right, gaps=(5, 5, -5, -5) * 5))
    assert list(trust_warnings(found)) == []
    assert found.length is not None
    assert found.length.estimate == pytest.approx(0)


def test_excluded_pairs_are_counted_by_their_reason() -> None:
    lost = [Judgement(excluded=why) for why in ("missing", "failed", "unparsable", "unparsable")]
    found = JudgeDiagnostics.of([JudgedPair(judgement, 1, 1) for judgement in lost])
    assert (found.n, found.judged) == (4, 0)
    assert (found.missing, found.failed, found.unparsable) == (1, 1, 2)


class Says:
    def __init__(self, *verdicts: float | None) -> None:
        self.verdicts = verdicts

    def compare(self, example: Any, candidate: Any, reference: Any) -> Judgement:
        (value,) = self.verdicts
        if value is None:
            return Judgement(excluded="unparsable", reason="hm")
        return Judgement(preference=value)

    def report(self) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((1.0, 1.0, 0.0), 1.0),
        ((0.9, 0.8, 0.0), 1.0),  # a judge has one voice, however sure it is
        ((1.0, 0.0), 0.5),
        ((1.0, 0.5, 0.0), 0.5),
        ((0.5, 0.5, 0.0), 0.5),
        ((1.0, 1.0, None), 1.0),
        ((1.0, None), None),
        ((None, None, 0.0), None),
    ],
)
def test_the_majority_of_a_jury_counts(given: tuple[float | None, ...], wanted: Any) -> None:
    found = Jury([Says(value) for value in given]).compare(ROW, "a", "b")
    assert found.preference == wanted
    assert found.excluded == (None if wanted is not None else "unparsable")


def test_a_jury_of_one_is_none() -> None:
    with pytest.raises(MetricError, match="needs at least 2 judges, but got 1"):
        Jury([Says(1.0)])


def test_recorded_pairs_are_known_either_way_round() -> None:
    judge = RecordedPairs({("a", "b", "q"): 0.8, ("a", "c", "q"): None})
    assert judge.compare(ROW, "a", "b").preference == 0.8
    assert judge.compare(ROW, "b", "a").preference == pytest.approx(0.2)
    assert judge.compare(ROW, "a", "a").preference == 0.5
    assert judge.compare(ROW, "c", "a").excluded == "missing"
    assert (judge.knows("c", "a"), judge.knows("b", "c")) == (True, False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "has no row"),
        ({("a", "b", "q"): 1.5}, r"must be in \[0, 1\], but 'a' over 'b' has 1.5"),
        ({("a", "b", "q"): 0.8, ("b", "a", "q"): 0.8}, "the other way round, as 0.8"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(table: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        RecordedPairs(table)


def test_a_judgement_is_turned_with_its_orders() -> None:
    judgement = Judgement(preference=0.6, verdicts=(0.2, 1.0))
    # Shown second the candidate got 0.2, so the other, then first, got 0.8.
    assert judgement.turned.preference == pytest.approx(0.4)
    assert judgement.turned.verdicts == pytest.approx((0.0, 0.8))
    assert judgement.turned.turned.verdicts == pytest.approx(judgement.verdicts)


def test_a_preference_that_only_follows_length_is_taken_off() -> None:
    # The longer response always wins, by half as often as the shorter one loses.
    longer, shorter = [1.0] * 30 + [0.0] * 30, [0.0] * 20 + [1.0] * 10
    wins = [*longer, *shorter]
    lengths = [200] * 30 + [50] * 30 + [200] * 20 + [50] * 10
    plain = sum(wins) / len(wins)
    controlled = at_equal_length(wins, lengths, [100] * len(wins)).mean()
    assert at_equal_length([1.0, 1.0], [1, 2], [3, 4]).tolist() == [1.0, 1.0]
    assert abs(controlled - 0.5) < 0.2
    assert 0 <= controlled <= 1
    assert plain == pytest.approx(40 / 90)


def test_lengths_that_do_not_differ_change_nothing() -> None:
    wins = [1.0, 0.0, 1.0, 0.5]
    assert at_equal_length(wins, [10] * 4, [10] * 4).tolist() == pytest.approx(wins)


def test_a_judge_without_a_price_is_not_held_to_usd() -> None:
    unpriced = Pool([Agent(name="elsewhere", model="openai/unknown-judge", api_base="http://x/v1")])
    judge = PairJudge(pool=unpriced, agent="elsewhere")
    with pytest.raises(StudyError, match="the price of elsewhere is unknown"):
        searched(pool_of(), judge, budget=Budget(usd=1.0))


def test_picks_is_one_of_two_words() -> None:
    judge: Callable[..., PairJudge] = pair_judge
    picks: Any = "both"
    with pytest.raises(StudyError, match="must be 'judge' or 'metric', but got 'both'"):
        JudgeOptions(judge=judge(pool_of()), picks=picks)

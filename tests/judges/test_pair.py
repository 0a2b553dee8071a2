from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Budget, Calls, Ledger
from moa_dspy.errors import BudgetReachedError, DataError, MetricError, PoolError
from moa_dspy.judges import PairJudge, judge_all
from moa_dspy.testing import Script, scripted_pool


def judge(script: Script, **settings: Any) -> PairJudge:
    return PairJudge(pool=scripted_pool({"judge": script}), agent="judge", **settings)


def responses(prompt: str) -> dict[str, str]:
    """Read a plain-chat prompt back: one field per paragraph."""
    fields = dict(part.split(": ", 1) for part in prompt.split("\n\n"))
    return {name: text.strip('"') for name, text in fields.items()}


def prefers(word: str) -> Callable[[str], str]:
    """Make a script that chooses the response with the word in it, wherever it stands."""
    return lambda prompt: "1" if word in responses(prompt)["response_1"] else "2"


def made(pair_judge: PairJudge) -> int:
    return pair_judge.pool.calls.ledger.spending.made


def test_the_better_response_wins_in_both_orders(rows: list[dspy.Example]) -> None:
    pair_judge = judge(prefers("good"))
    judgement = pair_judge.compare(rows[0], dspy.Prediction(answer="good"), "bad")
    assert (judgement.preference, judgement.verdicts) == (1.0, (1.0, 1.0))
    assert pair_judge.compare(rows[0], "bad", "good").preference == 0.0
    assert made(pair_judge) == 2  # the second comparison asks the same two questions
    assert str(pair_judge.report()) == "2 of 2 judged, sampled 2"


@pytest.mark.parametrize("place", ["1", "2"])
def test_a_judge_who_prefers_a_place_says_one_half(rows: list[dspy.Example], place: str) -> None:
    run = judge_all(judge(place), rows, "ours", "theirs")
    assert set(run.preferences) == {0.5}
    assert (run.report.inconsistent, run.report.ties) == (len(rows), 0)
    first, second = run.by_place
    assert set(first) == {1.0 if place == "1" else 0.0}
    assert set(second) == {0.0 if place == "1" else 1.0}


def test_a_seeded_order_asks_once_and_is_drawn_per_example(rows: list[dspy.Example]) -> None:
    pair_judge = judge("1", order="seeded")
    run = judge_all(pair_judge, rows, "ours", "theirs")
    # 40 fair coins: outside 10..30 one time in 1,000; this seed's draw is fixed.
    assert 10 <= run.preferences.sum() <= 30
    assert set(run.preferences) == {0.0, 1.0}
    assert made(pair_judge) == len(rows)
    again = judge_all(judge("1", order="seeded"), rows[::-1], "ours", "theirs")
    assert list(again.preferences[::-1]) == list(run.preferences)
    other = judge_all(judge("1", order="seeded", seed=1), rows, "ours", "theirs")
    assert list(other.preferences) != list(run.preferences)


def test_a_seeded_order_gives_the_same_verdict_as_both_of_a_fair_judge(
    rows: list[dspy.Example],
) -> None:
    run = judge_all(judge(prefers("good"), order="seeded"), rows, "good", "bad")
    assert set(run.preferences) == {1.0}


def test_ties_are_halves_and_only_where_they_are_allowed(rows: list[dspy.Example]) -> None:
    run = judge_all(judge("0", allows_ties=True), rows[:3], "ours", "theirs")
    assert list(run.preferences) == [0.5, 0.5, 0.5]
    assert (run.report.ties, run.report.inconsistent) == (3, 0)
    assert judge_all(judge("0"), rows[:3], "ours", "theirs").report.unparsable == 3


def test_a_tie_in_one_order_is_half_a_win(rows: list[dspy.Example]) -> None:
    def script(prompt: str) -> str:
        return "0" if "good" in responses(prompt)["response_1"] else "2"

    judgement = judge(script, allows_ties=True).compare(rows[0], "good", "bad")
    # Shown second it wins (1), shown first it ties (0.5).
    assert judgement.preference == 0.75
    assert not judgement.is_inconsistent


def test_equal_responses_tie_without_a_call(rows: list[dspy.Example]) -> None:
    pair_judge = judge(OSError("never asked"))
    assert pair_judge.compare(rows[0], "same", dspy.Prediction(answer="same")).preference == 0.5
    assert (made(pair_judge), pair_judge.report().ties) == (0, 1)


@pytest.mark.parametrize("reply", ["", "I like both.", "Response 1 is better than 2", "1 2"])
@pytest.mark.parametrize("order", ["both", "seeded"])
def test_what_is_no_verdict_is_counted_and_not_scored(
    rows: list[dspy.Example], reply: str, order: str
) -> None:
    pair_judge = judge(reply, order=order)
    run = judge_all(pair_judge, rows[:4], "ours", "theirs")
    assert list(run.preferences) == pytest.approx([float("nan")] * 4, nan_ok=True)
    assert run.report.unparsable == run.report.n == 4
    assert made(pair_judge) == 4  # no other try, and no second order for what is excluded already
    with pytest.raises(MetricError, match="0 of 4 judged, unparsable 4"):
        run.win_rate()


def test_one_order_without_a_verdict_excludes_the_example(rows: list[dspy.Example]) -> None:
    def script(prompt: str) -> str:
        return "2" if responses(prompt)["response_2"] == "ours" else "Hmm."

    judgement = judge(script).compare(rows[0], "ours", "theirs")
    assert (judgement.preference, judgement.excluded) == (None, "unparsable")
    assert judgement.reason == "'Hmm.' is no verdict."


def test_a_model_that_does_not_answer_is_counted_apart(rows: list[dspy.Example]) -> None:
    run = judge_all(judge(OSError("down")), rows[:2], "ours", "theirs")
    assert (run.report.failed, run.report.unparsable) == (2, 0)
    assert "down" in run.judgements[0].reason


def test_a_budget_is_not_the_judges_failure(rows: list[dspy.Example]) -> None:
    calls = Calls(ledger=Ledger(Budget(calls=1)))
    pair_judge = PairJudge(pool=scripted_pool({"judge": "1"}, calls=calls), agent="judge")
    with pytest.raises(BudgetReachedError, match="1 calls"):
        pair_judge.compare(rows[0], "ours", "theirs")


def test_reasoning_is_not_judged_and_several_fields_are_one_text(rows: list[dspy.Example]) -> None:
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "2"

    thought = dspy.Prediction(reasoning="secret", title="T", body="B", mixture=object())
    judge(script).compare(rows[0], thought, "theirs")
    assert r'response_2: "title: T\nbody: B"' in prompts[0]
    assert not any("secret" in prompt for prompt in prompts)


def test_the_prompt_never_asks_for_length() -> None:
    task = judge("1").choose.signature.instructions
    assert "complete" not in task
    assert task.endswith("1 if response_1 is better, 2 if response_2 is better.")
    ties = judge("1", allows_ties=True).choose.signature.instructions
    assert ties.endswith("or 0 if you see no difference.")


def test_bad_input_is_an_error(rows: list[dspy.Example]) -> None:
    with pytest.raises(MetricError, match="Unknown `order` 'random'; known ones are both, seeded"):
        judge("1", order="random")
    with pytest.raises(PoolError, match="Unknown agent 'nobody'"):
        PairJudge(pool=scripted_pool({"judge": "1"}), agent="nobody")
    with pytest.raises(PoolError, match="but got none of them"):
        PairJudge()
    pool = scripted_pool({"judge": "1"})
    with pytest.raises(PoolError, match="but got pool and lm"):
        PairJudge(pool=pool, lm=pool.lm("judge"))
    pair_judge = judge("1")
    with pytest.raises(DataError, match="this judge reads one response, but got 2"):
        pair_judge.compare(rows[0], ["a", "b"], "theirs")
    with pytest.raises(DataError, match="Example 'x': Inputs have not been set"):
        pair_judge.compare(dspy.Example(id="x", instruction="?"), "a", "b")


def test_an_lm_is_enough(rows: list[dspy.Example]) -> None:
    lm = scripted_pool({"judge": prefers("good")}).lm("judge")
    pair_judge = PairJudge(lm=lm, adapter=PlainChat())
    assert pair_judge.compare(rows[0], "good", "bad").preference == 1.0

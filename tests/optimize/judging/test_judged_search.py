from __future__ import annotations

import json
from itertools import combinations, permutations, product
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.budget import Budget
from moa_dspy.diversity import Disagreement, EmbeddingDistance, TfidfDistance
from moa_dspy.errors import DataError, MetricError, PoolError, StudyError
from moa_dspy.judges import Jury, RecordedPairs
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import JudgeOptions, ModelSearch, SearchSpace, StudyResult
from moa_dspy.optimize.page import headline
from moa_dspy.optimize.report import early_lines
from tests.optimize.judging.world import (
    AGENTS,
    N_TEST,
    N_VAL,
    agent,
    first_judge,
    leaning_judge,
    long_judge,
    noisy_judge,
    pair_judge,
    pool_of,
    rows,
    searched,
    share,
    true_judge,
)
from tests.optimize.report.synthetic import report_text


@pytest.fixture(scope="module")
def found() -> ModelSearch:
    return searched(pool_of())


def test_the_best_architecture_is_found_and_proven(found: ModelSearch) -> None:
    result = found.result
    # Only "good" improves on what it reads, so whatever ends in it wins against any single agent.
    assert result.pick.aggregator == "good"
    assert result.pick.layers
    assert result.verdict.kind == "mixture"
    assert result.recommended == result.pick
    assert result.judge is not None
    assert result.judge.direct is not None
    assert result.judge.direct.win_rate == 1.0
    assert result.judge.direct.n == N_TEST
    # Points above one half: every test question is won.
    assert result.differences["best_single"].estimate == pytest.approx(0.5)


def test_the_reference_wins_a_round_robin_before_the_trials(found: ModelSearch) -> None:
    judge = found.result.judge
    assert judge is not None
    assert judge.reference == "the answers of good"
    assert judge.chosen.startswith("winner of a round robin of 3 agents on 8 rows of val")
    single = found.result.val["best_single"]
    # The reference ties with itself.
    assert (single.architecture, single.score) == ("good", 0.5)
    assert found.result.trials[1].win_rate == found.result.trials[1].score


def test_what_the_judge_costs_is_told_apart_and_foretold(found: ModelSearch) -> None:
    result = found.result
    assert result.judge is not None
    assert result.early is not None
    estimate = result.early.estimate
    assert estimate is not None
    # Two orders of every comparison that the search may make.
    n = 2 * 9 * N_VAL + (3 + 5) * N_TEST
    assert estimate.judge_calls == 2 * n
    assert estimate.calls > estimate.judge_calls
    pairs = result.judge.diagnostics.n
    assert result.judge.costs["judge"]["calls"] == 2 * pairs
    # An architecture costs what its agents cost, without the judge.
    assert result.test["best_single"].calls == 1
    text = report_text(result)
    assert f"({estimate.judge_calls:,.0f} of them by the judge)" in text
    assert f"Cost of judge judge: {2 * pairs:,} calls" in text


def test_the_judge_is_told_of_early_and_once_in_the_report(found: ModelSearch) -> None:
    result = found.result
    assert result.early is not None
    early = list(early_lines(result.early))
    assert early[0].startswith(
        "Judge: PairJudge judge, which compares each answer with the answers of good (winner of a"
    )
    assert any(line.startswith("Same verdict in both orders: 100.0 %") for line in early)
    assert any("win rate 50.0 % against the answers of good." in line for line in early)
    text = report_text(result, width=10_000)
    assert text.count("Judge: PairJudge judge") == 1
    assert "the pick wins 100.0 % of 24 test questions, ties counting half." in text


def test_a_result_with_a_judge_is_read_back(found: ModelSearch) -> None:
    content = json.loads(json.dumps(found.result.to_json()))
    assert StudyResult.from_json(content) == found.result


def test_an_unbiased_judge_is_not_warned_of(found: ModelSearch) -> None:
    judge = found.result.judge
    assert judge is not None
    assert judge.diagnostics.consistency is not None
    assert judge.diagnostics.consistency.estimate == 1
    assert judge.diagnostics.ties == 0
    assert not any("shown" in text or "chance" in text for text in judge.warnings)


def test_an_aggregator_that_follows_the_best_reference_is_told(found: ModelSearch) -> None:
    judge = found.result.judge
    assert judge is not None
    follows = judge.follows["good + mid > synthesize(good)"]
    assert -1 <= follows["mean"] <= 1
    assert follows["n"] > 1


@pytest.mark.slow
def test_no_judgement_is_paid_twice(found: ModelSearch) -> None:
    pool = pool_of()
    first = searched(pool).result
    made = pool.calls.ledger.spending.made
    again = searched(pool).result
    assert pool.calls.ledger.spending.made == made
    assert first.judge is not None
    assert again.judge is not None
    assert (again.pick, again.test["pick"].score) == (first.pick, first.test["pick"].score)
    assert again.judge.diagnostics == first.judge.diagnostics
    assert found.result.judge is not None
    assert first.judge.diagnostics == found.result.judge.diagnostics


@pytest.mark.slow
def test_a_pure_bias_for_a_place_changes_nothing_in_both_orders() -> None:
    result = searched(pool_of(leaning_judge)).result
    assert result.judge is not None
    # Where quality differs by less than 0.7 both orders say "1": a tie, and never a loss.
    assert result.pick.aggregator == "good"
    assert result.judge.diagnostics.inconsistent > 0
    assert any("prefers what it is shown first" in text for text in result.judge.warnings)


@pytest.mark.slow
def test_a_judge_that_only_looks_at_places_decides_nothing() -> None:
    with pytest.raises(StudyError, match=r"prefers none of the answers .* contradicts itself"):
        searched(pool_of(first_judge))


def coin_judge(prompt: str) -> str:
    """Prefer either, whatever the two responses say."""
    return "1" if share("coin", prompt) < 0.5 else "2"


@pytest.mark.slow
def test_a_judge_that_throws_a_coin_neither_shows_a_gain_nor_excludes_one() -> None:
    result = searched(pool_of(coin_judge), objectives=("win_rate", "calls")).result
    verdict = result.verdict
    assert verdict.kind == "judge_cannot_tell"
    assert "excludes" not in verdict.text
    assert verdict.text.startswith("The judge cannot tell better answers from worse ones: with the")
    assert verdict.n_more == 0
    # "As good for fewer calls" would rest on the same coin.
    assert (result.cost_verdict, result.front_verdicts) == (None, {})
    assert result.judge is not None
    assert any("may be chance" in text for text in result.judge.warnings)
    assert headline(result).startswith("Not decided: the judge cannot tell better answers from")
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.slow
def test_a_bias_for_length_is_flagged_and_controlled() -> None:
    wordy = agent("mid", 4.6, pads=12)
    pool = pool_of(long_judge, mid=wordy)
    result = searched(pool, JudgeOptions(judge=pair_judge(pool), length_controlled=True)).result
    assert result.judge is not None
    assert any("prefers longer responses" in text for text in result.judge.warnings)
    plain = searched(pool_of(long_judge, mid=wordy)).result
    assert plain.val["best_single"].architecture == "mid"


@pytest.mark.slow
def test_a_judge_in_the_pool_is_flagged() -> None:
    pool = pool_of(good=lambda p: true_judge(p) if "response_1" in p else agent("good", 5.0)(p))
    judged = searched(pool, pair_judge(pool, "good"), n_val=8, n_test=8).result.judge
    assert judged is not None
    assert "Judge good (scripted/good) also answers, as good" in judged.warnings[0]


@pytest.mark.slow
def test_three_of_ten_replies_that_are_no_verdict_are_left_out() -> None:
    result = searched(pool_of(noisy_judge), n_val=24).result
    assert result.pick.aggregator == "good"
    assert result.pick.layers
    assert result.judge is not None
    assert result.judge.direct is not None
    found = result.judge.diagnostics
    assert found.unparsable > 0
    assert found.judged + found.unparsable == found.n
    assert result.judge.direct.n + result.judge.direct.excluded == N_TEST
    # Of those with a verdict every one is won: what is left out counts for neither side.
    assert result.judge.direct.win_rate == 1
    assert result.verdict.n == result.judge.direct.n
    assert result.judge.unread[0] == "'Both have merits.' is no verdict."


def test_a_judge_that_never_parses_ends_the_study_and_three_replies_are_shown() -> None:
    pool = pool_of(lambda prompt: f"I like {len(prompt)}")
    with pytest.raises(StudyError, match=r"None of the 1. replies of the judge .*(I like .*){3}"):
        searched(pool)


def test_a_judge_that_does_not_answer_ends_the_study_at_the_probe() -> None:
    with pytest.raises(PoolError, match=r"The judge \(PairJudge judge\) does not answer: .*down"):
        searched(pool_of(RuntimeError("down")))  # type: ignore[arg-type]


def test_the_diversity_of_open_answers_is_of_their_words_unless_told_otherwise() -> None:
    pool = pool_of()
    judge = pair_judge(pool)
    assert isinstance(ModelSearch(pool=pool, judge=judge).options.diversity, TfidfDistance)
    assert isinstance(ModelSearch(exact, pool).options.diversity, Disagreement)
    embedded = EmbeddingDistance(lambda texts: [[1.0, float(len(text))] for text in texts])
    assert ModelSearch(pool=pool, judge=judge, diversity=embedded).options.diversity is embedded


def test_votes_of_open_answers_are_not_searched_unless_asked_for() -> None:
    pool = pool_of()
    assert ModelSearch(pool=pool, judge=pair_judge(pool)).options.space.combines == ("synthesize",)


def exact(example: dspy.Example, prediction: dspy.Prediction) -> float:
    return float("good" in prediction.answer)


def test_metric_and_judge_need_a_word_on_which_picks() -> None:
    pool = pool_of()
    with pytest.raises(StudyError, match='set which one decides, by `picks = "judge"` or'):
        ModelSearch(exact, pool, judge=pair_judge(pool))
    with pytest.raises(StudyError, match='`picks = "metric"` needs a metric'):
        ModelSearch(pool=pool, judge=JudgeOptions(judge=pair_judge(pool), picks="metric"))
    with pytest.raises(StudyError, match="needs a `metric` or a `judge`"):
        ModelSearch(pool=pool)
    with pytest.raises(StudyError, match="needs a `pool`"):
        ModelSearch(exact)
    with pytest.raises(StudyError, match="`judge` must have `compare"):
        ModelSearch(pool=pool, judge="judge")


@pytest.mark.slow
@pytest.mark.parametrize("picks", ["judge", "metric"])
def test_both_are_measured_whichever_picks(picks: Any) -> None:
    pool = pool_of()
    judge = JudgeOptions(judge=pair_judge(pool), picks=picks)
    result = searched(pool, judge, metric=exact, n_val=8, n_test=8).result
    assert result.judge is not None
    assert result.judge.picks == picks
    row = result.judge.systems["test"]["best_single"]
    assert row.metric == 1
    assert row.win_rate == 0.5
    # The metric of "good" is 1 throughout; its win rate against itself is 0.5.
    assert result.test["best_single"].score == (0.5 if picks == "judge" else 1.0)


@pytest.mark.slow
def test_a_field_of_the_rows_can_be_the_reference() -> None:
    pool = pool_of()
    val = [row.copy(stored="quality 4.000") for row in rows("val", 8)]
    test = [row.copy(stored="quality 4.000") for row in rows("test", 8)]
    search = ModelSearch(
        pool=pool,
        judge=JudgeOptions(judge=pair_judge(pool), reference="stored"),
        space=SearchSpace(AGENTS, combines=("synthesize",), max_depth=1),
        n_trials=4,
    )
    student = MixtureOfAgents("question -> answer", "good", pool=pool, adapter=PlainChat())
    search.compile(student, trainset=[], valset=val, testset=test)
    scores = {trial.architecture: trial.score for trial in search.result.trials}
    # mid and good are always above 4, bad is at most 4.
    assert (scores["mid"], scores["good"], scores["bad"]) == (1.0, 1.0, 0.0)
    missing = [row.copy(stored="") for row in val[:1]] + val[1:]
    with pytest.raises(DataError, match="Split 'val': 1 of 8 rows have no value in 'stored'"):
        search.compile(student, trainset=[], valset=missing, testset=test)


def test_an_unknown_reference_is_an_error_with_the_choices() -> None:
    pool = pool_of()
    with pytest.raises(StudyError, match=r"`judge.reference`: 'gold' is neither `best_single`"):
        searched(pool, JudgeOptions(judge=pair_judge(pool), reference="gold"))


@pytest.mark.slow
def test_a_second_judge_is_asked_about_a_sample() -> None:
    pool = pool_of(other=true_judge)
    judge = JudgeOptions(judge=pair_judge(pool), second=pair_judge(pool, "other"))
    result = searched(pool, judge).result
    assert result.judge is not None
    assert result.judge.agreement is not None
    assert result.judge.agreement.estimate == 1
    # 30 pairs in both orders.
    assert result.judge.costs["other"]["calls"] == 60


@pytest.mark.slow
def test_a_jury_of_which_most_are_right_is_right() -> None:
    pool = pool_of(one=true_judge, two=true_judge, odd=first_judge)
    jury = Jury([pair_judge(pool, name) for name in ("one", "two", "odd")])
    result = searched(pool, jury, n_val=8, n_test=8).result
    assert result.pick.aggregator == "good"
    assert result.judge is not None
    assert result.judge.judge == "Jury one, two, odd"


@pytest.mark.slow
def test_a_budget_that_ends_in_the_middle_of_judging_is_kept() -> None:
    whole = searched(pool_of()).result.calls_made
    for part in (0.4, 0.6, 0.8):
        limit = int(whole * part)
        result = searched(pool_of(), budget=Budget(calls=limit)).result
        assert result.calls_made <= limit
        assert result.stopped_by is not None
        assert result.verdict.text


def test_a_budget_that_is_too_small_for_a_judge_is_refused() -> None:
    # Three agents on 40 rows and two on test would fit; 2 x (2 x 16 + 24) judgements do not.
    with pytest.raises(StudyError, match=r"`budget.calls` is 100, but a verdict needs"):
        searched(pool_of(), budget=Budget(calls=100))


class Numbers:
    """A judge of a user's own that returns plain numbers."""

    def __init__(self, says: Any) -> None:
        self.says = says

    def compare(self, example: dspy.Example, candidate: str, reference: str) -> Any:
        return self.says(candidate, reference)


@pytest.mark.slow
def test_a_judge_of_ones_own_may_return_numbers() -> None:
    def better(text: str, other: str) -> float:
        return float(text.rsplit(" ", 1)[1] > other.rsplit(" ", 1)[1])

    result = searched(pool_of(), Numbers(better)).result
    assert result.pick.aggregator == "good"
    assert result.judge is not None
    assert result.judge.judge == "Numbers"


def test_a_judge_of_ones_own_that_fails_names_the_example() -> None:
    with pytest.raises(MetricError, match="The judge must return a Judgement, or a preference in"):
        searched(pool_of(), Numbers(lambda text, other: 3))
    with pytest.raises(MetricError, match=r"The judge raised ZeroDivisionError on example 'val-"):
        searched(pool_of(), Numbers(lambda text, other: 1 / 0))


@pytest.mark.slow
def test_recorded_preferences_replay_a_study_without_a_judge() -> None:
    layers = [" + ".join(names) for n in (2, 3) for names in combinations(sorted(AGENTS), n)]
    levels = {"mid": 1.0, "good": 2.0, "bad": 0.0}
    for layer, last in product(layers, AGENTS):
        levels[f"{layer} > synthesize({last})"] = 3.0 if last == "good" else 1.5
    ids = [row.id for row in (*rows("val", N_VAL), *rows("test", N_TEST))]
    table = {
        (first, other, name): 0.5 + (levels[first] - levels[other]) / 6
        for first, other in permutations(levels, 2)
        for name in ids
    }
    result = searched(pool_of(), RecordedPairs(table)).result
    assert result.pick.aggregator == "good"
    assert result.judge is not None
    assert result.judge.costs == {}
    # (3 - 2) / 6 above one half, on every question.
    assert result.judge.direct is not None
    assert result.judge.direct.win_rate == pytest.approx(0.5 + 1 / 6)

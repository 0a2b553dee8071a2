"""What every judge that asks a model keeps: DSPy's conventions, the store, the metric."""

from __future__ import annotations

import copy
import enum
import pickle
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.calls import Calls, CallStore, Recording
from moa_dspy.errors import DataError, MetricError, UnknownCallError
from moa_dspy.judges import JUDGES, GradeJudge, JudgeProgram, PairJudge, SkillJudge, judge_all
from moa_dspy.judges.base import texts_of
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool


def example(**fields: Any) -> dspy.Example:
    row = {"id": "q", "question": "What?", "stored": "theirs", "skills": ["Factuality"]} | fields
    return dspy.Example(row).with_inputs("question")


def script(prompt: str) -> str:
    """Say "2" to anything but a hint that there is nothing to say."""
    return "?" if "unreadable" in prompt else "2"


def made(name: str, **settings: Any) -> Any:
    pool = settings.pop("pool", None) or scripted_pool({"judge": script})
    return JUDGES[name](pool=pool, agent="judge", **settings)


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_a_program_with_predictors(name: str) -> None:
    judge = made(name)
    assert isinstance(judge, JudgeProgram)
    assert judge.named_predictors()
    predictors: list[Any] = judge.predictors()
    assert all(predictor.signature.instructions for predictor in predictors)


@pytest.mark.parametrize("name", JUDGES)
def test_a_preference_is_in_the_unit_interval_or_none(name: str) -> None:
    judge = made(name)
    read = judge.compare(example(), "ours", "theirs")
    assert 0 <= read.preference <= 1
    unread = judge.compare(example(), "unreadable", "theirs")
    assert (unread.preference, unread.excluded) == (None, "unparsable")
    gone = judge.compare(example(), None, "theirs")
    assert (gone.preference, gone.excluded) == (None, "missing")
    assert (judge.report().n, judge.report().judged) == (3, 1)


@pytest.mark.parametrize("name", JUDGES)
def test_copies_answer_alike_and_count_together(name: str) -> None:
    judge = made(name)
    for other in (copy.deepcopy(judge), judge.deepcopy(), judge.reset_copy()):
        assert other.predictors()[0] is not judge.predictors()[0]
        assert other.compare(example(), "ours", "theirs").excluded is None
    assert judge.report().n == 3


class Mood(enum.Enum):
    GLAD = "glad"


def test_a_typed_answer_is_judged_in_the_form_in_which_agents_write_it() -> None:
    assert texts_of(dspy.Prediction(answer=Mood.GLAD)) == ("glad",)
    assert texts_of(dspy.Prediction(answer={"is_glad": True})) == ('{"is_glad": true}',)
    assert texts_of([Mood.GLAD, "sad"]) == ("glad", "sad")


@pytest.mark.parametrize("name", JUDGES)
def test_prompts_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    judge, other = made(name), made(name)
    predictor = judge.predictors()[0]
    predictor.signature = predictor.signature.with_instructions("Be kind.")
    judge.save(tmp_path / "judge.json")
    other.load(tmp_path / "judge.json")
    assert other.predictors()[0].signature.instructions == "Be kind."
    assert other.compare(example(), "ours", "theirs").excluded is None


def test_counts_start_anew_in_another_process() -> None:
    judge = made("pair")
    judge.compare(example(), "ours", "theirs")
    assert pickle.loads(pickle.dumps(judge.counter)).report.n == 0


@pytest.mark.parametrize("name", JUDGES)
def test_a_replay_of_a_judge_makes_no_calls(name: str, tmp_path: Path) -> None:
    rows = [example(id=str(n), question=f"{n}?") for n in range(4)]
    store = CallStore(tmp_path / "calls.sqlite")
    live = made(name, pool=scripted_pool({"judge": script}, calls=Calls(store)))
    before = judge_all(live, rows, "ours", "theirs")
    Recording(store).write(tmp_path / "calls.parquet")
    store.close()
    silent = {"judge": OSError("must not be asked")}
    for calls in (
        Calls(CallStore(tmp_path / "calls.sqlite")),
        Calls(recording=Recording.read(tmp_path / "calls.parquet"), replay_only=True),
    ):
        again = made(name, pool=scripted_pool(silent, calls=calls))
        assert judge_all(again, rows, "ours", "theirs").judgements == before.judgements
        assert calls.ledger.spending.made == 0
    with pytest.raises(UnknownCallError, match="'judge' for example '0'"):
        judge_all(again, rows[:1], "others", "theirs")


def measurer_score(metric: Any, prediction: Any) -> float:
    """Score as a search does."""
    return Evaluator(student=None, metric=metric)._score(example(), prediction)


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_a_metric_for_a_search(name: str) -> None:
    judge = made(name)
    metric = judge.as_metric(reference_field="stored")
    assert 0 <= measurer_score(metric, dspy.Prediction(answer="ours")) <= 1
    # No verdict is neither a win nor a loss, and it is counted.
    assert measurer_score(metric, dspy.Prediction(answer="unreadable")) == 0.5
    assert judge.report().unparsable == 1
    strict = judge.as_metric(reference_field="stored", unreadable=None)
    with pytest.raises(MetricError, match="No verdict on example 'q': unparsable"):
        measurer_score(strict, dspy.Prediction(answer="unreadable"))


@pytest.mark.parametrize("judge", [GradeJudge, SkillJudge])
def test_grades_are_scores_without_a_reference(judge: type[GradeJudge | SkillJudge]) -> None:
    grader = judge(pool=scripted_pool({"judge": "2"}), agent="judge")
    result = grader.as_metric()(example(), dspy.Prediction(answer="ours"))
    # 2 of 1..10 is 1 / 9, 2 of 1..5 is 1 / 4
    assert result.score == pytest.approx(1 / (grader.best - 1))
    assert f"{result.score:.2f}" in result.feedback


def test_a_metric_tells_optimizers_what_they_ask_for() -> None:
    judge = made("pair", order="seeded", is_weighted=False)
    metric = judge.as_metric(reference_field="stored")
    rows = [example(id=str(n)) for n in range(20)]
    prediction = dspy.Prediction(answer="ours")
    plain = [metric(row, prediction).score for row in rows]
    assert set(plain) == {0.0, 1.0}
    # A trace without a name: demonstrations are collected, and it is good or it is not.
    assert [metric(row, prediction, []) for row in rows] == [score == 1.0 for score in plain]
    assert metric(rows[0], dspy.Prediction(answer="unreadable"), []) is False
    # GEPA gives five arguments and wants words.
    feedback = metric(rows[0], prediction, [], "answer", []).feedback
    assert feedback.startswith("The judge scored this answer")
    unread = metric(rows[0], dspy.Prediction(answer="unreadable")).feedback
    assert unread == "The judge gave no verdict: unparsable. '?' is no verdict."


def test_dspy_evaluates_with_a_judge() -> None:
    rows = [example(id=str(n)) for n in range(3)]
    pool = scripted_pool({"judge": "1"})
    metric = PairJudge(pool=pool, agent="judge").as_metric(reference_field="stored")

    class Answerer(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="ours")

    evaluate = dspy.Evaluate(devset=rows, metric=metric, num_threads=1, display_progress=False)
    assert evaluate(Answerer()).score == 50.0


def test_dspy_compiles_a_judge_on_verdicts_of_people() -> None:
    def agrees(gold: dspy.Example, said: dspy.Prediction, trace: Any = None) -> bool:
        return bool(gold.verdict == said.verdict)

    pool: Pool = scripted_pool({"judge": "2"})
    student = PairJudge(pool=pool, agent="judge")
    trainset = [
        dspy.Example(
            instruction=f"Say {n}.", response_1="no", response_2=f"[[ {n} ]]", verdict=verdict
        ).with_inputs("instruction", "response_1", "response_2")
        for n, verdict in enumerate("2112")
    ]
    optimizer = dspy.BootstrapFewShot(metric=agrees, max_labeled_demos=0, max_rounds=1)
    with dspy.context(lm=pool.lm("judge")):
        compiled = optimizer.compile(student, trainset=trainset)
    demos = compiled.choose.demos
    assert sorted(demo["instruction"] for demo in demos) == ['"Say 0."', '"Say 3."']
    assert not any("[[" in demo["response_2"] for demo in demos)
    assert compiled.compare(example(), "ours", "theirs").excluded is None


def test_bad_arguments_of_a_metric_are_errors() -> None:
    with pytest.raises(MetricError, match=r"`unreadable` must be in \[0, 1\] or None"):
        made("pair").as_metric(reference_field="stored", unreadable=2)
    metric = made("pair").as_metric(reference_field="gold")
    with pytest.raises(DataError, match="has no field 'gold' with a reference response"):
        metric(example(), dspy.Prediction(answer="ours"))

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Calls, call_scope
from moa_dspy.data import BENCHMARKS, RecordedResponses, answer_match, mmlu_pro_match, read_recorded
from moa_dspy.errors import LayerFailedError, MetricError, UnknownCallError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, ModelSearch, SearchSpace
from moa_dspy.testing import recorded_pool, scripted_pool

SHARED = Path(os.environ.get("MOA_DSPY_SHARED", Path(__file__).parents[2] / "shared"))
N = 60


def find(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"NOT CHECKED ON REAL FILES: no {name} in ../shared or $MOA_DSPY_SHARED")
    return SHARED / name


@pytest.fixture
def recorded() -> RecordedResponses:
    """Three models, each wrong on another third of the numbers, so that two are always right."""
    questions = {f"q{i}": f"Say {i}" for i in range(N)}
    responses = {
        f"m{rest}": {f"q{i}": str(i) if i % 3 != rest else f"x{rest}" for i in range(N)}
        for rest in range(3)
    }
    columns = {f"q{i}": {"answer": str(i)} for i in range(N)}
    scores = {
        (name, model): float(text == columns[name]["answer"])
        for model, given in responses.items()
        for name, text in given.items()
    }
    return RecordedResponses(responses, questions, columns, scores)


def mixture(recorded: RecordedResponses, text: str) -> MixtureOfAgents:
    pool = recorded_pool(recorded)
    return MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat())


def test_agents_answer_by_the_example_in_the_scope(recorded: RecordedResponses) -> None:
    program = mixture(recorded, "m0")
    with call_scope(example="q4"):
        assert program(question="Say 4").answer == "4"


def test_outside_of_a_scope_the_text_of_the_question_decides(recorded: RecordedResponses) -> None:
    assert mixture(recorded, "m1")(question=" Say 4\n").answer == "x1"
    with call_scope(example="an id of another reader"):
        assert mixture(recorded, "m0")(question="Say 5").answer == "5"


def test_coroutines_answer_alike(recorded: RecordedResponses) -> None:
    program = mixture(recorded, "m0 + m1 + m2 > vote")
    assert asyncio.run(program.acall(question="Say 8")).answer == "8"


def test_no_request_is_made_and_every_answer_counts_as_reused(recorded: RecordedResponses) -> None:
    program = mixture(recorded, "m0 + m1 + m2 > select")
    answer = program(question="Say 8").mixture
    spending = program.pool.calls.ledger.spending
    assert (spending.made, spending.reused, answer.calls, answer.usd) == (0, 3, 3, None)
    assert program.pool.calls.replay_only


def test_the_callers_ledger_counts(recorded: RecordedResponses) -> None:
    calls = Calls()
    recorded_pool(recorded, calls=calls).lm("m0")("Say 8")
    assert calls.ledger.spending.reused == 1


def test_an_unknown_question_names_agent_and_example(recorded: RecordedResponses) -> None:
    program = mixture(recorded, "m0")
    message = "No response of agent 'm0' is recorded for example 'q99', nor .* reads 'Say 99'"
    with call_scope(example="q99"), pytest.raises(UnknownCallError, match=message):
        program(question="Say 99")


def test_a_text_of_two_questions_decides_nothing() -> None:
    twice = RecordedResponses({"m": {"1": "x", "2": "y"}}, {"1": "same", "2": "same"})
    program = mixture(twice, "m")
    with pytest.raises(UnknownCallError, match="is recorded for a question that reads 'same'"):
        program(question="same")
    with call_scope(example="2"):
        assert program(question="same").answer == "y"


def test_a_question_that_is_not_recorded_is_named_without_an_example() -> None:
    half = RecordedResponses({"a": {"1": "x"}}, {"1": "p"})
    with pytest.raises(UnknownCallError, match="of agent 'a' is recorded for a question that re"):
        mixture(half, "a")(question="z")


def test_a_model_that_lacks_the_question_is_named() -> None:
    half = RecordedResponses({"a": {"1": "x"}, "b": {"2": "y"}}, {"1": "p", "2": "q"})
    with pytest.raises(UnknownCallError, match="of agent 'b' is recorded for example '1'"):
        mixture(half, "b")(question="p")


@pytest.mark.parametrize(
    "text", ["m0 + m1 > synthesize(m2)", "m0 + m1 > select(m2)", "m0 > m1 + m2 > vote"]
)
def test_a_recorded_agent_reads_no_other_responses(recorded: RecordedResponses, text: str) -> None:
    program = mixture(recorded, text)
    message = r"Agent 'm\d' is asked something other than the recorded question of example 'q4'"
    with call_scope(example="q4"), pytest.raises(UnknownCallError, match=message):
        program(question="Say 4")


def test_another_layout_than_plain_chat_is_refused(recorded: RecordedResponses) -> None:
    program = MixtureOfAgents("question -> answer", "m0", pool=recorded_pool(recorded))
    with call_scope(example="q4"), pytest.raises(UnknownCallError, match="in plain chat"):
        program(question="Say 4")


def test_consensus_selects_without_asking(recorded: RecordedResponses) -> None:
    assert mixture(recorded, "m0 + m1 + m2 > select")(question="Say 4").answer == "4"


def test_a_blank_response_is_a_models_failure() -> None:
    given: dict[str, dict[str, str | None]] = {"a": {"1": None}, "b": {"1": "x"}, "c": {"1": ""}}
    program = mixture(RecordedResponses(given, {"1": "q"}), "a + b + c > select")
    answer = program(question="q").mixture
    assert answer.final.text == "x"
    assert [response.agent for response in answer.failures] == ["a", "c"]
    assert all("gave no response when it was" in str(r.failure) for r in answer.failures)
    with pytest.raises(LayerFailedError, match="gave no response"):
        program.with_architecture(Architecture.single("a"))(question="q")


WRAPPED = {
    "thought": "<think>It may be B.</think>\nA",
    "thought without opening": "It may be B.</think>A",
    "channels": "<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final"
    "<|message|>A<|return|>",
    "end token": "A<|im_end|>",
    "closing marker": "A\n\n[[ ## completed ## ]]",
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_the_recorded_score_counts_where_a_thought_or_end_token_is_not_returned(text: str) -> None:
    # The scores of equal answers differ, so that a mean of 0.5 would be seen.
    given = {"a": {"1": text}, "b": {"1": "A"}, "c": {"1": "B"}}
    scores = {("1", "a"): 1.0, ("1", "b"): 0.0, ("1", "c"): 0.25}
    recorded = RecordedResponses(given, {"1": "q"}, scores=scores)
    metric, row = recorded.metric(), dspy.Example(id="1", question="q").with_inputs("question")
    for architecture, score in {"a": 1.0, "b": 0.0, "a + b + c > vote(c)": 1.0}.items():
        prediction = mixture(recorded, architecture)(question="q")
        # Both votes are for what is returned, A, so c does not decide.
        assert (prediction.answer, metric(row, prediction)) == ("A", score)


def test_an_answer_in_two_parts_has_its_recorded_score() -> None:
    text = "<|channel|>final<|message|>A<|end|><|channel|>final<|message|>, or B<|return|>"
    recorded = RecordedResponses({"a": {"1": text}}, {"1": "q"}, scores={("1", "a"): 0.5})
    prediction = mixture(recorded, "a")(question="q")
    assert prediction.answer == "A, or B"
    assert recorded.metric()(dspy.Example(id="1"), prediction) == 0.5


def test_a_thought_alone_is_an_answer_if_it_has_a_score() -> None:
    given = {"a": {"1": "<think>It may be A"}, "b": {"1": "<think>It may be B"}}
    recorded = RecordedResponses(given, {"1": "q"}, scores={("1", "a"): 0.5})
    prediction = mixture(recorded, "a")(question="q")
    assert prediction.answer == "<think>It may be A"
    assert recorded.metric()(dspy.Example(id="1"), prediction) == 0.5
    with pytest.raises(LayerFailedError, match="reasoning only"):
        mixture(recorded, "b")(question="q")


def test_another_text_of_a_known_agent_has_not_its_score() -> None:
    recorded = RecordedResponses({"a": {"1": "A"}}, {"1": "q"}, scores={("1", "a"): 1.0})
    pool = scripted_pool({"a": "A, or B"})
    live = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
    with pytest.raises(MetricError, match="no score is recorded for the answer 'A, or B'"):
        recorded.metric()(dspy.Example(id="1"), live(question="q"))


def test_programs_can_be_copied(recorded: RecordedResponses) -> None:
    assert mixture(recorded, "m0 + m1 + m2 > vote").deepcopy()(question="Say 7").answer == "7"


@pytest.mark.slow
@pytest.mark.parametrize("graded", [True, False])
def test_a_search_finds_the_vote_that_is_always_right(
    recorded: RecordedResponses, graded: bool
) -> None:
    # Each model is right on 40 of 60, any vote of two on as many, the vote of three on all.
    rows = recorded.examples()
    metric: Callable[..., float] = recorded.metric() if graded else answer_match
    student = mixture(recorded, "m0")
    space = SearchSpace(recorded.models, combines=("vote",), max_depth=1, max_width=3)
    search = ModelSearch(metric, student.pool, space=space, n_trials=12, seed=0)
    search.compile(student, trainset=[], valset=rows[: N // 2], testset=rows[N // 2 :])
    assert set(search.result.pick.agents) == {"m0", "m1", "m2"}
    assert student.pool.calls.ledger.spending.made == 0


def accuracies(recorded: RecordedResponses, rows: list[dspy.Example], *texts: str) -> list[float]:
    student = mixture(recorded, texts[0])
    evaluator = Evaluator(student, recorded.metric())
    measured = [evaluator.measure(Architecture.parse(text), rows) for text in texts]
    return [sum(outcome.score for outcome in each) / len(rows) for each in measured]


@pytest.mark.slow
def test_graded_plurality_on_real_answers_is_as_published() -> None:
    folder = find("reasoning_gym")
    recorded = read_recorded(
        folder, question="question_id", model="model", response="extracted", score="score"
    )
    best = ["openai/o3-mini", "deepseek/deepseek-r1", "x-ai/grok-3-mini-beta"]
    single, three = accuracies(
        recorded, recorded.examples(), best[0], f"{' + '.join(best)} > vote({best[0]})"
    )
    # The card of the recording: the best model 0.6418, plurality of the best three 0.666.
    assert single == pytest.approx(0.6418, abs=1e-4)
    assert three == pytest.approx(0.666, abs=5e-4)


@pytest.mark.slow
def test_a_search_over_eighteen_real_models_makes_no_call() -> None:
    folder = find("mmlu_pro")
    rows = BENCHMARKS["mmlu_pro"].read(folder)
    recorded = read_recorded(
        folder / "letters.parquet",
        question="question_id",
        model="model",
        response="letter",
        score="correct",
        questions=folder / "questions.parquet",
    ).with_questions(rows)
    # A search begins with a question that every agent must answer.
    first = next(r for r in rows if all(given[r.id] for given in recorded.responses.values()))
    rows = [first, *(row for row in rows if row is not first)]
    pool = recorded_pool(recorded)
    student = MixtureOfAgents(
        "question -> answer", recorded.models[0], pool=pool, adapter=PlainChat()
    )
    space = SearchSpace(recorded.models, combines=("vote",), max_depth=1, max_width=5)
    search = ModelSearch(mmlu_pro_match, pool, space=space, n_trials=25, seed=0)
    search.compile(student, trainset=[], valset=rows[:200], testset=rows[200:400])
    assert len(pool) == 18
    assert pool.calls.ledger.spending.made == 0
    assert 1 <= len(search.result.pick.agents) <= 5

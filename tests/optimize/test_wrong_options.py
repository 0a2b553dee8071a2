"""Options that are no such thing are refused when the search is made: nothing is asked before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import dspy
import pytest

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.data import FieldMetric, answer_match
from moa_dspy.errors import ArchitectureError, MetricError, PoolError, StudyError
from moa_dspy.testing import scripted_pool

ROWS = [dspy.Example(question=f"{i}", answer="Paris").with_inputs("question") for i in range(30)]


class Client:
    """A client that is called like an LM and is none."""

    model = "own/x"

    def __call__(self, prompt: str) -> list[str]:
        return [prompt]


def one_argument(prediction: object) -> float:
    return float(prediction is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "answer_match"}, r"`metric` must be a function .*METRICS.* got 'answer_match'"),
        ({"metric": 0.5}, r"`metric` must be a function .* got 0.5"),
        ({"metric": one_argument}, r"`metric` must be .* one_argument has the signature \(pred"),
        ({"n_trials": "8"}, r"`n_trials` must be a whole number, but got '8'"),
        ({"n_trials": 8.5}, r"`n_trials` must be a whole number, but got 8.5"),
        ({"num_threads": True}, r"`num_threads` must be a whole number, but got True"),
        ({"min_gain": "3 %"}, r"`min_gain` must be a number in \(0, 1\), but got '3 %'"),
        ({"random_share": None}, r"`random_share` must be a number .* got None"),
        ({"diversity_weight": "0.1"}, r"`diversity_weight` must be a number .* got '0.1'"),
        ({"budget": "1 usd"}, r"`budget` must be a number of usd, or a Budget .* got '1 usd'"),
        ({"limits": {"calls": 3}}, r"`limits` must be Limits, .* got a table"),
        ({"space": ["a", "b"]}, r"`space` must be a SearchSpace, but got a list of 2"),
        ({"objectives": "win_rate"}, r"`objectives` must be a list of calls, .* got 'win_rate'"),
        ({"objectives": None}, r"`objectives` must be a list of .* got None"),
        ({"diversity": 5}, r"`diversity` must be one of .*, but got 5"),
        ({"diversity": lambda texts: None}, r"`diversity` must be one of .* returned None"),
        ({"diversity": lambda texts: "x"}, r"`diversity` must be one of .* returned 'x'"),
        ({"diversity": lambda texts: float("nan")}, r"`diversity` must be .* returned nan"),
        ({"diversity": lambda texts: 1 / 0}, r"`diversity` .* it raised ZeroDivisionError"),
        ({"prompts": True}, r"`prompts` must be PromptOptions, .* got True"),
        ({"predictor": 1}, r"`predictor` must be the path .* got 1"),
        ({"callbacks": print}, r"`callbacks` must be a list of functions"),
        (
            {"callbacks": ["stop"]},
            r"`callbacks` must be functions of .*, but got 'stop'",
        ),
        ({"callbacks": [one_argument]}, r"`callbacks` must be .* one_argument has the signature"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_of_another_kind_is_refused_with_its_value(
    options: dict[str, Any], words: str
) -> None:
    pool = scripted_pool({name: "Paris" for name in "ab"})
    given: dict[str, Any] = {"metric": answer_match, **options}
    with pytest.raises(StudyError, match=words):
        ModelSearch(pool=pool, **given)


@pytest.mark.parametrize("make", [Pool.from_lms, lambda lms: ModelSearch(answer_match, lms)])
def test_what_is_no_lm_makes_no_pool(make: Callable[[Any], Any]) -> None:
    with pytest.raises(PoolError, match=r"made of LMs such as .* but got 'openai/gpt-4o'"):
        make(["openai/gpt-4o"])
    with pytest.raises(PoolError, match=r"made of LMs such as .* but got None"):
        make({"a": None})
    with pytest.raises(PoolError, match=r"made of LMs such as .* but got .*Client"):
        make([Client()])


def test_pools_and_lists_of_layers_have_one_meaning_of_an_lm() -> None:
    # DSPy's predictors would refuse it at the first question.
    for given in (Client(), [Client()], {"a": Client()}):
        with pytest.raises(PoolError, match="made of LMs such as"):
            Pool.from_lms(cast("Any", given))
    with pytest.raises(ArchitectureError, match="all LMs, but one is a Client"):
        MixtureOfAgents("question -> answer", layers=[[Client()]], aggregator=Client())


def test_a_student_without_a_mixture_is_told_which_predictors_it_has() -> None:
    class Thoughtful(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.think = dspy.ChainOfThought("question -> answer")

    pool = scripted_pool({name: "Paris" for name in "ab"})
    search = ModelSearch(answer_match, pool, display_progress=False)
    words = r"is a Thoughtful without one\. Name the predictor .* \(`predictor`\): think\.predict\."
    with pytest.raises(StudyError, match=words):
        search.compile(Thoughtful(), trainset=ROWS)
    assert pool.calls.ledger.spending.made == 0


def test_a_right_answer_that_a_named_metric_cannot_score_costs_nothing() -> None:
    pool = scripted_pool({"a": lambda prompt: "1"})
    rows = [dspy.Example(question=f"{i}", answer=str(i)).with_inputs("question") for i in range(16)]
    rows[15]["answer"] = "n/a"
    search = ModelSearch(FieldMetric.of("numeric_match", "question -> answer"), pool)
    with pytest.raises(MetricError, match=r"^Row '\S+' of test: .* a number, but is 'n/a'"):
        search.compile(
            dspy.Predict("question -> answer"), trainset=[], valset=rows[:8], testset=rows[8:]
        )
    assert pool.calls.ledger.spending.made == 0

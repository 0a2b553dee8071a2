"""A predictor of an existing program becomes the searched mixture; the program stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import optuna
import pytest

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.data import answer_match
from moa_dspy.errors import ArchitectureError, StoreError, StudyError
from moa_dspy.optimize import SearchSpace
from moa_dspy.testing import scripted_pool

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Chad": "Chad"}


class Rag(dspy.Module):
    """Looks a passage up, and answers from it with reasoning."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict("question -> topic")]
        self.answer = dspy.ChainOfThought(
            dspy.Signature("context, question -> answer", "Answer from the context.")
        )

    def forward(self, question: str) -> Any:
        context = f"It is known of {question.split()[-1]}."
        return self.answer(context=context, question=question)


def said(**values: str) -> str:
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


def knows(*countries: str) -> Callable[[str], str]:
    """Answers on some countries, if it was given the context of its question."""

    def script(prompt: str) -> str:
        country = prompt.rpartition("It is known of ")[2].split(".")[0]
        assert "Answer from the context." in prompt
        return said(reasoning="I read.", answer=CAPITALS[country] if country in countries else "?")

    return script


def pool_of_three() -> Pool:
    names = list(CAPITALS)
    return scripted_pool(
        {name: knows(*names[: n + 2]) for n, name in enumerate("abc")}, reads_all=True
    )


def rows(split: str, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{split} {n}: capital of {name}", answer=town).with_inputs(
            "question"
        )
        for n in range(n)
        for name, town in CAPITALS.items()
    ]


def search(pool: Pool, **options: Any) -> ModelSearch:
    space = SearchSpace(tuple(pool), ("vote",), max_depth=1)
    given: dict[str, Any] = {"n_trials": 4, "predictor": "answer", **options}
    return ModelSearch(answer_match, pool, space=space, **given)


def test_the_predictor_is_searched_and_the_rest_of_the_program_stays() -> None:
    pool, program = pool_of_three(), Rag()
    program.answer.predict.demos = [{"context": "c", "question": "q", "answer": "a shown one"}]
    found = search(pool)
    made = found.compile(program, trainset=[], valset=rows("val", 2), testset=rows("test", 2))
    assert type(made) is Rag
    assert isinstance(made.answer, MixtureOfAgents)
    # c knows four of the five countries, and no vote knows more.
    assert str(made.answer.architecture) == "c"
    assert found.result.test["best_single"].score == 0.8
    asked = made(question="new 1: capital of Peru")
    assert (asked.answer, asked.reasoning) == ("Lima", "I read.")
    # The program that was given is as it was.
    assert type(program.answer) is dspy.ChainOfThought
    (seat,) = made.answer.predictors()
    assert seat.demos == program.answer.predict.demos
    assert list(seat.signature.output_fields) == ["reasoning", "answer"]
    assert [name for name, _ in made.named_predictors()] == [
        "steps[0]",
        "answer.aggregator.predict",
    ]


@pytest.mark.parametrize("path", ["answer.predict", "steps[0]"])
def test_a_path_is_as_dspy_names_its_predictors(path: str) -> None:
    made = MixtureOfAgents.in_place_of(Rag(), path, pool=pool_of_three())
    at = made.answer if path.startswith("answer") else made.steps[0]
    assert isinstance(at, MixtureOfAgents)
    assert str(at.architecture) == "a"


@pytest.mark.parametrize("is_frozen", [False, True])
def test_another_mixture_of_the_program_stays_as_it_is(is_frozen: bool) -> None:
    pool, program = pool_of_three(), Rag()
    program.steps = [MixtureOfAgents("question -> topic", "b", pool=pool)]
    program.steps[0]._compiled = is_frozen
    splits = {"trainset": [], "valset": rows("val", 2), "testset": rows("test", 2)}
    found = search(pool)
    made = found.compile(program, **splits)
    # Of one mixture, so without a path.
    assert found.result.trials[0].architecture in "abc"
    assert str(made.answer.architecture) == str(found.result.recommended)
    assert str(made.steps[0].architecture) == "b"
    assert made.steps[0]._compiled is is_frozen
    pool_of_its_own = Rag()
    pool_of_its_own.steps = [MixtureOfAgents("question -> topic", "b", pool=pool_of_three())]
    with pytest.raises(StudyError, match="must be made with the search's own pool"):
        search(pool).compile(pool_of_its_own, **splits)


def test_a_program_that_is_one_predictor_becomes_the_mixture() -> None:
    for program in (dspy.Predict("question -> answer"), dspy.ChainOfThought("question -> answer")):
        made = MixtureOfAgents.in_place_of(program, "self", pool=pool_of_three())
        assert isinstance(made, MixtureOfAgents)
        assert list(made.signature.fields) == ["question", "answer"]


def test_a_wrong_path_lists_the_paths_and_asks_no_agent() -> None:
    pool = pool_of_three()
    message = r"a predictor of Rag \(steps\[0\], answer\), but got 'anwser'"
    with pytest.raises(ArchitectureError, match=message):
        search(pool, predictor="anwser").compile(
            Rag(), trainset=[], valset=rows("val", 1), testset=rows("test", 1)
        )
    # A seat of a mixture is no predictor of the program.
    whole = MixtureOfAgents.in_place_of(Rag(), "answer", pool=pool)
    with pytest.raises(ArchitectureError, match=r"of Rag \(steps\[0\]\), but got 'answer'"):
        MixtureOfAgents.in_place_of(whole, "answer", pool=pool)
    assert pool.calls.ledger.spending.made == 0


def test_what_was_found_is_saved_and_loaded_into_the_original_class(tmp_path: Path) -> None:
    pool = pool_of_three()
    made = search(pool).compile(Rag(), trainset=[], valset=rows("val", 2), testset=rows("test", 2))
    made.save(tmp_path / "rag.json")
    loaded = MixtureOfAgents.in_place_of(Rag(), "answer", pool=pool)
    loaded.load(tmp_path / "rag.json")
    made.save(tmp_path / "whole", save_program=True)
    whole = pool.attach(dspy.load(tmp_path / "whole", allow_pickle=True))
    for program in (loaded, whole):
        assert type(program).__name__ == "Rag"
        assert str(program.answer.architecture) == "c"
        assert program(question="new 2: capital of Spain").answer == "Madrid"


@pytest.mark.slow
def test_the_trials_are_in_the_storage_with_named_objectives(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    kept = optuna.storages.InMemoryStorage()
    for storage in (url, kept, optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'own.db'}")):
        found = search(pool_of_three(), storage=storage)
        found.compile(Rag(), trainset=[], valset=rows("val", 1), testset=rows("test", 1))
        study = optuna.load_study(study_name=found.study.study_name, storage=storage)
        assert study.metric_names == ["win_rate", "diversity"]
        assert len(study.trials) == len(found.result.trials) == 4
        assert study.trials[0].values == found.study.trials[0].values
    # A second search is a second study, and replaces none.
    again = search(pool_of_three(), storage=url)
    again.compile(Rag(), trainset=[], valset=rows("val", 1), testset=rows("test", 1))
    assert len(optuna.get_all_study_summaries(url)) == 2


def test_a_storage_that_cannot_be_used_is_found_before_anything_is_spent(tmp_path: Path) -> None:
    pool = pool_of_three()
    with pytest.raises(StudyError, match=r"`storage` must be a URL .* but got 3"):
        search(pool, storage=3)
    file = f"sqlite:///{tmp_path / 'absent' / 'optuna.db'}"
    for url, why in ((file, "unable to open"), ("postgresql://127.0.0.1:1/none", "Operational")):
        with pytest.raises(StoreError, match=f"cannot be used: {why}"):
            search(pool, storage=url).compile(
                Rag(), trainset=[], valset=rows("val", 1), testset=rows("test", 1)
            )
    assert pool.calls.ledger.spending.made == 0

"""A program with two mixtures, of which the best pair is known, is searched end to end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import dspy
import optuna
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Calls
from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import (
    Limits,
    ModelSearch,
    ProgramSpace,
    PromptOptions,
    SearchSpace,
    StudyResult,
)
from moa_dspy.optimize.evaluate import mixtures_of
from moa_dspy.optimize.several import ProgramEvaluator, ProgramStudent
from moa_dspy.optimize.space.programs import read_architecture
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

WRITERS, READERS = ("w0", "w1", "w2"), ("r0", "r1", "r2")
SPACE = SearchSpace((*WRITERS, *READERS), max_depth=1)
VOTES = SearchSpace((*WRITERS, *READERS), combines=("vote",), max_depth=1)
N_NODES = 6 + (15 + 20) * 6
"""Calls of a row that all architectures of one mixture take: 6 agents alone, and each as the
synthesizer of 15 pairs and 20 triples; votes read what is known."""
BEST = "query: w0 + w1 + w2 > vote(w0); answer: r0 + r1 + r2 > vote(r0)"


def agent(writes: tuple[int, ...], reads: tuple[int, ...]) -> Callable[[str], str]:
    """Return an agent that errs where these are the rests of the number, and of its third.

    So what goes wrong with a query has nothing to do with what goes wrong with an answer.
    """

    def reply(prompt: str) -> str:
        first = prompt.splitlines()[0]
        number = int("".join(char for char in first if char.isdigit()))
        if "note" in first:
            return f"no{number} {reads}" if number // 3 % 3 in reads else str(number)
        return f"lost {writes}" if number % 3 in writes else f"key{number}"

    return reply


def make_pool(**options: Any) -> Pool:
    """Return three agents whose queries err in turn, and three whose answers do."""
    writers = {f"w{i}": agent((i,), (0, 1)) for i in range(3)}
    return scripted_pool(writers | {f"r{i}": agent((0, 1), (i,)) for i in range(3)}, **options)


class Rag(dspy.Module):
    """Writes a query, looks it up, and answers from what was found."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.query = MixtureOfAgents("question -> query", "w0", pool=pool, adapter=PlainChat())
        self.answer = MixtureOfAgents("passage -> answer", "w0", pool=pool, adapter=PlainChat())

    def forward(self, question: str) -> Any:
        query = self.query(question=question).query
        return self.answer(passage=query.replace("key", "note ") if "key" in query else "note 999")


def rows(split: str, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(id=f"{split}-{i}", question=f"{split} {i}", answer=str(i)).with_inputs(
            "question"
        )
        for i in range(n)
    ]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer == example.answer)


def compiled(
    pool: Pool, *, n_val: int = 18, n_test: int = 45, **options: Any
) -> tuple[ModelSearch, Any]:
    options = {"space": SPACE, "n_trials": 40, "num_threads": 1, **options}
    search = ModelSearch(exact, pool, **options)
    splits = {"valset": rows("val", n_val), "testset": rows("test", n_test)}
    return search, search.compile(Rag(pool), trainset=[], **splits)


FEW: dict[str, Any] = {"space": VOTES, "n_val": 9, "n_test": 9}


@cache
def found() -> tuple[ModelSearch, Any, int]:
    """Return a search, its program, and how many calls were made."""
    pool = make_pool()
    return (*compiled(pool), pool.calls.ledger.spending.made)


slow = pytest.mark.slow


def test_what_agents_answered_in_each_mixture_is_known_until_others_are_measured() -> None:
    program = ProgramStudent.of_several(Rag(make_pool()))
    evaluator = ProgramEvaluator(program, exact, num_threads=1)
    asked, names = rows("val", 3), ("w0", "w1")
    for name in names:
        evaluator.measure(Architecture.single(name), asked)
    query, answer = evaluator.answers_alone(names, asked)
    # w0 finds nothing for 0, and w1 nothing for 1.
    assert query.replies["w0"] == ["lost (0,)", "key1", "key2"]
    assert query.replies["w1"] == ["key0", "lost (1,)", "key2"]
    assert query.places["w0"] == query.places["w1"]
    same = [a == b for a, b in zip(*answer.places.values(), strict=True)]
    assert same == [False, False, True]
    assert query.agents["w0"].alone.calls == answer.agents["w1"].alone.calls == 1
    evaluator.measure(read_architecture("query: w0; answer: w1"), asked)
    assert evaluator.answers_alone(names, asked) == []


@slow
def test_the_best_pair_is_found_with_fewer_calls_than_one_mixture_has() -> None:
    search, program, n_calls = found()
    result = search.result
    assert str(result.pick) == str(result.recommended) == BEST
    assert result.verdict.kind == "mixture"
    # Each writer and each reader is right about 2 of 3, and the errors are independent.
    assert result.test["best_single"].architecture == "query: w0; answer: r0"
    assert result.test["best_single"].score == pytest.approx(4 / 9)
    assert result.test["pick"].score == 1
    n_asked = sum(not trial.is_stopped_early for trial in result.trials) * 18
    assert len(result.trials) == 40
    assert n_asked <= 40 * 18 < SPACE.size**2 * 18  # type: ignore[operator]
    # Test rows included, it asks less than all architectures of one mixture take on val.
    assert n_calls < N_NODES * 18
    assert program(question="new 44").answer == "44"


@slow
def test_report_study_and_program_name_each_mixture_by_its_path() -> None:
    search, program, _ = found()
    result, study = search.result, search.study
    assert str(result).endswith("which count 0.4 each.")
    assert f"Use the mixtures: {BEST} beats query: w0; answer: r0 by " in str(result)
    assert "pick         query: w0 + w1 + w2 > vote(w0); " in str(result)
    assert result.early is not None
    assert result.early.leader == "w0 in every mixture"
    assert {trial.user_attrs["architecture"] for trial in study.trials} == {
        trial.architecture for trial in result.trials
    }
    best = next(t for t in study.trials if t.user_attrs["architecture"] == BEST)
    assert best.params["query.layer1.w1"] is True
    assert best.params["answer.layer1.w1"] is False
    assert best.params["answer.kind"] == "layers"
    assert {name: str(mixture.architecture) for name, mixture in mixtures_of(program).items()} == {
        "self.query": "w0 + w1 + w2 > vote(w0)",
        "self.answer": "r0 + r1 + r2 > vote(r0)",
    }
    assert {type(candidate["program"]) for candidate in program.candidate_programs} == {Rag}
    again = StudyResult.from_json(result.to_json())
    assert again.pick == result.pick
    assert again.to_json() == result.to_json()


@slow
def test_the_program_is_saved_and_loaded_with_both(tmp_path: Any) -> None:
    _, program, _ = found()
    program.save(tmp_path / "rag.json")
    loaded = Rag(make_pool())
    loaded.load(tmp_path / "rag.json")
    assert str(loaded.answer.architecture) == "r0 + r1 + r2 > vote(r0)"
    assert loaded(question="new 44").answer == "44"


def test_the_student_stays_as_it_was() -> None:
    pool = make_pool()
    student = Rag(pool)
    search = ModelSearch(exact, pool, space=VOTES, n_trials=8)
    search.compile(student, trainset=[], valset=rows("val", 6), testset=rows("test", 6))
    assert [str(mixture.architecture) for mixture in mixtures_of(student).values()] == ["w0", "w0"]


def test_a_frozen_mixture_is_not_searched_and_one_that_stands_twice_is_one() -> None:
    pool = make_pool()
    student = Rag(pool)
    student.again, student.checks = student.query, {"last": student.answer, 1: Rag(pool).answer}
    student.checks[1]._compiled = True
    splits = {"valset": rows("val", 9), "testset": rows("test", 9)}
    search = ModelSearch(exact, pool, space=VOTES, n_trials=8)
    program = search.compile(student, trainset=[], **splits)
    pick: Any = search.result.pick
    assert {path for path, _ in pick.parts} == {"query", "answer"}
    assert program.again is program.query
    assert program.checks["last"] is program.answer
    assert str(program.checks[1].architecture) == "w0"
    student.answer._compiled = True
    search.compile(student, trainset=[], **splits)
    assert not hasattr(search.result.pick, "parts"), "of one mixture"


@slow
def test_the_best_single_agent_is_chosen_for_each_mixture() -> None:
    texts = [trial.architecture for trial in found()[0].result.trials if trial.origin == "single"]
    assert texts[0] == "query: w0; answer: w0"
    # 6 in both, then 5 others as the writer, and 5 others as the reader for the best writer.
    assert len(texts) == len(set(texts)) == 16
    assert "query: w0; answer: r0" in texts


@slow
def test_a_search_that_was_killed_pays_nothing_twice() -> None:
    class Killed(BaseException):
        pass

    def kill(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 25:
            raise Killed

    calls = Calls()
    with pytest.raises(Killed):
        compiled(make_pool(calls=calls), **FEW, n_trials=30, callbacks=[kill])
    paid = calls.ledger.spending.made
    search, _ = compiled(make_pool(calls=calls), **FEW, n_trials=30)
    undisturbed = make_pool()
    same, _ = compiled(undisturbed, **FEW, n_trials=30)
    assert str(search.result.pick) == str(same.result.pick)
    whole = undisturbed.calls.ledger.spending.made
    assert 0 < paid < calls.ledger.spending.made == whole


@slow
def test_callbacks_see_each_trial_and_may_stop() -> None:
    seen: list[int] = []

    def watch(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(trial.number)
        if trial.number == 20:
            study.stop()

    search, _ = compiled(make_pool(), **FEW, n_trials=24, callbacks=[watch])
    assert seen == list(range(21))
    assert search.result.stopped_by == "A callback called study.stop()."
    assert search.result.test["best_single"].score is not None


@slow
@pytest.mark.parametrize("calls", [600, 900])
def test_a_budget_is_never_exceeded_and_reaches_a_verdict(calls: int) -> None:
    pool = make_pool()
    search, _ = compiled(pool, budget=Budget(calls=calls))
    assert pool.calls.ledger.spending.made <= calls
    assert search.result.test["pick"].score is not None
    assert search.result.test["best_single"].score is not None


@slow
def test_a_pick_stays_within_the_limits() -> None:
    search, _ = compiled(make_pool(), **FEW, limits=Limits(calls=4))
    assert search.result.val["pick"].calls is not None
    assert search.result.val["pick"].calls <= 4


@slow
@pytest.mark.parametrize("name", ["TPESampler", "NSGAIISampler", "RandomSampler"])
def test_other_samplers_may_propose(name: str) -> None:
    sampler = getattr(optuna.samplers, name)(seed=0)
    search, _ = compiled(make_pool(), **FEW, n_trials=24, sampler=sampler)
    texts = [trial.architecture for trial in search.result.trials]
    assert len(set(texts)) == len(texts) == 24
    assert {trial.origin for trial in search.result.trials} >= {"single", "baseline", "sampler"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompts": PromptOptions(texts={"brief": "Be brief."})},
            "`prompts` can only be used with a student",
        ),
        (
            {"space": ProgramSpace.of({"query": SPACE, "reply": SPACE})},
            "`space` is of the mixtures query, reply, but `student` holds query, answer",
        ),
        (
            {"space": ProgramSpace.of({"query": SearchSpace(WRITERS), "answer": SPACE})},
            "must name the same agents, .* one space names w0, w1, w2 of w0, w1, w2, r0, r1, r2",
        ),
    ],
)
def test_what_goes_with_one_mixture_only_is_refused(options: Any, message: str) -> None:
    pool = make_pool()
    with pytest.raises(StudyError, match=message):
        compiled(pool, **options)
    assert pool.calls.ledger.spending.made == 0


@slow
def test_each_mixture_may_have_a_space_of_its_own() -> None:
    agents = (*WRITERS, *READERS)
    alone = SearchSpace(agents, max_depth=0)
    space = ProgramSpace.of({"query": alone, "answer": VOTES})
    search, _ = compiled(make_pool(), **FEW | {"space": space}, n_trials=22)
    models = [trial.architecture for trial in search.result.trials if trial.origin == "model"]
    assert models
    queries = [Architecture.parse(text.split("query: ")[1].split(";")[0]) for text in models]
    assert {query.depth for query in queries} == {0}
    # Top-k in every mixture is outside of the space; that it is no choice is in its parameters.
    outside = [t for t in search.study.trials if t.user_attrs["origin"] == "baseline"]
    assert {tuple(sorted(trial.params)) for trial in outside} == {("answer.kind", "query.kind")}

"""Votes on answers that are hardly ever equal: said, not sought, not proposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.optimize.early_facts import (
    IDLE,
    EarlyFacts,
    agreed_share,
    contested_share,
    early_facts,
)
from moa_dspy.optimize.report import early_lines
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]


def ballots(*answers: Sequence[str | None]) -> Ballots:
    """Return ballots of a, b, c, of which "r" is right."""
    given = dict(zip("abc", answers, strict=False))
    ballots_of = {
        name: [None if answer is None else (answer,) for answer in row]
        for name, row in given.items()
    }
    scores = {name: [float(answer == "r") for answer in row] for name, row in given.items()}
    return Ballots.of(ballots_of, scores)


def facts(found: Ballots) -> EarlyFacts:
    scores = dict(zip(found.agents, found.scores, strict=True))
    return early_facts(scores, ballots=found, max_width=3)


def test_shares_of_rows_counted_by_hand() -> None:
    # a leads. Row 0: b and c agree against it; row 1: all differ; row 2: a and b agree;
    # row 3: b and c are silent, which is no agreement.
    found = ballots(["r", "r", "r", "r"], ["x", "y", "r", None], ["x", "z", "z", None])
    assert contested_share(found, "a") == 1 / 4
    assert agreed_share(found) == 2 / 4


@pytest.mark.parametrize(("n_contested", "is_idle"), [(0, True), (1, True), (2, False), (3, False)])
def test_votes_are_idle_below_one_row_in_a_hundred(n_contested: int, is_idle: bool) -> None:
    # Of 200 rows: 0.5 % is below 1 %, 1 % is not.
    agree = ["x"] * n_contested
    rest = 200 - n_contested
    found = facts(
        ballots(
            ["r"] * 200,
            [*agree, *(f"b{i}" for i in range(rest))],
            [*agree, *(f"c{i}" for i in range(rest))],
        )
    )
    assert found.contested == n_contested / 200
    assert IDLE == 0.01
    assert (found.is_vote_idle, found.are_answers_unlike) == (is_idle, is_idle)
    assert EarlyFacts.from_json(found.to_json()) == found
    lines = "\n".join(early_lines(found))
    assert ("For that reason no vote is searched for; baselines and" in lines) == is_idle
    assert ("a vote is the answer of its tie-breaker, for several calls" in lines) == is_idle


def test_copies_agree_but_not_against_the_leader() -> None:
    found = facts(ballots(["r"] * 9, ["r"] * 9, ["r"] * 8 + ["x"]))
    assert (found.contested, found.agreed) == (0.0, 1.0)
    assert (found.is_vote_idle, found.are_answers_unlike) == (True, False)
    assert "For that reason none is tried as one of the best" in "\n".join(early_lines(found))


def test_without_ballots_nothing_is_said_of_votes() -> None:
    found = early_facts({"a": [1.0, 0.0], "b": [0.0, 1.0]})
    assert (found.is_vote_idle, found.are_answers_unlike) == (False, False)


def test_one_agent_has_no_one_to_agree_with() -> None:
    found = early_facts({"a": [1.0, 0.0]}, ballots=ballots(["r", "x"]))
    assert not found.are_answers_unlike


def holds_number(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return f"is {example.answer}." in prediction.answer


def writers(*, alike: bool) -> Pool:
    """Return agents that write sentences of their own, or one sentence; each knows two thirds."""

    def make(number: int) -> Callable[[str], str]:
        def reply(prompt: str) -> str:
            asked = int(prompt.splitlines()[0].split()[-1])
            said = asked if asked % 3 != number else asked + 1000
            return f"It is {said}." if alike else f"Writer {number} thinks it is {said}."

        return reply

    return scripted_pool({f"w{i}": make(i) for i in range(3)})


def searched(
    pool: Pool, rows: Make, student: Make, **options: Any
) -> tuple[ModelSearch, list[Architecture]]:
    space = SearchSpace(tuple(pool), max_depth=1, **options)
    search = ModelSearch(holds_number, pool, space=space, n_trials=30)
    search.compile(student(pool), trainset=[], valset=rows("val", 30), testset=rows("test", 9))
    return search, [Architecture.parse(trial.architecture) for trial in search.result.trials]


def test_votes_on_free_text_are_neither_sought_nor_proposed(rows: Make, student: Make) -> None:
    search, tried = searched(writers(alike=False), rows, student)
    early = search.result.early
    assert early is not None
    assert early.are_answers_unlike
    assert {arch.combine for arch in tried if arch.layers} == {"synthesize"}
    assert search.result.pick.combine == "synthesize"  # also of a single agent


def test_where_only_votes_are_allowed_none_is_sought(rows: Make, student: Make) -> None:
    search, tried = searched(writers(alike=False), rows, student, combines=("vote",))
    trials = search.result.trials
    assert [trial.origin for trial in trials] == ["single"] * 3 + ["baseline"] * (len(trials) - 3)
    assert {arch.combine for arch in tried if arch.layers} == {"vote"}  # compared in every report
    assert (search.result.pick.layers, search.result.space_size) == ((), 3)


def test_votes_on_answers_that_agree_are_sought_and_picked(rows: Make, student: Make) -> None:
    search, tried = searched(writers(alike=True), rows, student)
    early = search.result.early
    assert early is not None
    # On every third row the leader is wrong and the two others agree.
    assert early.contested == pytest.approx(1 / 3)
    assert not early.is_vote_idle
    assert any(arch.combine == "vote" for arch in tried)
    assert search.result.pick.combine == "vote"


def test_idle_votes_say_so_in_the_mixture(student: Make) -> None:
    pool = writers(alike=False)
    program: MixtureOfAgents = student(pool).with_architecture(
        Architecture.parse("w0 + w1 + w2 > vote(w1)")
    )
    # All differ: the tie-breaker's answer, after three calls.
    answer = program(question="val 4").mixture
    assert (answer.final.agent, answer.calls) == ("w1", 3)

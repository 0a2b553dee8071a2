"""Data on which no comparison can be decided."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, ModelSearch
from moa_dspy.optimize.early_facts import check_decidable, undecidable
from moa_dspy.optimize.judge_facts import check_readable
from moa_dspy.testing import scripted_pool


@pytest.mark.parametrize(
    ("scores", "case"),
    [
        ({"a": [0.0, 0.0], "b": [0.0, 0.0]}, "all_wrong"),
        ({"a": [0.0]}, "all_wrong"),
        ({"a": [1.0, 1.0], "b": [1.0, 1.0]}, "all_right"),
        ({"a": [0.5, 1.0], "b": [0.5, 1.0]}, "all_equal"),
        ({"a": [0.5, 1.0]}, None),
        ({"a": [0.0, 1.0], "b": [1.0, 0.0]}, None),
        ({"a": [0.0, 0.0], "b": [0.0, 0.1]}, None),
        ({}, None),
    ],
)
def test_what_cannot_decide(scores: dict[str, list[float]], case: str | None) -> None:
    assert undecidable(scores) == case


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (0.0, "All 2 agents score 0 on all 3 questions of val"),
        (1.0, "All 2 agents score 100 % on all 3 questions of val"),
        (0.5, "All 2 agents score the same on each of all 3 questions of val"),
    ],
)
def test_the_error_shows_gold_beside_replies(score: float, said: str) -> None:
    expected = (
        f"{said}, so no comparison can be decided. Is the metric or the format of the answers "
        "wrong? Expected '7'; strong replied 'about 7'; weak replied '0'."
    )
    with pytest.raises(StudyError, match=f"^{re.escape(expected)}$"):
        check_decidable(
            {"strong": [score] * 3, "weak": [score] * 3},
            gold="7",
            replies={"strong": ["about\n 7", "8", "9"], "weak": ["0"] * 3},
        )


def test_without_a_gold_nothing_is_said_to_be_expected() -> None:
    with pytest.raises(StudyError, match=r"format of the answers wrong\? a replied 'A'\.$"):
        check_decidable({"a": [0.0]}, gold="", replies={"a": ["A"]})


def test_copies_of_one_model_may_score_alike() -> None:
    said = ["7", "x"]
    check_decidable({"a": [1.0, 0.0], "b": [1.0, 0.0]}, gold="7", replies={"a": said, "b": said})
    with pytest.raises(StudyError, match="All 2 agents score the same on each of all 2 questions"):
        check_decidable(
            {"a": [1.0, 0.0], "b": [1.0, 0.0]}, gold="7", replies={"a": said, "b": ["7", "y"]}
        )


def test_a_long_reply_is_cut() -> None:
    with pytest.raises(StudyError, match=r"The only agent scores 0 on the only .* 'x{199}…'\.$"):
        check_decidable({"a": [0.0]}, gold="7", replies={"a": ["x" * 5_000]})


def test_a_ranker_that_is_never_understood() -> None:
    check_readable("the ranker grand", n_asked=3, n_unread=2, replies=[])
    check_readable("the ranker grand", n_asked=0, n_unread=0, replies=[])
    with pytest.raises(
        StudyError, match=r"None of the 3 replies of the ranker grand .* It replied 'I like both'\."
    ):
        check_readable("the ranker grand", n_asked=3, n_unread=3, replies=["I like both"])


def test_a_judge_that_is_seldom_understood() -> None:
    check_readable("the judge", n_asked=4, n_unread=2, replies=["hm"] * 2, most=0.75)
    with pytest.raises(
        StudyError, match=r"^3 of 4 replies of the judge could not .* It replied 'a'; 'b'; 'c'\.$"
    ):
        check_readable("the judge", n_asked=4, n_unread=3, replies=["a", "b", "c", "d"], most=0.75)


def test_a_study_stops_after_the_single_agents(
    rows: Callable[..., Any], student: Callable[..., Any]
) -> None:
    pool = scripted_pool({"a": lambda _: "red", "b": lambda _: "blue"})
    search = ModelSearch(lambda row, said: said.answer == row.answer, pool, n_trials=9)
    splits = {"trainset": [], "valset": rows("val", 4), "testset": rows("test", 3)}
    with pytest.raises(
        StudyError,
        match=r"All 2 agents score 0 on all 4 .* Expected '0'; a replied 'red'; b replied",
    ):
        search.compile(student(pool), **splits)
    # Two agents on four rows; nothing more was asked.
    assert pool.calls.ledger.spending.made == 8


@pytest.mark.parametrize("combine", ["select", "knockout"])
def test_a_study_ends_whose_ranker_never_names_a_response(
    combine: str, rows: Callable[..., Any], fails_on: Callable[..., Any]
) -> None:
    agents = {"a": fails_on(1), "b": fails_on(2), "r": lambda _: "Both are fine."}
    pool = scripted_pool(agents)
    student = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
    architecture = Architecture.parse(f"a + b > {combine}(r)")
    evaluator = Evaluator(student, lambda row, said: said.answer == row.answer, num_threads=1)
    with pytest.raises(
        StudyError,
        match=rf"None of the \d replies of {combine}\(r\) could be read.*'Both are fine\.'",
    ):
        evaluator.measure(architecture, rows("val", 12))


def test_a_ranker_that_is_read_now_and_then_ends_nothing(
    rows: Callable[..., Any], fails_on: Callable[..., Any]
) -> None:
    replies = iter(["Both are fine.", "[[1]]"] * 20)
    agents = {"a": fails_on(1), "b": fails_on(2), "r": lambda _: next(replies)}
    pool = scripted_pool(agents)
    student = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
    evaluator = Evaluator(student, lambda row, said: said.answer == row.answer, num_threads=1)
    found = evaluator.measure(Architecture.parse("a + b > select(r)"), rows("val", 12))
    assert len(found) == 12
    (choices,) = evaluator.node_cache.choices.values()
    assert (choices.n_asked, choices.n_unread) == (12, 6)

from __future__ import annotations

import pytest

from moa_dspy.agent import Agent
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.space.programs import (
    baseline_architectures,
    baseline_combine,
    self_moa_of,
    top_k,
)
from moa_dspy.pool import Pool

RANKING = ["b", "a", "c"]


def pool(temperature: float = 0.7) -> Pool:
    return Pool(
        [Agent(name=name, model=f"vendor/{name}", temperature=temperature) for name in "abc"]
    )


def test_top_k_is_the_best_k_and_the_best_one_decides() -> None:
    assert str(top_k(RANKING, 2)) == "a + b > vote(b)"
    assert str(top_k(RANKING, 3, combine="synthesize")) == "a + b + c > synthesize(b)"


def test_self_moa_samples_the_best_agent_three_times() -> None:
    assert str(self_moa_of(RANKING, pool())) == "b*3 > vote(b)"
    assert str(self_moa_of(RANKING, pool(), combine="synthesize")) == "b*3 > synthesize(b)"


def test_a_greedy_agent_has_no_samples_unless_a_warm_twin_is_in_the_search() -> None:
    assert self_moa_of(RANKING, pool(0.0)) is None
    warm = Agent(name="b-warm", model="vendor/b", temperature=0.7)
    other = Agent(name="d-warm", model="vendor/d", temperature=0.7)
    twins = Pool([*pool(0.0).values(), other, warm])
    assert str(self_moa_of([*RANKING, "d-warm", "b-warm"], twins)) == "b-warm*3 > vote(b-warm)"
    assert self_moa_of(RANKING, twins) is None


@pytest.mark.parametrize(
    ("combines", "expected"),
    [
        (("synthesize", "vote"), "vote"),
        (("vote",), "vote"),
        (("synthesize",), "synthesize"),
        (("select",), "synthesize"),
    ],
)
def test_rivals_vote_where_votes_are_allowed(combines: tuple[str, ...], expected: str) -> None:
    assert baseline_combine(SearchSpace(("a", "b"), combines=combines)) == expected


def test_openers_are_self_moa_then_each_top_k_then_the_full_layers_of_the_paper() -> None:
    found = baseline_architectures(RANKING, pool(), SearchSpace(("a", "b", "c")))
    assert list(map(str, found)) == [
        "b*3 > vote(b)",
        "a + b > vote(b)",
        "a + b + c > vote(b)",
        "a + b + c > synthesize(b)",
        "a + b + c > a + b + c > synthesize(b)",
    ]


def test_openers_of_a_space_of_votes_ask_nobody_to_synthesize() -> None:
    space = SearchSpace(("a", "b", "c"), combines=("vote",), max_width=2)
    assert list(map(str, baseline_architectures(RANKING, pool(0.0), space))) == ["a + b > vote(b)"]


def test_one_agent_has_no_rivals_but_itself() -> None:
    space = SearchSpace(("a",), combines=("vote",))
    assert list(map(str, baseline_architectures(["a"], pool(), space))) == ["a*3 > vote(a)"]

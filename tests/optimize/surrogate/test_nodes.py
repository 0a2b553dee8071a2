from __future__ import annotations

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.surrogate.acquisition import nodes_of


def nodes(*texts: str) -> int:
    """Return the number of calls per question that these make together."""
    return len(frozenset().union(*(nodes_of(Architecture.parse(text)) for text in texts)))


@pytest.mark.parametrize(
    "text",
    ["a", "a + b > vote", "a*3 > select(b)", "a + b > a + c > synthesize(a)", "a + b > select"],
)
def test_one_architecture_has_a_node_per_call(text: str) -> None:
    assert nodes(text) == Architecture.parse(text).calls


def test_a_single_agent_is_a_node_of_every_first_layer() -> None:
    assert nodes("a", "b", "a + b > vote") == 2
    assert nodes("a", "b", "a + b > synthesize(a)") == 3


def test_fewer_samples_are_among_more() -> None:
    assert nodes("a*2 > vote", "a*3 > vote") == 3


def test_a_later_layer_is_another_node_when_it_reads_others() -> None:
    # a, b, c alone; c that read a and b, and c that read a and c; two aggregators
    assert nodes("a + b > c > synthesize(a)", "a + c > c > synthesize(a)") == 3 + 2 + 2


@pytest.mark.parametrize(
    "other",
    [
        "a + b > synthesize(c; order=b)",
        "a + b > synthesize(c; prompt=brief)",
        "a + b > select(c)",
        "a + b > synthesize(d)",
    ],
)
def test_another_order_prompt_combine_or_aggregator_is_another_call(other: str) -> None:
    assert nodes("a + b > synthesize(c)", other) == 4


def test_who_decides_the_ties_of_a_vote_is_no_call() -> None:
    assert nodes_of(Architecture.parse("a + b > vote(b)")) == nodes_of(
        Architecture.parse("a + b > vote(a)")
    )

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings

from moa_dspy.optimize.space import SearchSpace
from tests.optimize.spaces import (
    NAMES,
    enumerated,
    spaces,
)


@settings(deadline=None, max_examples=80)
@given(spaces())
def test_size_is_the_number_of_enumerated_architectures(space: SearchSpace) -> None:
    assert space.size == len(enumerated(space))


def test_more_samples_than_seats_change_nothing() -> None:
    few, many = (
        SearchSpace(("a", "b"), combines=("vote",), max_depth=1, max_width=3, max_samples=n)
        for n in (3, 2**31)
    )
    assert many.size == few.size
    assert many.draw(random.Random(1)).layers


def test_size_of_a_space_counted_by_hand() -> None:
    # 3 singles; layers of 2 or 3 of 3 agents: 3 + 1 = 4; depths 1 and 2: 4 + 16 = 20;
    # synthesize by any of 3, or vote: 20 * 4 = 80
    assert SearchSpace(NAMES[:3]).size == 3 + 80


def test_size_of_constrained_spaces_counted_by_hand() -> None:
    votes: dict[str, Any] = {"agents": tuple("abcd"), "combines": ("vote",), "max_depth": 1}
    # Layers of 2 or 3 of 4 agents: 6 + 4 = 10; those with a: 3 + 3.
    assert SearchSpace(**votes, must_include=("a",)).size == 4 + 6
    # Without a and b together: 6 - 1 pairs, 4 - 2 triples.
    assert SearchSpace(**votes, never_together=(("a", "b"),)).size == 4 + 7
    # One of a and b with one of c and d: 4 pairs, no triple.
    homes = dict(zip("abcd", "xxyy", strict=True))
    assert SearchSpace(**votes, max_per_provider=1, provider_of=homes).size == 4 + 4
    # c and d alone: 1 pair.
    assert SearchSpace(**votes, providers=("y",), provider_of=homes).size == 4 + 1


def test_size_counts_orders_that_differ_only() -> None:
    # Ranking c, a, b. Pairs by name and best first: ab is the same in both, ac and bc are not;
    # neither is abc: 1 + 2 + 2 + 2 = 7 ways to read, by any of 3 aggregators.
    space = SearchSpace(
        tuple("abc"),
        combines=("synthesize",),
        max_depth=1,
        orders=("name", "best_first"),
        ranking=("c", "a", "b"),
    )
    assert space.size == 3 + 7 * 3


def test_a_deep_and_wide_space_is_counted_without_listing_it() -> None:
    agents = tuple(f"m{i}" for i in range(40))
    # All sets of 1 to 40 of 40 agents, in each of 3 layers.
    layers = 2**40 - 1
    space = SearchSpace(agents, ("vote",), max_depth=3, min_width=1, max_width=40)
    assert space.size == 40 + layers + layers**2 + layers**3
    orders = ("name", "best_first")
    many = SearchSpace(agents, max_width=7, orders=orders, ranking=agents[::-1])
    assert many.size is None, "who reads in which order depends on each of millions of layers"
    rng = random.Random(0)
    assert all(many.holds(many.draw(rng)) for _ in range(20))

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import neighbours
from tests.optimize.spaces import spaces


def differences(arch: Architecture, other: Architecture) -> int:
    """Count changed choices: of a layer, of the number of layers, of the last step, of reading."""
    arch, other = arch.canonical, other.canonical
    if arch.depth != other.depth:
        return abs(arch.depth - other.depth)
    changed = sum(a != b for a, b in zip(arch.layers, other.layers, strict=True))
    last = (arch.combine, arch.aggregator if arch.combine != "vote" else None)
    other_last = (other.combine, other.aggregator if other.combine != "vote" else None)
    # An order goes with the layer that it names, a prompt with who synthesizes.
    is_reading = changed == 0 and last == other_last
    reads = is_reading and (arch.order, arch.prompt) != (other.order, other.prompt)
    return changed + (last != other_last) + reads


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(space=spaces(), seed=st.integers(0, 99))
def test_neighbours_are_in_the_space_and_one_change_away(space: SearchSpace, seed: int) -> None:
    arch = space.draw(random.Random(seed))
    assume(arch.layers)
    for other in neighbours(arch, space):
        assert space.holds(other)
        assert differences(arch, other) <= 1, (str(arch), str(other))


def test_at_most_one_seat_of_a_layer_changes() -> None:
    space = SearchSpace(("a", "b", "c", "d"), max_depth=1)
    arch = Architecture.parse("a + b > synthesize(a)")
    for other in neighbours(arch, space):
        if other.depth == 1 and other.layers != arch.layers:
            left, right = Counter(arch.layers[0]), Counter(other.layers[0])
            assert max((left - right).total(), (right - left).total()) <= 1


def test_every_kind_of_change_is_among_them() -> None:
    space = SearchSpace(("a", "b", "c"), max_depth=2, orders=("name", "best_last"))
    found = {str(arch) for arch in neighbours(Architecture.parse("a + b > synthesize(a)"), space)}
    wanted = {
        "a + c > synthesize(a)",
        "a + b + c > synthesize(a)",
        "a + b > synthesize(c)",
        "a + b > vote",
        "a + b > a + b > synthesize(a)",
        "a + b > synthesize(a; order=b)",
    }
    assert wanted <= found


def test_a_deep_one_loses_its_first_or_last_layer() -> None:
    space = SearchSpace(("a", "b", "c"), max_depth=2)
    found = {str(o) for o in neighbours(Architecture.parse("a + b > b + c > vote"), space)}
    assert {"a + b > vote", "b + c > vote"} <= found


@pytest.mark.parametrize("text", ["a", "b"])
def test_a_single_agent_has_none(text: str) -> None:
    assert not list(neighbours(Architecture.parse(text), SearchSpace(("a", "b"))))

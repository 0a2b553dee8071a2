from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space import SearchSpace
from tests.optimize.spaces import (
    NAMES,
    constraints,
    enumerated,
    keeps_to_the_constraints,
    some,
)

HOMES = {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agents": ()}, "`space.agents` must name at least one agent"),
        ({"agents": ("a", "a")}, "`space.agents` names 'a' twice"),
        ({"combines": ("sum",)}, "`space.combines`: unknown 'sum'; known ones are .*vote"),
        ({"aggregators": ("z",)}, "`space`: unknown agent 'z'; it has a, b"),
        ({"rankers": ("z",)}, "`space`: unknown agent 'z'; it has a, b"),
        ({"listed": (Architecture.parse("a + z > vote"),)}, "unknown agent 'z'; it has a, b"),
        ({"listed": (Architecture.single("a"),) * 2}, "`space.listed` names 'a' twice"),
        ({"min_width": 4}, r"`space.min_width` must be in \[1, max_width=3\], but got 4"),
        ({"max_depth": -1}, "`space.max_depth` must be at least 0"),
        ({"max_samples": 0}, "`max_samples` at least 1, but got 2 and 0"),
        ({"combines": ()}, "`space.combines` must name at least one of synthesize, "),
        ({"must_include": ("z",)}, "`space`: unknown agent 'z'; it has a, b"),
        ({"never_together": (("a", "z"),)}, "`space`: unknown agent 'z'; it has a, b"),
        ({"never_together": (("a", "a"),)}, r"must hold pairs of two agents, but got \['a', 'a'\]"),
        (
            {"must_include": ("a", "b"), "never_together": (("b", "a"),)},
            "`space.must_include` and `never_together` contradict each other: 'b' and 'a'",
        ),
        ({"never_together": (("a", "b"),)}, "no mixture that ends with 'synthesize' satisfies"),
        (
            {"must_include": ("a", "b"), "min_width": 1, "max_width": 1},
            "`space.must_include` names 2 agents, but `max_width` is 1",
        ),
        ({"providers": ("x",)}, "need `provider_of`, the provider of every agent, but it lacks"),
        ({"providers": ("z",), "provider_of": HOMES}, "no agent has 'z'; the agents have x, y"),
        (
            {"providers": ("x",), "provider_of": HOMES, "aggregators": ("b",)},
            "`space.aggregators` names 'b' of y, which `space.providers` leaves out: x",
        ),
        (
            {
                "max_per_provider": 1,
                "provider_of": {"a": "x", "b": "x"},
                "must_include": tuple("ab"),
            },
            "names 2 agents of x, but `max_per_provider` is 1",
        ),
        ({"max_per_provider": 0}, "`space.max_per_provider` must be at least 1, but got 0"),
        (
            {"orders": ("worst_first",)},
            "`space.orders`: unknown 'worst_first'; known ones are .*name",
        ),
        ({"orders": ()}, "`space.orders` must name at least one of name, best_first, best_last"),
        ({"prompts": ("two words",)}, "`space.prompts`: Prompt name 'two words' must not"),
        ({"ranking": ("a",)}, "`space.ranking` must hold every agent once, a, b, but got a"),
    ],
)
def test_refuses_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        SearchSpace(**{"agents": ("a", "b"), **options})


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_constraints_are_refused_exactly_where_they_leave_a_last_step_nothing(
    data: st.DataObject,
) -> None:
    agents = NAMES[: data.draw(st.integers(2, 4))]
    limits = data.draw(constraints(agents))
    rankers = data.draw(some(agents))
    options: dict[str, Any] = {"min_width": data.draw(st.integers(1, 2)), "max_depth": 1}
    # A space without them stands in for what the constraints leave, by brute force.
    ways = {
        combine: SearchSpace(agents, (combine,), rankers=rankers, **options)
        for combine in ("synthesize", "select")
    }
    for combine, bare in ways.items():
        constrained = SimpleNamespace(**{**vars(bare), **limits})
        is_possible = any(
            keeps_to_the_constraints(constrained, arch) for arch in enumerated(bare) if arch.layers
        )
        try:
            SearchSpace(agents, (combine,), rankers=rankers, **options, **limits)
        except StudyError:
            is_outside = limits["providers"] and any(
                limits["provider_of"][name] != "x" for name in (*rankers, *limits["must_include"])
            )
            is_unknown = limits["providers"] and "x" not in limits["provider_of"].values()
            assert not is_possible or is_outside or is_unknown
        else:
            assert is_possible

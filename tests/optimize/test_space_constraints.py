from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import optuna
import pytest

from moa_dspy.agent import Agent
from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace, provider, providers_of
from moa_dspy.optimize.space.rules import RandomSuggestions
from tests.optimize.spaces import NAMES, enumerated

HOMES = dict(zip(NAMES, "xxyy", strict=True))
CONSTRAINED: dict[str, dict[str, Any]] = {
    "included": {"must_include": ("d",)},
    "several samples": {"must_include": ("d",), "max_samples": 2, "max_depth": 1},
    "apart": {"never_together": (("a", "b"), ("b", "c"))},
    "a hub": {"never_together": (("a", "b"), ("a", "c"), ("a", "d")), "min_width": 1},
    "one of each provider": {"max_per_provider": 1, "provider_of": HOMES},
    "one provider": {"providers": ("y",), "provider_of": HOMES},
    "all at once": {
        "must_include": ("a",),
        "never_together": (("a", "d"),),
        "max_per_provider": 1,
        "provider_of": HOMES,
    },
}


def constrained(case: str) -> SearchSpace:
    """Return a space of every last step, with orders and prompts."""
    return SearchSpace(
        NAMES,
        **{
            "combines": ("vote", "select", "synthesize"),
            "rankers": ("a", "d") if case == "apart" else (),
            "aggregators": ("b", "c") if case in ("included", "all at once") else (),
            "orders": ("best_last", "name"),
            "prompts": ("own", "brief"),
            "ranking": ("b", "d", "a", "c"),
            **CONSTRAINED[case],
        },
    )


@pytest.mark.parametrize("case", CONSTRAINED)
def test_no_choice_breaks_a_constraint(case: str) -> None:
    space, rng = constrained(case), random.Random(0)
    inside = enumerated(space)
    drawn = {space.suggest(RandomSuggestions(rng)) for _ in range(400)}
    assert len(drawn) > 10
    assert drawn <= inside
    assert space.size == len(inside)


@pytest.mark.parametrize("case", CONSTRAINED)
def test_a_space_holds_what_keeps_to_its_constraints_and_nothing_else(case: str) -> None:
    space = constrained(case)
    bare = replace(space, must_include=(), never_together=(), providers=(), max_per_provider=None)
    every = sorted(enumerated(bare), key=str)
    some = random.Random(0).sample(every, min(600, len(every)))
    strange = [
        Architecture.parse("b + d > select(; order=d)"),
        Architecture.parse("b + d > select"),
    ]
    inside = enumerated(space)
    for arch in [*some, *strange]:
        assert space.holds(arch) == (arch in inside)


@pytest.mark.parametrize("case", CONSTRAINED)
def test_the_same_choices_are_repaired_in_the_same_way(case: str) -> None:
    space = constrained(case)
    first, second = (
        [space.suggest(RandomSuggestions(rng)) for _ in range(50)]
        for rng in map(random.Random, (7, 7))
    )
    assert first == second


def test_three_layers_are_drawn_and_named() -> None:
    space, rng = SearchSpace(("a", "b"), ("vote",), max_depth=3, min_width=1), random.Random(0)
    deepest = Architecture((("a",), ("a", "b"), ("b",)), None, "vote")
    assert {space.suggest(RandomSuggestions(rng)).depth for _ in range(30)} == {1, 2, 3}
    assert space.params(deepest) == {
        "kind": "layers",
        "depth": 3,
        "combine": "vote",
        **{"layer1.a": True, "layer1.b": False, "layer2.a": True, "layer2.b": True},
        **{"layer3.a": False, "layer3.b": True},
    }


@pytest.mark.parametrize(
    ("chosen", "aggregator", "expected"),
    [
        # a must be in, and never with b: b goes, and the best of the others, d, joins.
        (("b",), "d", "a + d > synthesize(d)"),
        # b cannot aggregate what holds a: the best who can, c, does.
        (("c", "d"), "b", "a + c + d > synthesize(c)"),
    ],
)
def test_what_breaks_a_constraint_is_repaired_by_the_ranking(
    chosen: tuple[str, ...], aggregator: str, expected: str
) -> None:
    space = SearchSpace(NAMES, max_depth=1, must_include=("a",), never_together=(("a", "b"),))
    flags = {f"layer1.{name}": name in chosen for name in "bcd"}
    choices = {"kind": "layers", "depth": 1, "combine": "synthesize", **flags}
    trial: Any = optuna.trial.FixedTrial({**choices, "aggregator": aggregator})
    ranking = ["c", "d", "b", "a"] if aggregator == "b" else ["d", "c", "b", "a"]
    assert str(space.suggest(trial, ranking)) == expected


def test_order_and_prompt_are_asked_only_of_who_reads() -> None:
    space = SearchSpace(
        ("a", "b"),
        combines=("vote", "select", "synthesize"),
        max_depth=1,
        orders=("name", "best_last"),
        prompts=("own", "brief"),
        ranking=("a", "b"),
    )
    named = {
        text: set(space.params(Architecture.parse(text)) or ()) & {"order", "prompt"}
        for text in ("a", "a + b > vote(b)", "a + b > select", "a + b > synthesize(a)")
    }
    assert list(named.values()) == [set(), set(), set(), {"order", "prompt"}]
    written = space.params(Architecture.parse("a + b > synthesize(a; order=b; prompt=brief)"))
    assert written is not None
    assert (written["order"], written["prompt"]) == ("best_last", "brief")
    alone = replace(space, orders=("best_last",), prompts=("brief",))
    assert not {"order", "prompt"} & set(
        alone.params(Architecture.parse("a + b > synthesize(a; order=b; prompt=brief)")) or ()
    )
    assert not alone.holds(Architecture.parse("a + b > synthesize(a)"))


def test_singles_and_listed_architectures_are_free_of_constraints() -> None:
    listed = (Architecture.parse("a + b > vote"),)
    space = SearchSpace(
        NAMES,
        combines=("vote",),
        must_include=("c",),
        never_together=(("a", "b"),),
        providers=("x",),
        provider_of={"a": "y", "b": "x", "c": "x", "d": "x"},
        listed=listed,
    )
    assert space.holds(Architecture.single("a"))
    assert space.holds(listed[0])
    assert not space.holds(Architecture.parse("a + c > vote"))
    kept = {
        text: space.keeps_constraints(Architecture.parse(text))
        for text in ("a", "a + b > vote(a)", "c*9 > vote", "a + c > vote", "b + d > vote")
    }
    assert list(kept.values()) == [True, True, True, False, False]
    assert set(space.layers(is_first=True)) == {("b", "c"), ("c", "d"), ("b", "c", "d")}
    assert ("b", "d") in set(space.layers())


def test_a_provider_is_who_runs_the_agent() -> None:
    agents = [
        Agent(name="cloud", model="openai/gpt"),
        Agent(name="own", model="openai/x", api_base="http://box.example:8000/v1"),
        Agent(name="here", model="local/smollm2-135m", weights="w.gguf", sha256="0" * 64),
    ]
    assert providers_of(agents) == {"cloud": "openai", "own": "box.example", "here": "local"}
    assert provider(agents[0]) == "openai"

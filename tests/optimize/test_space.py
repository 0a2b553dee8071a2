from __future__ import annotations

import random
from itertools import product
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space import SearchSpace

NAMES = ("a", "b", "c", "d")


def canonical(one: Architecture) -> Architecture:
    """Forget who decides the ties of a vote: it follows from scores and is no choice."""
    return Architecture(one.layers, None, "vote") if one.combine == "vote" else one


def enumerated(space: SearchSpace) -> set[Architecture]:
    """Return every architecture of a space, by trying all counts of all agents per layer."""
    counts = product(range(space.max_samples + 1), repeat=len(space.agents))
    widths = range(space.min_width, space.max_width + 1)
    layers = [
        tuple(name for name, n in zip(space.agents, row, strict=True) for _ in range(n))
        for row in counts
        if sum(row) in widths
    ]
    ways: list[tuple[str, str | None]] = []
    for combine in space.combines:
        if combine == "synthesize":
            ways += [(combine, name) for name in space.aggregators or space.agents]
        else:
            rankers = space.rankers if combine == "select" else ()
            ways += [(combine, name) for name in rankers or (None,)]
    found = {
        Architecture(stack, name, combine)
        for depth in range(1, space.max_depth + 1)
        for stack in product(layers, repeat=depth)
        for combine, name in ways
    }
    return (
        found
        | {Architecture.single(name) for name in space.agents}
        | set(map(canonical, space.listed))
    )


def some(names: tuple[str, ...], *, fewest: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), unique=True, min_size=fewest).map(tuple)


@st.composite
def architectures(draw: st.DrawFn, agents: tuple[str, ...]) -> Architecture:
    layer = st.lists(st.sampled_from(agents), min_size=1, max_size=4).map(tuple)
    layers = draw(st.lists(layer, min_size=0, max_size=2).map(tuple))
    who = draw(st.sampled_from(agents))
    if not layers:
        return Architecture.single(who)
    combine = draw(st.sampled_from(("select", "synthesize", "vote")))
    if combine == "vote":
        return Architecture(layers, draw(st.sampled_from((None, *layers[-1]))), combine)
    return Architecture(layers, draw(st.sampled_from((who, None))) or who, combine)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    agents = NAMES[: draw(st.integers(1, 4))]
    max_width = draw(st.integers(1, 3))
    return SearchSpace(
        agents,
        combines=draw(some(("select", "synthesize", "vote"), fewest=1)),
        aggregators=draw(some(agents)),
        rankers=draw(some(agents)),
        max_depth=draw(st.integers(0, 2)),
        min_width=draw(st.integers(1, max_width)),
        max_width=max_width,
        max_samples=draw(st.integers(1, 2)),
        listed=tuple(draw(st.lists(architectures(agents), max_size=4, unique=True))),
    )


@settings(deadline=None, max_examples=80)
@given(spaces())
def test_size_is_the_number_of_enumerated_architectures(space: SearchSpace) -> None:
    assert space.size == len(enumerated(space))


def test_size_of_a_space_counted_by_hand() -> None:
    # 3 singles; layers of 2 or 3 of 3 agents: 3 + 1 = 4; depths 1 and 2: 4 + 16 = 20;
    # synthesize by any of 3, or vote: 20 * 4 = 80
    assert SearchSpace(NAMES[:3]).size == 3 + 80


def suggested(space: SearchSpace, architecture: Architecture) -> Architecture | None:
    params = space.params(architecture)
    if params is None:
        return None
    trial: Any = optuna.trial.FixedTrial(params)
    return canonical(space.suggest(trial))


@settings(deadline=None, max_examples=60)
@given(spaces(), st.randoms(use_true_random=False))
def test_choices_of_any_architecture_suggest_it_again(
    space: SearchSpace, rng: random.Random
) -> None:
    inside = sorted(enumerated(space), key=str)
    for architecture in rng.sample(inside, min(20, len(inside))):
        assert space.holds(architecture)
        again = suggested(space, architecture)
        # A listed vote is known by the name that its tie breaker gives it.
        assert again == architecture or (again is None and architecture.combine == "vote")


@settings(deadline=None, max_examples=150)
@given(spaces(), architectures(NAMES))
def test_what_is_not_enumerated_has_no_choices(
    space: SearchSpace, architecture: Architecture
) -> None:
    if canonical(architecture) not in enumerated(space):
        assert space.params(architecture) is None
        assert not space.holds(architecture)


@settings(deadline=None, max_examples=60)
@given(spaces(), st.randoms(use_true_random=False))
def test_every_draw_is_in_the_space(space: SearchSpace, rng: random.Random) -> None:
    inside = enumerated(space)
    assert {canonical(space.draw(rng)) for _ in range(20)} <= inside


@settings(deadline=None, max_examples=100)
@given(spaces(), st.integers(0, 2**16), st.permutations(NAMES))
def test_the_sampler_cannot_leave_the_space(
    space: SearchSpace, seed: int, order: list[str]
) -> None:
    ranking = [name for name in order if name in space.agents]
    sampler = optuna.samplers.RandomSampler(seed=seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial: Any = optuna.create_study(sampler=sampler).ask()
    assert canonical(space.suggest(trial, ranking)) in enumerated(space)


@pytest.mark.parametrize(
    ("chosen", "layer"),
    [
        # Nobody is chosen: the two best of the ranking c, a, b fill the layer.
        ((), ("a", "c")),
        # Too many: the worst, b, goes.
        (("a", "b", "c"), ("a", "c")),
        # One too few: the best of the others joins.
        (("b",), ("b", "c")),
    ],
)
def test_a_layer_is_repaired_by_the_ranking(
    chosen: tuple[str, ...], layer: tuple[str, ...]
) -> None:
    space = SearchSpace(("a", "b", "c"), combines=("vote",), max_depth=1, max_width=2)
    flags = {f"layer1.{name}": name in chosen for name in "abc"}
    trial: Any = optuna.trial.FixedTrial({"kind": "layers", "depth": 1, "combine": "vote", **flags})
    assert space.suggest(trial, ["c", "a", "b"]).layers == (layer,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agents": ()}, "`space.agents` must name at least one agent"),
        ({"agents": ("a", "a")}, "`space.agents` names 'a' twice"),
        ({"combines": ("sum",)}, "`space.combines`: unknown 'sum'; known ones are .*vote"),
        ({"aggregators": ("z",)}, "names agent 'z'; its agents are a, b"),
        ({"rankers": ("z",)}, "names agent 'z'; its agents are a, b"),
        ({"listed": (Architecture.parse("a + z > vote"),)}, "names agent 'z'; its agents are a, b"),
        ({"listed": (Architecture.single("a"),) * 2}, "`space.listed` names 'a' twice"),
        ({"min_width": 4}, r"`space.min_width` must be in \[1, max_width=3\], but got 4"),
        ({"max_depth": -1}, "`space.max_depth` must be at least 0"),
        ({"max_samples": 0}, "`max_samples` at least 1"),
        ({"combines": ()}, "`space.combines` must name at least one way"),
    ],
)
def test_refuses_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        SearchSpace(**{"agents": ("a", "b"), **options})

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from tests.optimize.spaces import (
    NAMES,
    architectures,
    canonical,
    enumerated,
    spaces,
)


def suggested(space: SearchSpace, architecture: Architecture) -> Architecture | None:
    params = space.params(architecture)
    if params is None:
        return None
    trial: Any = optuna.trial.FixedTrial(params)
    return canonical(space.suggest(trial))


@pytest.mark.slow
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


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(spaces(), architectures(NAMES))
def test_what_is_not_enumerated_has_no_choices(
    space: SearchSpace, architecture: Architecture
) -> None:
    if canonical(architecture) not in enumerated(space):
        assert space.params(architecture) is None
        assert not space.holds(architecture)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(spaces(), st.randoms(use_true_random=False))
def test_every_draw_is_in_the_space(space: SearchSpace, rng: random.Random) -> None:
    inside = enumerated(space)
    assert {canonical(space.draw(rng)) for _ in range(20)} <= inside


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(spaces(), st.integers(0, 2**16), st.permutations(NAMES))
def test_the_sampler_cannot_leave_the_space(
    space: SearchSpace, seed: int, order: list[str]
) -> None:
    ranking = [name for name in order if name in space.agents]
    sampler = optuna.samplers.RandomSampler(seed=seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial: Any = optuna.create_study(sampler=sampler).ask()
    if space.orders != ("name",) and not space.ranking:
        ranking = list(space.agents)
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


def test_a_listed_architecture_keeps_its_order_of_seats_and_all_others_sit_by_name() -> None:
    listed = Architecture.parse("c + a > b + a > synthesize(b)")
    space = SearchSpace(("c", "b", "a"), max_width=2, listed=(listed,))
    assert str(space.seated(listed.canonical)) == str(listed)
    assert space.params(listed.canonical) == {"kind": "listed", "listed": str(listed)}
    trial: Any = optuna.trial.FixedTrial({"kind": "listed", "listed": str(listed)})
    assert str(space.suggest(trial)) == str(listed)
    rng = random.Random(0)
    drawn = [arch for arch in (space.draw(rng) for _ in range(50)) if arch != listed]
    assert any(arch.layers for arch in drawn)
    assert [str(arch) for arch in drawn] == [str(arch.canonical) for arch in drawn]

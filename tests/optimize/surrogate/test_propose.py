from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import Acquisition, nodes_of
from moa_dspy.optimize.surrogate.gp import Kernels, SurrogateModel, Traits
from tests.optimize.surrogate.worlds import NAMES, STRENGTH, kernels, unlike

SPACE = SearchSpace(NAMES, combines=("synthesize",), max_depth=1, max_width=3)
N_ROWS = 50
Score = Callable[[Architecture], float]


def truth(arch: Architecture) -> float:
    """The stronger and the more unlike those that are read, and the stronger the writer."""
    if not arch.layers:
        return STRENGTH[str(arch.aggregator)]
    layer = arch.layers[-1]
    writer = STRENGTH[str(arch.aggregator)] if arch.aggregator in STRENGTH else 0.4
    spread = unlike(min(layer), max(layer))
    strong = float(np.mean([STRENGTH[name] for name in layer]))
    return 0.4 * strong + 0.3 * spread + 0.4 * writer


def rows(arch: Architecture) -> list[float]:
    rng = random.Random(str(arch))
    return [truth(arch) + rng.gauss(0, 0.2) for _ in range(N_ROWS)]


def free(_: Architecture) -> float:
    return 0.0


def proposer(seed: int = 0, space: SearchSpace = SPACE, price: Score = free) -> Acquisition:
    return Acquisition(space, kernels(), lambda arch: arch, seed, lambda _: price)


def searched(seed: int, n: int, price: Score = free) -> list[Architecture]:
    """Return what was measured, single agents first."""
    known = [Architecture.single(name) for name in NAMES]
    searching = proposer(seed, price=price)
    while len(known) < n:
        proposed = searching.propose(known, np.array([rows(arch) for arch in known]))
        assert proposed is not None
        known.append(proposed)
    return known


def calls_until(path: list[Architecture], goal: float) -> int:
    made = set[object]()
    for arch in path:
        made |= nodes_of(arch)
        if truth(arch) >= goal:
            break
    return len(made)


@pytest.mark.slow
def test_a_good_one_is_found_with_fewer_calls_than_by_chance() -> None:
    layers = list(SPACE.layers())
    truths = [truth(Architecture((layer,), writer)) for layer in layers for writer in NAMES]
    goal = sorted(truths)[-2]
    calls, chance = [], []
    for seed in range(5):
        calls.append(calls_until(searched(seed, 20), goal))
        rng = random.Random(seed)
        drawn = [SPACE.draw(rng) for _ in range(400)]
        chance.append(calls_until([*map(Architecture.single, NAMES), *drawn], goal))
    assert median(calls) < 0.7 * median(chance)


def test_nothing_is_proposed_twice_and_all_is_in_the_space() -> None:
    found = searched(3, 30)
    assert len(set(found)) == 30
    assert all(map(SPACE.holds, found))


def test_a_seed_proposes_the_same_again() -> None:
    assert searched(4, 15) == searched(4, 15)


@pytest.mark.slow
def test_another_seed_draws_others() -> None:
    # A space of which a proposal sees a small part.
    space = SearchSpace(NAMES, max_depth=3)
    found = {tuple(_some_drawn(seed, space)) for seed in range(4)}
    assert len(found) > 1


def _some_drawn(seed: int, space: SearchSpace) -> list[Architecture]:
    known = [Architecture.single(name) for name in NAMES]
    searching = proposer(seed, space)
    for _ in range(6):
        proposed = searching.propose(known, np.array([rows(arch) for arch in known]))
        assert proposed is not None
        known.append(proposed)
    return known


def test_none_is_returned_when_nothing_is_left() -> None:
    space = SearchSpace(("a", "b"), combines=("vote",), max_depth=1)
    known = [*map(Architecture.single, "ab"), Architecture.parse("a + b > vote")]
    searching = Acquisition(space, Kernels.of(Traits(STRENGTH, unlike)), lambda arch: arch, 0)
    assert searching.propose(known[:2], np.ones((2, 5))) == known[2]
    assert searching.propose(known, np.ones((3, 5))) is None


def test_the_first_is_drawn_where_nothing_is_measured() -> None:
    drawn = proposer().propose([], np.empty((0, N_ROWS)))
    assert drawn is not None
    assert SPACE.holds(drawn)


def test_what_was_stopped_early_is_learned_from() -> None:
    known = [Architecture.single(name) for name in NAMES]
    scores = np.array([rows(arch) for arch in known])
    scores[2, 10:] = np.nan
    assert proposer().propose(known, scores) is not None


def test_of_equals_that_with_fewer_new_calls_is_proposed() -> None:
    # Nobody differs, so nothing is to be gained beyond luck: a vote asks nobody anew.
    space = SearchSpace(NAMES, max_depth=2)
    known = [Architecture.single(name) for name in NAMES]
    traits = Traits(dict.fromkeys(NAMES, 0.5), lambda *_: 0.5)
    searching = Acquisition(space, Kernels.of(traits), lambda arch: arch, 0)
    found = searching.propose(known, np.full((5, 20), 0.5))
    assert found is not None
    assert (found.combine, found.depth) == ("vote", 1)


@pytest.mark.slow
def test_a_price_keeps_the_search_to_what_is_cheap() -> None:
    cheap = searched(0, 20, price=lambda arch: 0.1 * arch.calls)
    dear = searched(0, 20)
    assert sum(arch.calls for arch in cheap) < sum(arch.calls for arch in dear)


def test_where_the_model_predicts_nothing_every_other_draw_takes_the_fewest_new_calls() -> None:
    space = SearchSpace(NAMES, combines=("synthesize", "vote"), max_depth=1, max_width=3)
    singles = [Architecture.single(name) for name in NAMES]
    mixtures = [one for one in (space.draw(random.Random(n)) for n in range(60)) if one.layers]
    known = [*singles, *dict.fromkeys(one for one in mixtures if one.combine == "synthesize")]
    rng = np.random.default_rng(0)
    combines: dict[bool, list[str]] = {True: [], False: []}
    for seed in range(40):
        some = known[: len(known) - seed % 2]
        # A score of its own for each, whoever sits where.
        scores = rng.normal(0.5, 0.1, (len(some), 1)) + rng.normal(0, 0.01, (len(some), N_ROWS))
        model = SurrogateModel(kernels(), some, scores)
        if not model.beats_mean(range(len(singles), len(some))):
            proposed = proposer(seed, space=space).propose(some, scores)
            assert proposed is not None
            combines[len(some) % 2 == 1].append(proposed.combine)
    # Votes of the single agents' answers take no new call; most other draws take one.
    assert len(combines[True]) > 5
    assert set(combines[True]) == {"vote"}
    assert set(combines[False]) == {"vote", "synthesize"}

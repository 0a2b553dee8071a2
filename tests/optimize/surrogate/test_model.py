from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.surrogate.gp import Kernels, SurrogateModel, Traits, means_and_noise
from tests.optimize.surrogate.worlds import NAMES, STRENGTH, Matrix, kernels, mixtures, seen, unlike

SPACE = SearchSpace(NAMES, combines=("synthesize",), max_depth=1, max_width=3)
ALL = mixtures(SPACE)


def strength(arch: Architecture) -> float:
    """The truth in most tests: what matters is who is read."""
    read = arch.layers[-1] if arch.layers else arch.agents
    return float(np.mean([STRENGTH[name] for name in read]))


def drawn(n: int, seed: int = 0) -> list[Architecture]:
    return [ALL[place] for place in np.random.default_rng(seed).permutation(len(ALL))[:n]]


def renamed(arch: Architecture, names: dict[str, str]) -> Architecture:
    layers = tuple(tuple(names[name] for name in layer) for layer in arch.layers)
    return Architecture(layers, names[str(arch.aggregator)], arch.combine)


def test_a_linear_truth_is_recovered_of_what_was_never_measured() -> None:
    known, new = drawn(60)[:40], drawn(60)[40:]
    scores = seen([strength(arch) for arch in known], n_rows=100, seed=1)
    predicted = SurrogateModel(kernels(), known, scores).predict(new).mean
    truths = np.array([strength(arch) for arch in new])
    # One mean has an error of 0.03; forty say together what is left to within a third.
    assert np.sqrt(np.mean((predicted - truths) ** 2)) < 0.015
    assert truths.std() > 0.06


def test_what_is_fitted_is_what_is_predicted_of_the_measured() -> None:
    known = drawn(30)
    model = SurrogateModel(kernels(), known, seen([strength(o) for o in known], n_rows=50, seed=1))
    assert model.fitted() == pytest.approx(model.predict(known).mean, abs=1e-10)


def test_performance_explains_what_depends_on_performance() -> None:
    known = drawn(40)
    model = SurrogateModel(kernels(), known, seen([strength(o) for o in known], n_rows=200, seed=1))
    shares = model.explained()
    assert shares["performance"] > 0.6
    assert shares["diversity"] < 0.2
    assert sum(shares.values()) == pytest.approx(1)


def test_diversity_explains_what_depends_on_diversity() -> None:
    known = [arch for arch in drawn(60) if arch.layers]
    space_pair = kernels().traits
    truths = [float(space_pair.blocks([arch])["diversity"][0, 0]) for arch in known]
    model = SurrogateModel(kernels(), known, seen(truths, n_rows=200, seed=1))
    shares = model.explained()
    assert shares["diversity"] > 0.6 > shares["performance"]


def test_pure_noise_shrinks_to_next_to_nothing() -> None:
    spreads, raw = [], []
    for seed in range(5):
        scores = seen([0.5] * 30, n_rows=100, seed=seed)
        model = SurrogateModel(kernels(), drawn(30, seed), scores)
        spreads.append(model.predict(drawn(30, seed)).mean.std())
        raw.append(scores.mean(1).std())
    assert np.mean(raw) > 0.025
    assert np.mean(spreads) < 0.3 * np.mean(raw)


def test_equal_scores_are_explained_by_nothing() -> None:
    model = SurrogateModel(kernels(), drawn(10), np.full((10, 20), 0.5))
    assert model.explained() == {}
    gains, _ = model.gains(drawn(10)[0])
    assert np.allclose(gains, 0)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(12)), names=st.permutations(NAMES))
def test_neither_names_nor_order_matter(order: list[int], names: list[str]) -> None:
    known, new = drawn(12), drawn(20)[12:]
    scores = seen([strength(arch) for arch in known], n_rows=30, seed=2)
    plain = SurrogateModel(kernels(), known, scores)
    to = dict(zip(NAMES, names, strict=True))
    back = {there: here for here, there in to.items()}
    traits = Traits(
        {to[name]: STRENGTH[name] for name in NAMES}, lambda a, b: unlike(back[a], back[b])
    )
    other = SurrogateModel(
        Kernels.of(traits), [renamed(known[k], to) for k in order], scores[list(order)]
    )
    assert other.weights == plain.weights
    left, right = plain.predict(new), other.predict([renamed(arch, to) for arch in new])
    assert np.allclose(left.mean, right.mean, atol=1e-6)
    assert np.allclose(left.sd, right.sd, atol=1e-6)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 100])
def test_gains_are_finite_however_few_rows_there_are(n_rows: int) -> None:
    known = drawn(40)
    model = SurrogateModel(kernels(), known, seen([0.5] * 40, n_rows=n_rows, seed=0))
    gains, errors = model.gains(known[3])
    assert np.isfinite([gains, errors]).all()
    assert (errors >= 0).all()
    assert (gains[3], errors[3]) == (0.0, 0.0)


def test_one_agent_alone_is_a_world() -> None:
    single = Architecture.single("a")
    model = SurrogateModel(kernels("a"), [single], np.array([[0.0, 1.0, 1.0, 1.0]]))
    assert model.gains(single)[0].tolist() == [0.0]
    assert model.predict([single]).mean[0] == pytest.approx(0.75, abs=0.02)


def test_deeper_than_the_traits_speak_of_is_no_error() -> None:
    deep = Architecture.parse("a + b > c > d > e > a + c > synthesize(b)")
    known = [*drawn(5), deep]
    model = SurrogateModel(kernels(), known, seen([0.5] * 6, n_rows=10, seed=0))
    assert np.isfinite(model.predict([deep, Architecture.parse("a > b > c > d > vote")]).mean).all()


def test_a_stopped_trial_that_saw_the_easy_rows_is_not_taken_for_a_good_one() -> None:
    easy = np.array([1.0] * 10 + [0.0] * 10)
    scores = np.array([easy, easy, easy])
    scores[2, 10:] = np.nan
    means, noise = means_and_noise(scores)
    assert means == pytest.approx([0.5, 0.5, 0.5], abs=0.01)
    assert noise[2] > noise[0]


def test_few_rows_are_trusted_less() -> None:
    known = drawn(10)
    scores = seen([0.5] * 9 + [0.9], n_rows=100, seed=3)
    few: Matrix = scores.copy()
    few[-1, 10:] = np.nan
    incumbent = known[0]
    learned = SurrogateModel(kernels(), known, scores).weights
    whole, short = (
        SurrogateModel(kernels(), known, some, weights=learned).gains(incumbent)
        for some in (scores, few)
    )
    assert short[1][-1] > whole[1][-1]


def test_two_that_differ_in_nothing_known_may_still_differ() -> None:
    # Agents that score and answer alike: only nearness and what is its own tell them apart.
    traits = Traits(dict.fromkeys("abcd", 0.5), lambda *_: 0.5)
    known = [Architecture.parse(f"{p} > synthesize(a)") for p in ("a + b", "c + d", "a + c")]
    scores = seen([0.2, 0.8, 0.5], n_rows=400, seed=0)
    gains, errors = SurrogateModel(Kernels.of(traits), known, scores).gains(known[0])
    assert gains[1] > 3 * errors[1]


def test_what_two_have_in_common_is_no_error_of_their_difference() -> None:
    twins = [Architecture.parse(f"{p} > synthesize(e)") for p in ("a + b", "a + b + c")]
    known = [*twins, *drawn(3)]
    scores = seen([0.5] * 5, n_rows=5, seed=0)
    weights = dict.fromkeys(SurrogateModel(kernels(), known, scores).weights, 0.1)
    model = SurrogateModel(kernels(), known, scores, weights=weights)
    sds = model.predict(twins).sd
    assert model.gains(twins[0])[1][1] < 0.95 * np.hypot(*sds)


def test_gains_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits, n = 0, 0
    for seed in range(40):
        known = drawn(25, seed)
        tastes = dict(zip(NAMES, rng.normal(0, 0.08, len(NAMES)), strict=True))
        truths = [
            0.5 + float(np.mean([tastes[a] for a in o.layers[-1]])) + rng.normal(0, 0.03)
            if o.layers
            else 0.5 + tastes[str(o.aggregator)]
            for o in known
        ]
        scores = seen(truths, n_rows=100, seed=seed, in_common=1.0)
        gains, errors = SurrogateModel(kernels(), known, scores).gains(known[0])
        misses = np.abs(gains - (np.array(truths) - truths[0]))[1:]
        hits += int((misses <= 1.96 * errors[1:]).sum())
        n += len(misses)
    # 960 gains, 24 of each world against one incumbent: the error of the share is near 0.02.
    assert 0.88 <= hits / n <= 0.99


def test_a_score_is_left_out_as_if_it_had_not_been_measured() -> None:
    known = drawn(12)
    # One number each: the error of a score does not depend on the others then.
    scores = np.array([[strength(arch)] for arch in known]) + seen([0.0] * 12, n_rows=1, seed=2)
    model = SurrogateModel(kernels(), known, scores)
    for place, left_out in enumerate(known):
        others = [other for other in known if other is not left_out]
        without = SurrogateModel(
            kernels(), others, np.delete(scores, place, axis=0), weights=model.weights
        )
        missed = scores[place, 0] - without.predict([left_out]).mean[0]
        assert model.left_out()[place] == pytest.approx(missed, abs=1e-6)


def test_a_model_beats_the_mean_where_there_is_something_to_be_learned() -> None:
    known = drawn(40)
    learned = seen([strength(arch) for arch in known], n_rows=200, seed=1)
    assert SurrogateModel(kernels(), known, learned).beats_mean(range(40))
    own = np.random.default_rng(3).normal(0.5, 0.1, 40).tolist()
    nothing = [
        SurrogateModel(
            kernels(), known, seen(np.roll(own, turn).tolist(), n_rows=200, seed=1)
        ).beats_mean(range(40))
        for turn in range(0, 40, 4)
    ]
    # Of scores that have nothing to do with who sits where, luck explains something at times.
    assert sum(nothing) < len(nothing) / 2


def test_of_two_scores_no_model_is_doubted() -> None:
    known = drawn(2)
    assert SurrogateModel(kernels(), known, np.array([[0.1], [0.9]])).beats_mean([0, 1])

from __future__ import annotations

from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial

from moa_dspy.errors import MetricError
from moa_dspy.winrate import examples_needed, sign_flip_mid_p, verdict

unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=12)


def scores(wins: int, losses: int, n: int) -> tuple[list[float], list[float]]:
    """Scores of a pick and a single model that differ on ``wins + losses`` of ``n``."""
    ties = [1.0] * (n - wins - losses)
    return [1.0] * wins + [0.0] * losses + ties, [0.0] * wins + [1.0] * losses + ties


def test_a_clear_win_is_a_mixture() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=False, names=("a+b", "b"))
    # P(X > 25) + P(X = 25) / 2 for 37 fair coins = 0.0168; 13 / 300 = 4.3 points
    assert result.kind == "mixture"
    assert result.p_value == pytest.approx(0.0168, abs=1e-4)
    assert result.n_more == 0
    assert result.text == (
        "Use the mixture: a+b beats b by 4.3 points (90 % interval 1.0 to 7.8, p = 0.017) "
        "on 300 questions it never saw."
    )


def test_an_excluded_gain_keeps_the_single_model() -> None:
    result = verdict(*scores(12, 25, 300), pick_is_single=False, names=("a+b", "b"))
    assert (result.kind, result.n_more) == ("single", 0)
    assert result.text == (
        "Keep the single model: a+b minus b is -4.3 points (90 % interval -7.8 to -1.0, "
        "p = 0.983) on 300 questions it never saw, which excludes a gain of 3 points."
    )


def test_neither_asks_for_more_examples() -> None:
    result = verdict(*scores(30, 25, 300), pick_is_single=False)
    assert result.kind == "not_enough_examples"
    assert 900 <= result.n_more <= 1_200
    assert result.text.startswith("Not enough examples: the mixture minus the best single model")
    assert f"about {result.n_more} more are needed to see a gain of 3 points." in result.text


def test_enough_for_the_gain_but_undecided_asks_for_what_decides() -> None:
    # 38 of 620 discordant, 1.6 points: power 0.8 needs 425, power 0.95 needs 741, 121 more
    pick, single = scores(24, 14, 620)
    differences = [a - b for a, b in zip(pick, single, strict=True)]
    assert examples_needed(differences) < 620
    result = verdict(pick, single, pick_is_single=False)
    assert result.kind == "not_enough_examples"
    assert result.n_more == examples_needed(differences, power=0.95) - 620 == 121


def test_a_single_pick_is_not_tested() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=True, names=("b", "b"))
    assert (result.kind, result.p_value, result.n_more) == ("single", None, 0)
    assert result.text == (
        "Keep the single model: the search chose b, a single model, so there is no mixture to "
        "compare with it."
    )


def test_stronger_level_needs_stronger_evidence() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=False, alpha=0.01)
    assert result.kind == "not_enough_examples"
    assert "98 % interval" in result.text


@given(pairs=pairs, pick_is_single=st.booleans())
def test_is_total(pairs: list[tuple[float, float]], pick_is_single: bool) -> None:
    pick, single = [a for a, _ in pairs], [b for _, b in pairs]
    result = verdict(pick, single, pick_is_single=pick_is_single)
    assert result.n == len(pairs)
    assert (result.n_more > 0) == (result.kind == "not_enough_examples")
    assert (result.kind == "mixture") == (
        not pick_is_single and sign_flip_mid_p([a - b for a, b in pairs]) <= 0.05
    )
    assert "\n" not in result.text
    assert result.text.endswith(".")
    assert "-0.0 " not in result.text


def says_mixture(n: int, gain: float, discordance: float) -> float:
    """Return how often ``n`` right-or-wrong examples say "mixture", summed over all outcomes."""
    chances = ((discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance)
    total = 0.0
    for n_differ in range(n + 1):
        # Wins beyond the first that says it say it too: look for that one by halving.
        low, high = 0, n_differ + 1
        while low < high:
            middle = (low + high) // 2
            found = verdict(*scores(middle, n_differ - middle, n), pick_is_single=False)
            low, high = (low, middle) if found.kind == "mixture" else (middle + 1, high)
        weights = multinomial(n, chances)
        total += sum(weights.pmf([k, n_differ - k, n - n_differ]) for k in range(low, n_differ + 1))
    return float(total)


@pytest.mark.parametrize("discordance", [0.1, 0.3, 0.5])
def test_the_level_is_kept_where_nothing_is_gained(discordance: float) -> None:
    assert says_mixture(40, 0.0, discordance) <= 0.0502


def test_mid_p_finds_what_the_exact_test_misses() -> None:
    # 27 against 15: exact P(X >= 27) of 42 = 0.044; 26 against 15: exact 0.059, mid-p 0.043
    pick, single = scores(26, 15, 200)
    assert verdict(pick, single, pick_is_single=False).kind == "mixture"


def test_graded_scores_are_tested_by_sign_flips() -> None:
    # Gaps .1 .2 .3 .4 .5, all won: of 32 flips only the observed one is as large, half of 1 / 32.
    pick = [0.1, 0.2, 0.3, 0.4, 0.5]
    found = verdict(pick, [0.0] * 5, pick_is_single=False)
    assert (found.kind, found.p_value) == ("mixture", 1 / 64)


def test_refuses_bad_levels() -> None:
    with pytest.raises(MetricError, match=r"`alpha` must be below 0\.5, but got 0\.5"):
        verdict([1.0], [0.0], pick_is_single=True, alpha=0.5)
    with pytest.raises(MetricError, match=r"`min_gain` must be between 0 and 1, but got 3"):
        verdict([1.0], [0.0], pick_is_single=True, min_gain=3)


def test_cross_fitted_examples_count_two_fifths_of_new_ones() -> None:
    # 13 wins of 20: P(X > 13) + P(X = 13) / 2 of 20 coins is 0.0946, not enough alone: z = 1.313.
    test, val = scores(13, 7, 200), scores(15, 5, 200)
    alone = verdict(*test, pick_is_single=False)
    both = verdict(*test, val=val, pick_is_single=False)
    assert alone.p_value is not None
    assert both.p_value is not None
    # 15 of 20: 0.0133, z = 2.217. Both have 20 that differ, so the sum of z-values is
    # (1.313 + 0.4 * 2.217) / sqrt(1 + 0.4) = 1.859.
    normal = NormalDist()
    z = [normal.inv_cdf(1 - p) for p in (alone.p_value, sign_flip_mid_p([1.0] * 15 + [-1.0] * 5))]
    assert z == pytest.approx([1.313, 2.217], abs=1e-3)
    assert both.p_value == pytest.approx(1 - normal.cdf(1.859), abs=1e-4)
    assert (alone.kind, both.kind, both.n) == ("not_enough_examples", "mixture", 400)
    # 6 of 200 and 10 of 200: (6 + 0.4 * 10) / (200 + 0.4 * 200)
    assert both.interval.estimate == pytest.approx(10 / 280)
    assert both.interval.low > 0 > alone.interval.low
    assert both.interval.confidence == pytest.approx(0.9)
    assert "200 questions it never saw and 200 of val, cross-fitted, which count 0.4" in both.text


def test_n_more_are_new_examples() -> None:
    # Power 0.8 asks for 1,258 that differ like these in all; 200 and 0.4 * 200 are known.
    both = verdict(*scores(12, 10, 200), val=scores(12, 10, 200), pick_is_single=False)
    counts = [0.4] * 200 + [1.0] * 200
    gaps = [1.0] * 12 + [-1.0] * 10 + [0.0] * 178
    assert both.n_more == examples_needed(gaps * 2, counts=counts) - 280
    alike = examples_needed(gaps * 2, counts=counts) / examples_needed(gaps)
    assert alike == pytest.approx(1.0, abs=0.01)


@given(pairs, pairs)
def test_with_val_the_interval_and_the_test_still_say_the_same(
    test: list[tuple[float, float]], val: list[tuple[float, float]]
) -> None:
    result = verdict(
        [a for a, _ in test],
        [b for _, b in test],
        val=([a for a, _ in val], [b for _, b in val]),
        pick_is_single=False,
    )
    assert result.p_value is not None
    assert (result.interval.low > 0) == (result.p_value <= 0.05) == (result.kind == "mixture")


def test_a_single_pick_is_not_tested_with_val_either() -> None:
    pick_scores, single_scores = scores(9, 0, 20)
    result = verdict(
        pick_scores, single_scores, val=(pick_scores, single_scores), pick_is_single=True
    )
    assert (result.kind, result.p_value, result.n) == ("single", None, 20)

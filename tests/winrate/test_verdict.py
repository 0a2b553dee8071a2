from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import examples_needed, superiority_p, verdict

unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=12)


def scores(wins: int, losses: int, n: int) -> tuple[list[float], list[float]]:
    """Scores of a pick and a single model that differ on ``wins + losses`` of ``n``."""
    ties = [1.0] * (n - wins - losses)
    return [1.0] * wins + [0.0] * losses + ties, [0.0] * wins + [1.0] * losses + ties


def test_a_clear_win_is_a_mixture() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=False, names=("a+b", "b"))
    # P(X >= 25) for 37 fair coins = 0.0235; 13 / 300 = 4.3 points
    assert result.kind == "mixture"
    assert result.p_value == pytest.approx(0.0235, abs=1e-4)
    assert result.n_more == 0
    assert result.text == (
        "Use the mixture: a+b beats b by 4.3 points (95 % interval 0.4 to 8.5, p = 0.024) "
        "on 300 questions it never saw."
    )


def test_an_excluded_gain_keeps_the_single_model() -> None:
    result = verdict(*scores(12, 25, 300), pick_is_single=False, names=("a+b", "b"))
    assert (result.kind, result.n_more) == ("single", 0)
    assert result.text == (
        "Keep the single model: a+b minus b is -4.3 points (95 % interval -8.5 to -0.4, "
        "p = 0.990) on 300 questions it never saw, which excludes a gain of 3 points."
    )


def test_neither_asks_for_more_examples() -> None:
    result = verdict(*scores(30, 25, 300), pick_is_single=False)
    assert result.kind == "not_enough_examples"
    assert 900 <= result.n_more <= 1_200
    assert result.text.startswith("Not enough examples: the mixture minus the best single model")
    assert f"about {result.n_more} more are needed to see a gain of 3 points." in result.text


def test_enough_for_the_gain_but_undecided_asks_for_what_decides() -> None:
    # 38 of 620 discordant, 1.6 points: power 0.8 needs 491, power 0.95 needs 808, 188 more
    pick, single = scores(24, 14, 620)
    differences = [a - b for a, b in zip(pick, single, strict=True)]
    assert examples_needed(differences) < 620
    result = verdict(pick, single, pick_is_single=False)
    assert result.kind == "not_enough_examples"
    assert result.n_more == examples_needed(differences, power=0.95) - 620 == 188


def test_a_single_pick_is_not_tested() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=True, names=("b", "b"))
    assert (result.kind, result.p_value, result.n_more) == ("single", None, 0)
    assert result.text == ("Keep the single model: the search chose b, so no mixture was tested.")


def test_stronger_level_needs_stronger_evidence() -> None:
    result = verdict(*scores(25, 12, 300), pick_is_single=False, alpha=0.01)
    assert result.kind == "not_enough_examples"
    assert "99 % interval" in result.text


@given(pairs=pairs, pick_is_single=st.booleans())
def test_is_total(pairs: list[tuple[float, float]], pick_is_single: bool) -> None:
    pick, single = [a for a, _ in pairs], [b for _, b in pairs]
    result = verdict(pick, single, pick_is_single=pick_is_single)
    assert result.n == len(pairs)
    assert (result.n_more > 0) == (result.kind == "not_enough_examples")
    assert (result.kind == "mixture") == (
        not pick_is_single and superiority_p(pick, single) <= 0.05
    )
    assert "\n" not in result.text
    assert result.text.endswith(".")
    assert "-0.0 " not in result.text


def test_refuses_bad_levels() -> None:
    with pytest.raises(MetricError, match=r"`alpha` must be below 0\.5, but got 0\.5"):
        verdict([1.0], [0.0], pick_is_single=True, alpha=0.5)
    with pytest.raises(MetricError, match=r"`gain` must be between 0 and 1, but got 3"):
        verdict([1.0], [0.0], pick_is_single=True, gain=3)

from __future__ import annotations

import numpy as np
import pytest

from moa_dspy.errors import MetricError
from moa_dspy.winrate import examples_needed, power_of, sign_flip_mid_p


def test_formula_by_hand() -> None:
    # 5 wins, 5 losses, 90 ties: variance 10/99, D = .10101 + .0009 = .10191
    # (1.6449 sqrt(.10191) + .8416 sqrt(.10101))^2 / .0009 = (.52509 + .26749)^2 / .0009 = 697.97
    differences = [1.0] * 5 + [-1.0] * 5 + [0.0] * 90
    assert examples_needed(differences) == pytest.approx(698, abs=1)


def test_no_discordance_uses_the_rule_of_three() -> None:
    # Variance 3 / 100, D = .0309:
    # (1.6449 sqrt(.0309) + .8416 sqrt(.03))^2 / .0009 = (.28915 + .14577)^2 / .0009 = 210.2
    assert examples_needed([0.0] * 100) == pytest.approx(211, abs=1)


def test_more_power_or_a_smaller_gain_needs_more() -> None:
    differences = [1.0, -1.0, 0.0, 0.0, 0.0]
    n = examples_needed(differences)
    assert examples_needed(differences, power=0.9) > n
    assert examples_needed(differences, min_gain=0.02) > n
    assert examples_needed(differences, alpha=0.01) > n


def test_promised_power_is_reached() -> None:
    # A true gain of 10 points, 30 % discordant: 20 % wins, 10 % losses
    n = examples_needed([1.0] * 15 + [-1.0] * 15 + [0.0] * 70, min_gain=0.1)
    generator = np.random.default_rng(1)
    found = 0
    for wins, losses, ties in generator.multinomial(n, [0.2, 0.1, 0.7], size=600).tolist():
        found += sign_flip_mid_p([1.0] * wins + [-1.0] * losses + [0.0] * ties) <= 0.05
    # sd of 600 trials at 0.8 is 0.016
    assert 0.76 <= found / 600 <= 0.86


@pytest.mark.parametrize("differences", [[0.1, 0.1], [0.3], [0.0], [1.0]])
def test_never_fewer_than_could_reach_the_level(differences: list[float]) -> None:
    # All won, the mid-p is 1 / 2^(n + 1): 1 / 16 of three is above 0.05, 1 / 32 of four below.
    assert sign_flip_mid_p([1.0] * 3) == 1 / 16
    assert examples_needed(differences, min_gain=0.9) >= 4


def test_refuses_what_is_out_of_range() -> None:
    with pytest.raises(MetricError, match=r"`differences` must be in \[-1, 1\], but one is -2\.0"):
        examples_needed([0.0, -2.0])
    with pytest.raises(MetricError, match="`min_gain` must be between 0 and 1, but got 3"):
        examples_needed([0.0], min_gain=3)
    with pytest.raises(MetricError, match=r"`power` must be at least 0\.5, but got 0\.4"):
        examples_needed([0.0], power=0.4)


def test_power_is_the_inverse_of_the_number_needed() -> None:
    differences = [1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0] * 20
    n = examples_needed(differences, min_gain=0.1, power=0.9)
    # The same mix on as many examples as are needed; a few more or less by rounding.
    scaled = (differences * (n // 140 + 1))[:n]
    assert power_of(scaled, min_gain=0.1) == pytest.approx(0.9, abs=0.02)
    assert power_of(differences, min_gain=0.1) < 0.9

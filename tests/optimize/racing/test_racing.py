from __future__ import annotations

import numpy as np
import pytest

from moa_dspy.errors import StudyError
from moa_dspy.winrate.tests import Race


def test_every_pair_and_look_gets_an_equal_part_of_the_error() -> None:
    # 40 arms: 780 pairs of an arm and an earlier one
    assert Race(40, 4).level == pytest.approx(0.05 / (4 * 780))
    assert Race(1, 1, alpha=0.1).level == 0.1


def test_an_arm_is_lost_exactly_at_its_level() -> None:
    # 2 arms, 1 look: the level is alpha. 5 losses of 5: mid-p 1 / 64 = 0.0156
    assert Race(2, 1, alpha=1 / 64).is_lost([0.0] * 5, [1.0] * 5)
    assert not Race(2, 1, alpha=0.0156).is_lost([0.0] * 5, [1.0] * 5)
    # 5 losses of 6: (6 / 2 + 1) / 64 = 0.0625
    assert not Race(2, 1).is_lost([0.0] * 5 + [1.0], [1.0] * 5 + [0.0])


def test_an_arm_that_is_ahead_or_level_goes_on() -> None:
    race = Race(2, 1)
    assert not race.is_lost([1.0] * 50, [0.0] * 50)
    assert not race.is_lost([0.3] * 50, [0.3] * 50)


def test_a_few_large_and_many_tiny_losses_are_no_loss() -> None:
    # All signs agree, so the sign-flip test alone says 2^-31; but it rests on one example.
    arm, rival = [0.0] * 30, [1.0] + [0.001] * 29
    assert not Race(40, 4).is_lost(arm, rival)


def test_graded_scores_can_lose_at_any_level() -> None:
    # 40 losses of 0.3 and 0.4: 2^-41, far below what 10,000 random flips could show
    assert Race(40, 4).is_lost([0.2] * 40, [0.5, 0.6] * 20)


@pytest.mark.parametrize("is_graded", [False, True])
def test_equal_arms_are_seldom_stopped_in_the_whole_race(is_graded: bool) -> None:
    generator, race, wrong = np.random.default_rng(0), Race(6, 2), 0
    for _ in range(200):
        hard = generator.random(60)
        arms = generator.random((6, 60)) * 0.7 + hard * 0.3
        arms = arms if is_graded else (arms < 0.5).astype(float)
        whole = [arms[0]]
        for arm in arms[1:]:
            best = max(whole, key=lambda arm_scores: float(arm_scores.mean()))
            if any(race.is_lost(arm[:n].tolist(), best[:n].tolist()) for n in (20, 40)):
                wrong += 1
                break
            whole.append(arm)
    # 5 % of 200 is 10, sd 3
    assert wrong <= 16


def test_a_bad_arm_is_stopped_in_most_races() -> None:
    generator, race, stopped = np.random.default_rng(1), Race(6, 2), 0
    for _ in range(100):
        good, bad = (generator.random((2, 60)) < np.array([[0.8], [0.3]])).astype(float)
        stopped += any(race.is_lost(bad[:n].tolist(), good[:n].tolist()) for n in (20, 40))
    assert stopped >= 80


def test_refuses_what_is_out_of_range() -> None:
    with pytest.raises(StudyError, match=r"at least 1, but got 0 and 2\."):
        Race(0, 2)
    with pytest.raises(StudyError, match=r"`alpha` must be in \(0, 1\), but got 1\."):
        Race(2, 2, alpha=1)
    with pytest.raises(StudyError, match=r"same examples, but have 2 and 1\."):
        Race(2, 2).is_lost([0.0, 1.0], [1.0])

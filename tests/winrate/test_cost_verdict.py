from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import (
    CostVerdict,
    cost_verdict,
    cost_verdicts,
    decision_interval,
    holm,
    non_inferiority_p,
    paired_interval,
    sign_flip_mid_p,
    verdict,
)

CHEAP = {"usd": 0.17, "calls": 3.0, "seconds": 2.0}
GRAND = {"usd": 1.0, "calls": 1.0, "seconds": 4.0}
unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=12)


def scores(wins: int, losses: int, n: int) -> tuple[list[float], list[float]]:
    """Scores of two systems that differ on ``wins + losses`` of ``n`` examples."""
    ties = [1.0] * (n - wins - losses)
    return [1.0] * wins + [0.0] * losses + ties, [0.0] * wins + [1.0] * losses + ties


def asked(wins: int, losses: int, n: int, cost: str = "usd") -> CostVerdict:
    return cost_verdict(
        *scores(wins, losses, n),
        costs=CHEAP,
        single_costs=GRAND,
        names=("cheap > vote", "grand"),
        cost=cost,
    )


def test_as_good_for_less() -> None:
    found = asked(10, 10, 600)
    # Tango's statistic of a difference of -0.03: the share of losses is (sqrt(56^2 - 1483.2) + 56)
    # / 2400 = 0.04027, the variance 600 (0.08055 - 0.0309) = 29.8, so z = 18 / 5.46 = 3.30.
    assert (found.kind, found.n_more) == ("as_good", 0)
    assert found.ratio == pytest.approx(0.17)
    assert found.p_value == pytest.approx(0.00049, abs=2e-5)
    assert found.interval.low > -0.03
    assert found.text.startswith(
        "As good as grand within 3 points, at 17 % of its price: "
        "cheap > vote minus grand is 0.0 points (90 % interval "
    )


def test_no_example_that_differs_is_the_chance_of_seeing_none() -> None:
    # If 3 % were lost, 120 questions would show none with chance 0.97^120 = 0.0259.
    assert non_inferiority_p(*scores(0, 0, 120)) == pytest.approx(0.97**120)
    assert asked(0, 0, 120).kind == "as_good"
    # 0.97^90 = 0.0645, although Tango's bound, z^2 / (n + z^2) = 0.0292, is below 3 points.
    assert asked(0, 0, 90).kind == "not_shown"
    interval = decision_interval(*scores(0, 0, 90))
    assert (interval.low, interval.high) == pytest.approx(
        (0.05 ** (1 / 90) - 1, 1 - 0.05 ** (1 / 90))
    )


def test_too_few_examples_ask_for_more() -> None:
    found = asked(20, 20, 200)
    assert found.kind == "not_shown"
    # Variance 40 / 199, so D = .2019: (1.6449 sqrt(.2019) + .8416 sqrt(.2010))^2 / .0009 = 1,385
    assert found.n_more == pytest.approx(1_385 - 200, abs=2)
    assert found.power < 0.5
    assert found.text.startswith("Not shown to be as good as grand within 3 points, at 17 % of")
    assert f"about {found.n_more:,} more are needed if the two are equally good." in found.text


def test_clearly_worse_is_said() -> None:
    found = asked(2, 60, 300)
    assert (found.kind, found.n_more) == ("worse", 0)
    assert found.interval.high < -0.03
    assert found.text.startswith("Worse than grand by more than 3 points, at 17 % of its price")


def test_what_costs_more_is_never_as_good_for_less() -> None:
    found = asked(10, 10, 600, cost="calls")
    assert (found.kind, found.ratio) == ("not_cheaper", 3.0)
    assert found.text.startswith("Not cheaper than grand: 300 % of its calls: ")
    assert asked(10, 10, 600, cost="seconds").text.startswith(
        "As good as grand within 3 points, at 50 % of its time: "
    )


@pytest.mark.slow
@given(pairs=pairs, margin=st.sampled_from([0.01, 0.03, 0.2, 0.5]))
def test_one_interval_decides_everything(pairs: list[tuple[float, float]], margin: float) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    interval = decision_interval(a, b)
    p = non_inferiority_p(a, b, margin=margin)
    if abs(p - 0.05) > 1e-6:
        assert (p <= 0.05) == (interval.low > -margin)
    better = sign_flip_mid_p([x - y for x, y in pairs])
    assert (interval.low > 0) == (better <= 0.05)
    if better <= 0.05:
        assert p <= better
    assert interval == verdict(a, b, pick_is_single=False).interval
    found = cost_verdict(a, b, costs=CHEAP, single_costs=GRAND, margin=margin)
    assert found.interval == interval
    assert (found.kind == "as_good") == (p <= 0.05)
    assert 0 <= found.power <= 1
    assert (found.n_more > 0) == (found.kind == "not_shown")


@given(pairs=pairs)
def test_the_interval_mirrors(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    interval, mirrored = decision_interval(a, b), decision_interval(b, a)
    assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    assert interval.low <= interval.estimate <= interval.high


def test_an_end_on_which_two_tests_disagree_is_moved_to_zero() -> None:
    # 3 against 0: Tango's test is 3 / sqrt(3) = 1.73 > 1.645, the mid-p 1 / 16 > 0.05.
    a, b = scores(3, 0, 100)
    assert paired_interval(a, b, confidence=0.9).low > 0
    assert decision_interval(a, b).low == 0


def test_several_systems_share_the_error() -> None:
    single = scores(10, 10, 600)[1]
    systems = {"a": scores(10, 10, 600)[0], "b": scores(0, 28, 600)[0], "c": list(single)}
    costs = {name: CHEAP for name in "abc"}
    found = cost_verdicts(systems, single, costs=costs, single_costs=GRAND)
    raw = {name: non_inferiority_p(s, single) for name, s in systems.items()}
    assert {name: member.p_value for name, member in found.items()} == pytest.approx(holm(raw))
    for name, comparison in found.items():
        assert (comparison.kind == "as_good") == (comparison.interval.low > -0.03), name
    # The smallest of three is tested at 5 / 3 %.
    assert found["c"].interval.confidence == pytest.approx(1 - 2 * 0.05 / 3)


def test_a_dearer_system_takes_no_part_of_the_error() -> None:
    single = scores(10, 10, 600)[1]
    systems = {"a": scores(10, 10, 600)[0], "dear": list(single)}
    costs = {"a": CHEAP, "dear": {"usd": 2.0}}
    found = cost_verdicts(systems, single, costs=costs, single_costs=GRAND)
    assert found["dear"].kind == "not_cheaper"
    assert found["a"].p_value == non_inferiority_p(systems["a"], single)


def wrongly_as_good(n: int, discordance: float, margin: float = 0.03) -> float:
    """Return how often ``n`` examples say "as good" of what is worse by the margin, summed up."""
    win, loss = (discordance - margin) / 2, (discordance + margin) / 2
    total = 0.0
    for losses in range(n + 1):
        # Wins beyond the first that says it say it too: look for that one by halving.
        low, high = 0, n - losses + 1
        while low < high:
            middle = (low + high) // 2
            is_shown = decision_interval(*scores(middle, losses, n)).low > -margin
            low, high = (low, middle) if is_shown else (middle + 1, high)
        if low > n - losses:
            break
        wins = np.arange(low, n - losses + 1)
        ways = [comb(n, losses) * comb(n - losses, int(w)) for w in wins]
        chance = [
            k * loss**losses * win ** int(w) * (1 - discordance) ** (n - losses - int(w))
            for k, w in zip(ways, wins, strict=True)
        ]
        total += sum(chance)
    return total


@pytest.mark.parametrize(("n", "discordance"), [(60, 0.2), (100, 0.031), (100, 0.1), (120, 0.3)])
def test_wrong_as_good_is_rare_where_it_is_worse_by_the_margin(n: int, discordance: float) -> None:
    assert wrongly_as_good(n, discordance) <= 0.06


def test_refuses_costs_that_say_nothing() -> None:
    a, b = scores(1, 1, 10)
    with pytest.raises(MetricError, match="The usd of a question must be known of both systems"):
        cost_verdict(a, b, costs={"usd": None}, single_costs=GRAND)
    with pytest.raises(MetricError, match=r"above 0 for the single model, but got 0\.0 and 0\.0"):
        cost_verdict(a, b, costs={"usd": 0.0}, single_costs={"usd": 0.0})
    with pytest.raises(MetricError, match="`cost` must be one of usd, calls, seconds, but got 'x'"):
        cost_verdict(a, b, costs=CHEAP, single_costs=GRAND, cost="x")
    with pytest.raises(MetricError, match="`costs` must hold every system, but 'a' is missing"):
        cost_verdicts({"a": a}, b, costs={}, single_costs=GRAND)
    with pytest.raises(MetricError, match=r"`margin` must be between 0 and 1, but got 3"):
        cost_verdict(a, b, costs=CHEAP, single_costs=GRAND, margin=3)


def test_small_graded_losses_exclude_no_great_one() -> None:
    # Two questions with one small loss are no proof of a loss below 3 points.
    assert non_inferiority_p([0.98, 1.0], [1.0, 1.0], margin=0.03) == pytest.approx(0.97**2)
    assert decision_interval([0.98, 1.0], [1.0, 1.0]).low == pytest.approx(-(1 - 0.05**0.5))
    # With 200 of them a loss of 3 points is excluded: 0.97^200 = 0.0023.
    few, all_right = [0.98] * 5 + [1.0] * 195, [1.0] * 200
    assert non_inferiority_p(few, all_right, margin=0.03) == pytest.approx(0.97**200)
    # More losses of one size never make the proof stronger.
    ps = [
        non_inferiority_p([0.75] * k + [1.0] * (50 - k), [1.0] * 50, margin=0.03) for k in range(8)
    ]
    assert ps == sorted(ps)


def test_less_than_two_independent_graded_examples_tell_nothing() -> None:
    found = decision_interval([0.1, 0.3], [0.2, 0.1], counts=[0.4, 0.4])
    assert (found.low, found.high) == (-1.0, 1.0)

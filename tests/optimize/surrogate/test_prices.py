from __future__ import annotations

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.surrogate.acquisition import Forecast, Prices

FORECAST = Forecast(usd={"a": 1.0, "b": 2.0, "c": 10.0}, seconds={"a": 3.0, "b": 1.0, "c": 5.0})
CHEAP, DEAR = Architecture.single("a"), Architecture.parse("a + c > b + c > synthesize(c)")


@pytest.mark.parametrize(
    ("text", "usd", "seconds", "calls"),
    [
        ("b", 2.0, 1.0, 1),
        ("a + b > vote", 3.0, 3.0, 2),
        # slowest of a and b, then c; the prices of all three
        ("a + b > synthesize(c)", 13.0, 3.0 + 5.0, 3),
        ("a*2 > b > select", 4.0, 3.0 + 1.0, 3),
        ("a + c > b*2 > synthesize(a)", 16.0, 5.0 + 1.0 + 3.0, 5),
    ],
)
def test_money_adds_up_and_time_is_the_critical_path(
    text: str, usd: float, seconds: float, calls: float
) -> None:
    costs = FORECAST.costs(Architecture.parse(text))
    assert costs == {"usd": usd, "seconds": seconds, "calls": calls}


@pytest.mark.parametrize("names", [(), ("win_rate",), ("score", "diversity")])
def test_nothing_has_a_price_where_no_cost_is_an_objective(names: tuple[str, ...]) -> None:
    prices = Prices(FORECAST, names, seed=0)
    assert {prices.at(n)(DEAR) for n in range(12)} == {0.0}


def test_a_third_of_proposals_look_at_the_score_alone() -> None:
    prices = Prices(FORECAST, ("win_rate", "usd"), seed=0)
    assert sum(prices.at(n)(DEAR) == 0 for n in range(30)) == 10


def test_the_others_weigh_cost_each_in_its_own_way() -> None:
    prices = Prices(FORECAST, ("win_rate", "usd", "seconds"), seed=0)
    asked = [n for n in range(30) if n % 3]
    assert all(prices.at(n)(DEAR) > prices.at(n)(CHEAP) > 0 for n in asked)
    assert len({prices.at(n)(DEAR) for n in asked}) == 20
    # All but the weight of money is the same: the ratio of two prices moves with the weights.
    assert len({round(prices.at(n)(DEAR) / prices.at(n)(CHEAP), 9) for n in asked}) == 20


def test_a_seed_weighs_the_same_again() -> None:
    def some(seed: int) -> list[float]:
        prices = Prices(FORECAST, ("usd",), seed)
        return [prices.at(n)(DEAR) for n in range(9)]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_costs_of_nothing_are_no_division_by_zero() -> None:
    free = Forecast(dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 0.0))
    prices = Prices(free, ("win_rate", "usd", "seconds"), seed=0)
    assert {prices.at(n)(DEAR) for n in range(6)} == {0.0}

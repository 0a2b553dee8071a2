from __future__ import annotations

import pytest

from moa_dspy.diversity import JaccardDistance
from moa_dspy.optimize.objectives import OBJECTIVES, DiversityObjective, MeasuredArchitecture

# Three examples: won, tied, lost against the best single agent.
MEASURED = MeasuredArchitecture(
    scores=[1.0, 0.5, 0.0],
    reference=[0.5, 0.5, 0.75],
    layers=[("x", "y"), ("x", "X "), ()],
    calls=[3, 3, 6],
    usd=[0.1, 0.2, 0.6],
    seconds=[1.0, 2.0, 6.0],
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calls", 4.0),
        # Different, equal when folded, nothing answered: (1 + 0 + 0) / 3
        ("diversity", 1 / 3),
        ("score", 0.5),
        ("seconds", 3.0),
        ("usd", 0.3),
        # (1 + 1/2 + 0) / 3
        ("win_rate", 0.5),
    ],
)
def test_values_are_means_over_examples(name: str, value: float) -> None:
    assert OBJECTIVES[name]()(MEASURED) == pytest.approx(value)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_costs_are_minimised_and_the_rest_is_maximised(name: str) -> None:
    costs = {"calls", "seconds", "usd"}
    assert OBJECTIVES[name]().direction == ("minimize" if name in costs else "maximize")


def test_diversity_takes_any_metric() -> None:
    # Words {x} and {y}: distance 1; "x" and "X" are one word; no text: 0
    assert DiversityObjective(JaccardDistance())(MEASURED) == pytest.approx(1 / 3)

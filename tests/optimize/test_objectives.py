from __future__ import annotations

from collections.abc import Sequence

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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_value_is_the_mean_of_the_rows_and_each_row_alone_has_its_own(name: str) -> None:
    objective = OBJECTIVES[name]()
    rows = list(objective.rows(MEASURED))
    assert objective(MEASURED) == pytest.approx(sum(rows) / 3)
    alone = [
        MeasuredArchitecture(
            scores=MEASURED.scores[i : i + 1],
            reference=[0.5, 0.5, 0.75][i : i + 1],
            layers=MEASURED.layers[i : i + 1],
            calls=MEASURED.calls[i : i + 1],
            usd=MEASURED.usd[i : i + 1],
            seconds=MEASURED.seconds[i : i + 1],
        )
        for i in range(3)
    ]
    assert rows == [objective(row) for row in alone]


def test_diversity_of_the_same_texts_is_computed_once() -> None:
    asked: list[tuple[str, ...]] = []

    def metric(texts: Sequence[str], /) -> float:
        asked.append(tuple(texts))
        return 0.25

    objective = DiversityObjective(metric)
    assert objective(MEASURED) == objective(MEASURED) == pytest.approx(0.5 / 3)
    assert asked == [("x", "y"), ("x", "X ")]

from __future__ import annotations

from typing import Any

import pytest

from moa_dspy.optimize.objectives import (
    CallsObjective,
    DiversityObjective,
    MeasuredArchitecture,
    ScoreObjective,
    SecondsObjective,
    UsdObjective,
    WinRateObjective,
)
from moa_dspy.optimize.trials import Standing, is_dominated
from moa_dspy.winrate.tests import Race

RACE = Race(10, 2)


def measured(scores: list[float], **facts: Any) -> MeasuredArchitecture:
    n = len(scores)
    given: dict[str, Any] = {
        "reference": [0.5] * n,
        "layers": [("x",)] * n,
        "calls": [1.0] * n,
        "usd": [1.0] * n,
        "seconds": [1.0] * n,
    }
    return MeasuredArchitecture(scores=scores, **(given | facts))


def dominated(arm: MeasuredArchitecture, rival: MeasuredArchitecture, *objectives: Any) -> bool:
    return is_dominated(Standing.of(arm, objectives), Standing.of(rival, objectives), RACE)


BAD, GOOD = measured([0.0] * 30), measured([1.0] * 40)


def test_without_objectives_the_score_decides() -> None:
    assert dominated(BAD, GOOD)
    assert not dominated(GOOD, measured([0.0] * 40))


def test_diversity_neither_saves_nor_stops() -> None:
    diverse = measured([0.0] * 30, layers=[("x", "y")] * 30)
    assert dominated(diverse, GOOD, WinRateObjective(), DiversityObjective())
    same = measured([1.0] * 30)
    rival = measured([1.0] * 40, layers=[("x", "y")] * 40)
    assert not dominated(same, rival, WinRateObjective(), DiversityObjective())


@pytest.mark.parametrize(
    ("name", "objective"),
    [("calls", CallsObjective()), ("usd", UsdObjective()), ("seconds", SecondsObjective())],
)
def test_what_is_cheaper_in_one_objective_goes_on(name: str, objective: Any) -> None:
    cheap = measured([0.0] * 30, **{name: [0.5] * 30})
    assert dominated(cheap, GOOD, WinRateObjective())
    assert not dominated(cheap, GOOD, WinRateObjective(), objective)
    assert dominated(BAD, GOOD, WinRateObjective(), objective)


def test_costs_are_compared_on_the_rows_that_both_have() -> None:
    # The rival is dear on its last 10 rows only, which the arm has not reached.
    rival = measured([1.0] * 40, usd=[1.0] * 30 + [9.0] * 10)
    assert dominated(BAD, rival, WinRateObjective(), UsdObjective())


def test_both_win_rate_and_score_must_be_lost() -> None:
    # Beats 0.5 in 28 of 30 rows, and 0.6 does in all: win rates near each other, scores not.
    arm = measured([0.0] * 2 + [0.6] * 28)
    rival = measured([1.0] * 40)
    assert dominated(arm, rival, ScoreObjective())
    assert not dominated(arm, rival, WinRateObjective())
    assert not dominated(arm, rival, WinRateObjective(), ScoreObjective())

from __future__ import annotations

import math

import numpy as np
import pytest

from moa_dspy.errors import MetricError
from moa_dspy.winrate import RecordedPreferences

ROWS: list[dict[str, object]] = [
    {"example": 1, "system": "a", "preference": 1.0, "judge": "someone"},
    {"example": 2, "system": "a", "preference": 0.25},
    {"example": 1, "system": "b", "preference": 0},
    {"example": 2, "system": "b", "preference": None},
]


def with_preference(value: object) -> list[dict[str, object]]:
    return [{"example": 1, "system": "a", "preference": value}]


def test_preferences_come_in_the_order_asked_for() -> None:
    table = RecordedPreferences(ROWS)
    assert table.systems == ("a", "b")
    assert table.of("a", [2, 1]).tolist() == [0.25, 1.0]
    assert table.of("a", [2]).tolist() == [0.25]
    assert table.examples("b") == (1,)


def test_columns_may_have_other_names() -> None:
    rows = [{"id": "x", "model": "m", "win": np.float64(0.5)}]
    table = RecordedPreferences(rows, example="id", system="model", preference="win")
    assert table.of("m", ["x"]).tolist() == [0.5]


def test_a_missing_judgement_is_nan_only_on_demand() -> None:
    table = RecordedPreferences(ROWS)
    values = table.of("b", [1, 2, 3], missing_as_nan=True)
    assert values[0] == 0
    assert np.isnan(values[1:]).all()
    with pytest.raises(MetricError, match="2 of 3 examples have no preference for 'b': 2, 3"):
        table.of("b", [1, 2, 3])


def test_ids_of_another_type_are_another_data_set() -> None:
    table = RecordedPreferences(ROWS)
    with pytest.raises(MetricError, match=r"'1', '2'\. Ids in the table look like 1, 2"):
        table.of("a", ["1", "2"], missing_as_nan=True)


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf, "0.5", 2])
def test_what_is_not_a_preference_is_refused(value: object) -> None:
    with pytest.raises(MetricError, match=r"Row 0 \(example 1, system 'a'\): the preference must"):
        RecordedPreferences(with_preference(value))


def test_bad_tables_are_refused() -> None:
    with pytest.raises(MetricError, match="this example and system occur a second time"):
        RecordedPreferences([*ROWS, ROWS[0]])
    with pytest.raises(MetricError, match="Row 0 has no 'preference'; its columns are 'example'"):
        RecordedPreferences([{"example": 1, "system": "a"}])
    with pytest.raises(MetricError, match="has no row"):
        RecordedPreferences([])
    with pytest.raises(MetricError, match="must be hashable"):
        RecordedPreferences([{"example": [1], "system": "a", "preference": 1}])


def test_unknown_questions_are_refused() -> None:
    table = RecordedPreferences(ROWS)
    with pytest.raises(MetricError, match="Unknown system 'c'; the table has 'a', 'b'"):
        table.of("c", [1])
    with pytest.raises(MetricError, match="at least one id, but got 0"):
        table.of("a", [])

from __future__ import annotations

import dspy
import pytest

from moa_dspy.errors import DataError, MetricError
from moa_dspy.judges import RecordedJudge, judge_all
from moa_dspy.winrate import RecordedPreferences

TABLE = {("a", "1"): 1.0, ("a", "2"): 0.25, ("a", "3"): None, ("b", "1"): float("nan")}


def rows() -> list[dspy.Example]:
    return [dspy.Example(id=name) for name in "1234"]


def test_preferences_come_from_the_table_and_gaps_are_missing() -> None:
    run = judge_all(RecordedJudge(TABLE), rows(), "a", None)
    assert run.preferences == pytest.approx([1.0, 0.25, *[float("nan")] * 2], nan_ok=True)
    assert (run.report.judged, run.report.missing) == (2, 2)
    assert run.win_rate().value == 0.625
    assert judge_all(RecordedJudge(TABLE), rows(), "b", None).report.missing == 4


def test_a_table_of_rows_is_read_as_well() -> None:
    table = RecordedPreferences(
        [
            {"example": 1, "system": "a", "preference": 1.0},
            {"example": 2, "system": "a", "preference": 0.25},
            {"example": 1, "system": "b", "preference": None},
        ]
    )
    run = judge_all(RecordedJudge(table), rows()[:2], "a", "the baseline")
    assert list(run.preferences) == [1.0, 0.25]
    assert judge_all(RecordedJudge(table), rows(), "b", None).report.missing == 4


def test_bad_tables_and_unknown_systems_are_errors() -> None:
    with pytest.raises(MetricError, match=r"must be in \[0, 1\], but 'a' has 1.5"):
        RecordedJudge({("a", "1"): 1.5})
    with pytest.raises(DataError, match="Unknown system 'c'; the table has a, b"):
        judge_all(RecordedJudge(TABLE), rows(), "c", None)

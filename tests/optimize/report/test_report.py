from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.cli.report import fitting
from moa_dspy.optimize.judge_facts import JudgeDiagnostics, JudgeFacts
from moa_dspy.optimize.report import amount, brackets_line, duration, row_cells
from moa_dspy.optimize.result import StudyResult, SystemScore, TrialRecord
from moa_dspy.winrate import Interval, Verdict
from moa_dspy.winrate.intervals import points
from tests.optimize.report.synthetic import report_text

PICK = "small-warm*2 + large > large-warm > synthesize(large)"
GAIN = Interval(0.021, -0.012, 0.054, 0.95)
TRIAL = TrialRecord(0, "large", "single", 0.5, 0.655, 0.0, 1.0, 0.0, 1.0, 100)


def row(name: str, architecture: str, score: float, *, failures: float = 0.0) -> SystemScore:
    return SystemScore(
        name,
        architecture,
        score,
        score - 0.05,
        score + 0.05,
        calls=4.0,
        usd=0.000123,
        seconds=1.27,
        failures=failures,
    )


RESULT = StudyResult(
    pick=Architecture.parse(PICK),
    recommended=Architecture.single("large"),
    verdict=Verdict("not_enough_examples", 0.11, GAIN, 300, 900, "Not enough examples: [measure]."),
    val={"pick": row("pick", PICK, 0.71), "best_single": row("best_single", "large", 0.655)},
    # Not in the table's order, and with a row that only this study has.
    test={
        "extra": row("extra", "small > vote", 0.1),
        "oracle": SystemScore("oracle", None, 0.75, note="right if any agent is"),
        "top_k": SystemScore("top_k", "small", None, note="no budget left"),
        "best_single": row("best_single", "large", 0.659, failures=0.02),
        "pick": row("pick", PICK, 0.68),
    },
    differences={"best_single": GAIN},
    optimism=0.018,
    trials=(TRIAL,) * 48,
    space_size=1203,
    calls_made=1234,
    calls_reused=56789,
    usd=0.42,
    seconds=192.3,
    seed=1,
    stopped_by="The budget of 1234 calls is reached.",
    failures={"small": 3, "large": 0},
)


def line_of(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def test_rows_stand_in_the_fixed_order_and_further_ones_after() -> None:
    names = ("pick", "best_single", "top_k", "oracle", "extra")
    text = report_text(RESULT)
    places = [text.index(f"\n{name} ") for name in names]
    assert places == sorted(places)


def test_a_row_says_score_difference_and_costs_per_question() -> None:
    # 0.000123 usd a question is 0.123 per 1,000
    cells = line_of("best_single", report_text(RESULT)).split()
    assert cells == ["best_single", "large", "65.9", "+2.1", "65.5", "4.0", "0.12", "1.27"]
    assert "[60.9, 70.9]  [-1.2, +5.4]" in report_text(RESULT)


def test_what_is_missing_is_a_dash_and_never_a_zero() -> None:
    text = report_text(RESULT)
    assert line_of("pick", text).split()[-5:] == ["—", "71.0", "4.0", "0.12", "1.27"]
    assert line_of("oracle", text).split()[-6:] == ["75.0", "—", "—", "—", "—", "—"]
    assert "not run: no budget left" in line_of("top_k", report_text(RESULT, width=120))


def test_a_score_of_a_part_of_the_rows_says_so() -> None:
    part = replace(RESULT.test["pick"], n_rows=1033, n_missing=47)
    partial = replace(RESULT, test={**RESULT.test, "pick": part})
    assert row_cells(partial, "pick")["test"] == "68.0\n[63.0, 73.0]\n1,033 of 1,080 rows"
    assert "1,033 of 1,080 rows" in report_text(partial, width=60)
    assert "68.0 % [63.0, 73.0] (1,033 of 1,080 rows)" in str(partial)


def test_a_verdict_on_more_rows_is_told_apart_from_the_difference_of_the_table() -> None:
    assert "for the best single agent alone" in brackets_line(RESULT)
    assert "counts the val questions" not in brackets_line(RESULT)
    wider = replace(RESULT.verdict, interval=Interval(0.052, 0.031, 0.075, 0.9), n=500)
    assert brackets_line(replace(RESULT, verdict=wider)).endswith(
        "The verdict counts the val questions too, each judged by a choice that was made without "
        "it: +5.2 points [3.1, 7.5] on 500 questions of val and test together."
    )


def test_the_rest_is_said_below() -> None:
    text = report_text(RESULT)
    for sentence in (
        "Optimism: the pick's val score is about 1.8 points too high.",
        "Search: 48 architectures measured of 1,203 possible; The budget of 1234 calls is reached.",
        "Cost: 1,234 calls made, 56,789 reused, 0.42 usd, 3 min 12 s.",
        "Failed responses: small 3.",
        "Test questions without an answer, which score 0: best_single 2.0 %.",
        "Not enough examples: [measure].",
        "Program: large (the best single agent)",
    ):
        assert sentence in text


def test_a_calm_study_says_less() -> None:
    calm = replace(
        RESULT,
        recommended=RESULT.pick,
        space_size=None,
        stopped_by=None,
        failures={},
        test={"pick": row("pick", PICK, 0.68)},
    )
    text = report_text(calm)
    assert "Search: 48 architectures measured.\n" in text
    assert "Failed" not in text
    assert "without an answer" not in text
    assert "best_single" in text, "it was measured on val"
    assert f"Program: {RESULT.pick} (the pick)" in text


def test_answers_that_were_cut_are_counted_per_agent_with_what_to_do() -> None:
    cut = {"small": {"length": 4, "content_filter": 1}, "large": {"length": 2}}
    result = replace(RESULT, cut=cut)
    text = report_text(result, width=200)
    assert (
        "Responses cut by the token limit: small 4, large 2. Raise `max_tokens` of these agents.\n"
        "Responses ended by the endpoint's content filter: small 1.\n"
    ) in text
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))).cut == cut
    assert "cut by" not in report_text(RESULT)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    text = report_text(RESULT, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for needed in ("[63.0, 73.0]", "+2.1", "[-1.2, +5.4]", "75.0"):
        assert needed in text


def test_narrow_terminals_lose_the_least_important_columns_first() -> None:
    # Beside the widest name, best_single, and its gap: 13 columns.
    everything = ["test", "difference", "val", "calls", "usd", "seconds"]
    assert fitting(100 - 13) == everything
    assert fitting(80 - 13) == ["test", "difference", "usd"]
    assert fitting(60 - 13) == fitting(1) == ["test", "difference"]


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0"), (-0.0001, "0.0"), (0.0214, "+2.1"), (-0.5, "-50.0")]
)
def test_points_have_a_sign_unless_they_are_zero(share: float, text: str) -> None:
    assert points(share, sign="+") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.7e-6, "0.0000027"),
        (0.00012, "0.00012"),
        (0.05, "0.05"),
        (0.123, "0.12"),
        (1234.5, "1,234"),
    ],
)
def test_amounts_have_no_powers_of_ten(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (59.96, "60.0 s"), (192.3, "3 min 12 s"), (7260, "2 h 1 min")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_reference_of_a_judge_has_no_interval() -> None:
    judge = JudgeFacts("GradeJudge j", "judge", "large", "named", False, JudgeDiagnostics(1, 1))
    judged = replace(RESULT, judge=judge)
    # Every answer of the reference is compared with itself.
    assert row_cells(judged, "best_single")["test"] == "65.9"
    assert row_cells(judged, "extra")["test"] == "10.0\n[5.0, 15.0]"
    frame = judged.to_pandas()
    assert frame["low"].isna()["best_single"]
    assert frame["low"]["extra"] == pytest.approx(0.05)
    assert "65.9 %  " in str(judged)
    assert "65.9 % [60.9, 70.9]" in str(replace(judged, judge=replace(judge, picks="metric")))


def test_the_cost_line_tells_apart_a_budget_of_seconds_and_the_time_of_the_whole() -> None:
    late = replace(RESULT, stopped_by="The budget of 8 seconds is reached.")
    text = report_text(late)
    assert "3 min 12 s in all; a budget of seconds ends calls" in " ".join(text.split())

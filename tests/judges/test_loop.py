from __future__ import annotations

import threading

import dspy
import pytest

from moa_dspy.calls import Budget, Calls, Ledger, current_scope
from moa_dspy.errors import BudgetReachedError, DataError
from moa_dspy.judges import JudgeReport, PairJudge, judge_all
from moa_dspy.testing import scripted_pool


def second(**settings: object) -> PairJudge:
    return PairJudge(pool=scripted_pool({"judge": "2"}), agent="judge", order="seeded")


def test_results_come_in_the_examples_order(rows: list[dspy.Example]) -> None:
    serial = judge_all(second(), rows, "ours", "theirs", num_threads=1)
    threaded = judge_all(second(), rows, "ours", "theirs", num_threads=8)
    assert list(serial.preferences) == list(threaded.preferences)
    assert serial.report == threaded.report


def test_examples_are_judged_at_the_same_time(rows: list[dspy.Example]) -> None:
    gate = threading.Barrier(4, timeout=10)

    def program(instruction: str) -> str:
        gate.wait()
        return instruction

    assert judge_all(second(), rows[:4], program, "theirs", num_threads=4).report.judged == 4


def test_programs_know_their_example(rows: list[dspy.Example]) -> None:
    seen = []

    def program(instruction: str) -> str:
        seen.append(current_scope().example)
        return "x"

    judge_all(second(), rows[:3], program, program, num_threads=1)
    assert seen == ["q0", "q0", "q1", "q1", "q2", "q2"]


def test_answers_are_missing_where_a_mapping_or_a_program_has_none(
    rows: list[dspy.Example],
) -> None:
    def program(instruction: str) -> dspy.Prediction:
        raise ValueError("broken")

    run = judge_all(second(), rows[:2], {"q0": "ours"}, "theirs")
    assert [judgement.excluded for judgement in run.judgements] == [None, "missing"]
    run = judge_all(second(), rows[:2], "ours", program)
    assert run.report == JudgeReport(n=2, missing=2)
    assert run.judgements[0].reason == "The reference has no response."


def test_a_spent_budget_stops_the_loop(rows: list[dspy.Example]) -> None:
    calls = Calls(ledger=Ledger(Budget(calls=3)))
    judge = PairJudge(pool=scripted_pool({"judge": "2"}, calls=calls), agent="judge")
    with pytest.raises(BudgetReachedError):
        judge_all(judge, rows, "ours", "theirs", num_threads=2)
    assert calls.ledger.spending.made == 3


def test_answers_that_do_not_fit_are_an_error(rows: list[dspy.Example]) -> None:
    with pytest.raises(DataError, match="`reference` has 2 answers to 3 examples"):
        judge_all(second(), rows[:3], "ours", ["a", "b"])
    with pytest.raises(DataError, match="no example to judge"):
        judge_all(second(), [], "ours", "theirs")


def test_reports_add_up_and_read_as_a_line() -> None:
    report = JudgeReport(n=3, judged=1, missing=1, unparsable=1, ties=1)
    total = report + JudgeReport(n=1, failed=1)
    assert total == JudgeReport(n=4, judged=1, missing=1, failed=1, unparsable=1, ties=1)
    assert total.excluded == 3
    assert str(total) == "1 of 4 judged, missing 1, failed 1, unparsable 1, ties 1"
    assert str(JudgeReport()) == "0 of 0 judged"

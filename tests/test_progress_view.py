from __future__ import annotations

import io
from dataclasses import replace

from moa_dspy.calls import Budget, Spending
from moa_dspy.cli.optimize import LiveProgress, clock, lines
from moa_dspy.optimize.early_facts import early_facts
from moa_dspy.optimize.progress import Snapshot
from moa_dspy.optimize.report import early_lines


def snapshot(stage: str = "search", trial: int = 12, budget: Budget | None = None) -> Snapshot:
    return Snapshot(
        stage=stage,
        trial=trial,
        n_trials=48,
        current="a + c > vote",
        best="a + b > vote",
        best_score=0.634,
        spending=Spending(made=1200, reused=3400, usd=0.05, seconds=90.0),
        budget=budget or Budget(),
    )


def test_everything_that_was_asked_for_is_shown() -> None:
    shown = list(lines(snapshot(budget=Budget(calls=5000, usd=1, seconds=600)), since=5.0))
    # 90 s are spent and 5 s have passed since: 10:00 - 1:35 = 8:25
    assert shown == [
        "search, trial 12/48",
        "best 63.4 %: a + b > vote",
        "1,200 of 5,000 calls made, 3,400 reused, 0.0500 of 1 usd",
        "1:35 elapsed, at most 8:25 left",
    ]


def test_a_replay_that_pays_for_nothing_still_has_a_clock() -> None:
    free = replace(snapshot(), spending=Spending(reused=7))
    assert list(lines(free, since=2.0, watched=65.0))[-1] == "1:05 elapsed"


def test_a_log_gets_one_line_per_stage_and_per_ten_trials() -> None:
    stream = io.StringIO()
    with LiveProgress(stream) as progress:
        for trial in range(25):
            progress(snapshot(trial=trial))
        progress(snapshot(stage="test", trial=25))
    starts = [line.split(";")[0] for line in stream.getvalue().splitlines()]
    assert starts == [
        "search, trial 0/48",
        "search, trial 10/48",
        "search, trial 20/48",
        "test, trial 25/48",
    ]


def test_what_single_agents_tell_is_said_once_before_more_is_spent() -> None:
    stream = io.StringIO()
    early = early_facts({"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0]})
    with LiveProgress(stream) as progress:
        progress(replace(snapshot("early facts"), early=early))
        progress(snapshot("search"))
    first, *told, last = stream.getvalue().splitlines()
    assert first.startswith("early facts")
    assert told == list(early_lines(early))
    assert "a, 66.7 %" in told[0]
    assert last.startswith("search")


def test_a_reader_that_went_away_does_not_end_the_study() -> None:
    stream = io.StringIO()
    with LiveProgress(stream) as progress:
        stream.close()
        progress(snapshot())


def test_a_terminal_gets_a_view_that_is_gone_afterwards() -> None:
    stream = io.StringIO()
    with LiveProgress(stream, is_live=True) as progress:
        progress(snapshot())
    assert "trial 12/48" in stream.getvalue()
    assert "a + c > vote" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K"), "the last thing written erases the view"


def test_clock_never_runs_below_zero() -> None:
    assert [clock(-5), clock(59.6), clock(3661)] == ["0:00", "1:00", "1:01:01"]

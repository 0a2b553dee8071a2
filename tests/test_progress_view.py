from __future__ import annotations

import io
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from moa_dspy.calls import Budget, Spending
from moa_dspy.calls.scope import CallFacts, CallTable, call_scope
from moa_dspy.optimize.early_facts import Cost, EarlyFacts, StudyEstimate, early_facts
from moa_dspy.optimize.live_view import (
    LiveProgress,
    ViewFrame,
    clock,
    frame_html,
    lines,
    printed_text,
)
from moa_dspy.optimize.progress import Leader, Progress, SearchView, Snapshot, StageWork
from moa_dspy.optimize.report import early_lines
from moa_dspy.optimize.result import TrialRecord


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


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


def foretelling(stages: dict[str, Cost], *, usd: float | None = 0.1) -> EarlyFacts:
    """Return early facts with the estimate of a study that has these stages."""
    whole = sum(stages.values(), Cost())
    estimate = StudyEstimate(calls=whole.calls, usd=usd, seconds=whole.seconds, stages=stages)
    return replace(early_facts({"a": [1.0, 0.0], "b": [0.0, 1.0]}), estimate=estimate)


def facts(agent: str = "a", **more: object) -> CallFacts:
    plain: dict[str, object] = {
        "prompt_tokens": 60,
        "completion_tokens": 40,
        "usd": 0.001,
        "seconds": 2.0,
        "is_reused": False,
    }
    return CallFacts(agent, **{**plain, **more})  # type: ignore[arg-type]  # as above


def shown(view: SearchView, *, height: int = 40, width: int = 100) -> list[str]:
    return printed_text(ViewFrame(view), height=height, width=width).splitlines()


def test_everything_that_was_asked_for_is_shown() -> None:
    time = Time()
    view = SearchView(time)
    view.take(snapshot(budget=Budget(calls=5000, usd=1, seconds=600)))
    time.seconds = 5
    # 90 s are spent and 5 s have passed since: 10:00 - 1:35 = 8:25
    assert list(lines(view)) == [
        "search, trial 12/48",
        "best 63.4 %: a + b > vote",
        "1,200 of 5,000 calls made, 3,400 reused, 0.05 of 1 usd",
        "1:35 elapsed, at most 8:25 left",
    ]


def test_what_is_left_in_all_is_what_was_foretold_at_the_pace_since_then() -> None:
    time = Time()
    view = SearchView(time)
    stages = {
        "single agents": Cost(calls=300, seconds=30),
        "search": Cost(calls=1_000, seconds=100),
        "test": Cost(calls=600, seconds=60),
    }
    early = foretelling(stages)

    def show(stage: str, trial: int, made: int) -> None:
        work, spent = StageWork(40, "trials", 10), Spending(made=made, usd=0.1, seconds=1.0)
        facts = early if stage == "early facts" else None
        found = replace(snapshot(stage, trial), work=work, spending=spent, early=facts)
        view.take(found)

    show("single agents", 0, 0)
    show("early facts", 0, 300)
    assert view.left("calls") is None
    show("search", 0, 300)
    # Nothing has come true yet: all that was foretold is left.
    assert (view.left("calls"), view.left("seconds")) == (1_600, 160)
    # Half of the search is done, in 250 calls of 500: later trials ask no more than was foretold.
    # It took 100 seconds of 50, so its other half is taken to take 100 more.
    time.seconds = 100
    show("search", 20, 550)
    assert view.left("calls") == pytest.approx(500 + 600)
    assert view.left("seconds") == pytest.approx(100 + 60)
    assert "550 calls made, about 1,100 to come, " in " ".join(lines(view))
    assert "elapsed, about 2:40 left in all" in " ".join(lines(view))
    # More than was foretold is believed: 1,400 calls for a half.
    show("search", 20, 1_700)
    assert view.left("calls") == pytest.approx(700 + 600)
    # A search that ends before its last trial leaves the test.
    show("test", 0, 2_000)
    # The search took 1,700 calls of 1,000, the softened pace of which is the test's too.
    assert view.left("calls") == pytest.approx(600 * (1_700 + 60) / (1_000 + 60))


def test_calls_that_the_search_makes_instead_of_the_random_baseline_are_not_multiplied() -> None:
    view = SearchView(Time())
    stages = {
        "search": Cost(calls=350, seconds=35),
        "random baseline": Cost(calls=650, seconds=65),
        "test": Cost(calls=950, seconds=95),
    }
    early = foretelling(stages)

    def show(stage: str, made: int) -> None:
        spent = Spending(made=made, usd=0.1, seconds=1.0)
        facts = early if stage == "early facts" else None
        view.take(replace(snapshot(stage, 0), spending=spent, early=facts))

    for stage, made in {"single agents": 0, "early facts": 450, "search": 450}.items():
        show(stage, made)
    show("random baseline", 1_210)
    # The search made 760 calls of 350; 1,000 - 760 of both are left to the baseline.
    assert view.left("calls") == pytest.approx(240 + 950)
    show("test", 1_450)
    assert view.left("calls") == pytest.approx(950)


@pytest.mark.parametrize(("n_made", "to_come"), [(0, None), (1, 100)])
def test_where_single_agents_were_stored_nothing_is_said_of_what_is_left(
    n_made: int, to_come: float | None
) -> None:
    view = SearchView(Time())
    stages = {"search": Cost(calls=100, seconds=9.0)}
    early = foretelling(stages, usd=None)
    spent = Spending(made=n_made, usd=0.0, seconds=1.0)
    view.take(replace(snapshot("single agents"), spending=Spending(made=0, usd=0.0, seconds=0.0)))
    view.take(replace(snapshot("early facts"), early=early, spending=spent))
    view.take(replace(snapshot("search", 0), spending=spent))
    assert view.left("calls") == to_come


def test_under_a_budget_that_ends_the_study_nothing_is_said_of_what_is_left() -> None:
    view = SearchView(Time())
    estimate = StudyEstimate(100, None, 9.0, stages={"search": Cost(calls=100)})
    early = replace(
        early_facts({"a": [1.0], "b": [0.0]}), estimate=estimate.within(Budget(calls=50))
    )
    view.take(replace(snapshot("single agents"), spending=Spending(made=0, usd=0.0, seconds=0.0)))
    view.take(replace(snapshot("early facts"), early=early))
    view.take(snapshot())
    assert view.left("calls") is None


def test_a_replay_that_pays_for_nothing_still_has_a_clock() -> None:
    time = Time()
    view = SearchView(time)
    view.take(replace(snapshot(), spending=Spending(reused=7)))
    time.seconds = 65
    assert list(lines(view))[-1] == "1:05 elapsed"


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
        "test",
    ]


def test_a_log_shows_what_is_waited_for_if_nothing_else_happens_for_a_minute() -> None:
    stream, time, table = io.StringIO(), Time(), CallTable()
    with LiveProgress(stream, now=time) as progress, call_scope(table=table) as scope:
        progress(replace(snapshot(), table=table))
        with scope.asking("slow"):
            time.seconds = 59
            progress.beat()
            time.seconds = 60
            progress.beat()
            progress.beat()
    first, second = stream.getvalue().splitlines()
    assert "waiting" not in first
    assert second.endswith("waiting for slow (0:00)")


def test_a_verbose_log_has_a_line_for_every_trial() -> None:
    stream = io.StringIO()
    last = TrialRecord(3, "a + b > vote", "model", 0.6, 0.5, 0.2, 2.0, 0.0, 1.0, 60, True)
    with LiveProgress(stream, is_verbose=True) as progress:
        progress(replace(snapshot(), last=last))
    assert stream.getvalue().splitlines()[0] == (
        "trial 4 (model): 50.0 % on 60 questions, stopped early: a + b > vote"
    )


def test_a_quiet_display_shows_nothing() -> None:
    stream = io.StringIO()
    with LiveProgress(stream, mode="none") as progress:
        progress.show(snapshot())
    assert stream.getvalue() == ""


def test_what_single_agents_tell_is_said_once_before_more_is_spent() -> None:
    stream = io.StringIO()
    early = early_facts({"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0]})
    with LiveProgress(stream) as progress:
        progress(replace(snapshot("early facts"), early=early))
        progress(snapshot("search"))
    first, *fact_lines, last = stream.getvalue().splitlines()
    assert first.startswith("early facts")
    assert fact_lines == list(early_lines(early))
    assert "a, 66.7 %" in fact_lines[0]
    assert last.startswith("search")


def test_a_reader_that_went_away_does_not_end_the_study() -> None:
    stream = io.StringIO()
    with LiveProgress(stream) as progress:
        stream.close()
        progress(snapshot())


def test_a_terminal_gets_a_view_that_is_gone_afterwards() -> None:
    stream = io.StringIO()
    with LiveProgress(stream, mode="live") as progress:
        progress(snapshot())
    assert "now: a + c > vote" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K"), "the last thing written erases the view"


def test_the_view_moves_with_every_call_between_two_snapshots() -> None:
    time, table = Time(), CallTable(stage="search")
    view = SearchView(time)
    # 10 trials of 4 questions, 3 calls each; the third trial begins
    work = StageWork(10, "trials", rows=4, calls=3)
    view.take(replace(snapshot(trial=2), table=table, work=work, spending=Spending(made=100)))
    shares = []
    for _ in range(3):
        table.add([facts()])
        stage, _seconds = view.current_stage() or pytest.fail("there is a stage")
        shares.append(stage.share)
    # A call is 1 of 3 x 4 of a trial, which is a tenth of the stage
    assert shares == pytest.approx([(2 + n / 12) / 10 for n in (1, 2, 3)])
    assert view.spending.made == 103
    table.add_row()
    time.seconds = 24.5
    stage, seconds = view.current_stage() or pytest.fail("there is a stage")
    # One of 4 questions is scored: 2.25 of 10 trials in 24.5 s; 7.75 more take 84.4 s
    assert stage.left_seconds(seconds) == pytest.approx(24.5 * 7.75 / 2.25)


def test_the_leaderboard_moves_as_trials_end() -> None:
    seen: list[Snapshot] = []
    from moa_dspy.calls.budget import Ledger

    progress = Progress(seen.append, Ledger(), 10, admits=lambda record: record.calls < 9)
    trials = [
        TrialRecord(0, "a", "single", 0.5, 0.5, 0.0, 1.0, 0.001, 1.0, 200),
        TrialRecord(1, "a + b > vote", "model", 0.6, 0.6, 0.2, 2.0, 0.002, 1.0, 200),
        TrialRecord(2, "dear", "model", 0.9, 0.9, 0.2, 9.0, 0.002, 1.0, 200),
        TrialRecord(3, "cut", "model", 0.9, 0.9, 0.2, 2.0, 0.002, 1.0, 40, True),
    ]
    progress.lead(Leader("a", 0.45, 1.0, 0.001, 100))
    for number, trial in enumerate(trials):
        progress.show("search", trial=number + 1, last=trial)
    # What goes beyond the limits, or was stopped early, may not lead; `a` stands once.
    assert [(leader.architecture, leader.score) for leader in seen[-1].leaders] == [
        ("a + b > vote", 0.6),
        ("a", 0.5),
    ]
    assert seen[0].leaders[0].score == 0.5


def test_a_frame_shows_stages_leaders_agents_and_what_is_waited_for() -> None:
    time, table = Time(), CallTable(stage="search")
    table.add([facts("a"), facts("a", is_reused=True), facts("b", failure="Down: [red]no[/red]")])
    view = SearchView(time)
    leaders = (Leader("a + b > vote", 0.634, 2.0, 0.0001, 200),)
    work = StageWork(48, "trials", rows=200, calls=2)
    with call_scope(table=table) as scope, scope.asking("b"):
        view.take(replace(snapshot(), table=table, leaders=leaders, work=work))
        found = shown(view)
    assert any(line.startswith("> search") and "12 of 48 trials" in line for line in found)
    assert any(line.startswith("  test") for line in found), "a stage that is still to come"
    cells = [line.split() for line in found]
    assert ["a", "+", "b", ">", "vote", "63.4", "200", "2.0", "0.10"] in cells
    # agent, made, reused, failed, tokens (60 + 40 of the one call that was sent), usd
    assert ["a", "1", "1", "0", "100", "0.001"] in cells
    assert ["b", "1", "0", "1", "100", "0.001", "0:00"] in cells
    assert found[-1].startswith("1,200 calls made, 3,400 reused, 0.05 usd")


@pytest.mark.parametrize("height", [20, 24, 40])
def test_a_frame_fits_the_terminal(height: int) -> None:
    table = CallTable(stage="search")
    table.add([facts(f"agent-{n}") for n in range(30)])
    view = SearchView(Time())
    leaders = tuple(Leader(f"m{n}", 0.9 - n / 100, 2.0, 0.0, 200) for n in range(10))
    view.take(replace(snapshot(), table=table, leaders=leaders))
    assert len(shown(view, height=height)) <= height
    assert any("more" in line for line in shown(view, height=height))


@pytest.mark.parametrize("height", [24, 40])
def test_the_sentence_of_the_estimate_is_shown_whole(height: int) -> None:
    ends = Cost(calls=7_000, usd=0.72, seconds=2_460), Cost(calls=9_500, usd=1.13, seconds=4_920)
    estimate = StudyEstimate(8_100, 0.93, 3_600, "usd", 0.5, 0.54, low=ends[0], high=ends[1])
    early = early_facts({"a": [1.0, 0.0], "b": [0.0, 0.0]}, estimate=estimate)
    table = CallTable(stage="search")
    table.add([facts(f"agent-{n}") for n in range(30)])
    view = SearchView(Time())
    leaders = tuple(Leader(f"m{n}", 0.9 - n / 100, 2.0, 0.0, 200) for n in range(10))
    view.take(replace(snapshot(), table=table, leaders=leaders, early=early))
    found = shown(view, height=height, width=60)
    *_, sentence = early_lines(early)
    assert len(sentence) > 60
    assert sentence in " ".join(found)
    assert len(found) <= height


def test_at_60_columns_no_head_of_a_table_is_cut() -> None:
    table = CallTable()
    leaders = (Leader("qwen-0.5b + qwen-1.5b > vote(qwen-1.5b)", 0.65, 2.6, 0.0001, 12_000),)
    with call_scope(table=table) as scope, scope.asking("qwen-1.5b"):
        scope.note(facts("qwen-1.5b", prompt_tokens=123_456_789))
        view = SearchView(Time())
        view.take(replace(snapshot(), table=table, leaders=leaders))
        wide, narrow = shown(view), shown(view, width=60)
    heads = [line.split() for line in narrow if line.startswith(("leaderboard", "agent"))]
    # What matters least is left out; what is left is whole.
    assert heads == [
        ["leaderboard", "val", "%", "questions", "calls", "usd/1,000"],
        ["agent", "made", "reused", "failed", "usd", "waiting", "for"],
    ]
    assert any(line.split()[:3] == ["agent", "made", "reused"] for line in wide)
    assert any("123,456,829" in line for line in wide)


def test_a_notebook_gets_the_same_frame_as_html() -> None:
    view = SearchView(Time())
    view.take(replace(snapshot(), current="<b>bold</b> & [red]x[/red]"))
    html = frame_html(ViewFrame(view))
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; [red]x[/red]" in html
    assert html.startswith("<pre")


def test_clock_never_runs_below_zero() -> None:
    assert [clock(-5), clock(59.6), clock(3661)] == ["0:00", "1:00", "1:01:01"]


@pytest.mark.slow
def test_the_recording_in_the_documents_is_what_the_quickstart_shows() -> None:
    script = Path(__file__).parent.parent / "docs" / "record_live_view.py"
    if not script.exists():
        pytest.skip("the documents are not beside these tests")
    recorded = runpy.run_path(str(script))["record"]()
    kept = script.with_name("live_view.txt").read_text("utf-8")
    assert _without_times(kept) == _without_times(recorded)


def _without_times(text: str) -> list[list[str]]:
    plain = re.sub(r", about \S+ left", "", text)
    return [re.sub(r"\d+:\d\d", "", line).split() for line in plain.splitlines()]

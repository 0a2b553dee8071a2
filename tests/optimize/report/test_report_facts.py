from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moa_dspy.optimize.early_facts import EarlyFacts, StudyEstimate
from moa_dspy.optimize.report import early_lines, result_lines
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.winrate import CostVerdict, Interval
from tests.optimize.report.synthetic import report_text
from tests.optimize.report.test_report import PICK, RESULT

EARLY = EarlyFacts(
    n_rows=1200,
    leader="large",
    leader_score=0.655,
    unsolved=Interval(0.2, 0.15, 0.26, 0.95),
    ceiling=0.8,
    vote_ceiling=0.74,
    runner_up="small",
    lead=Interval(0.1, 0.04, 0.16, 0.99),
    rescued=0.145,
    estimate=StudyEstimate(12345, 0.5, 192.3, "usd", 0.2, 0.4),
)
SINGLE = TrialRecord(0, "large", "single", 0.5, 0.655, 0.0, 1.0, 0.0001, 1.25, 100)
FULL = replace(
    RESULT,
    expected=Interval(0.692, 0.651, 0.73, 0.95),
    early=EARLY,
    explained={"performance": 0.62, "diversity": 0.08, "rest": 0.3},
    front=(PICK, "large"),
    knee="large",
    trials=(SINGLE,),
    prompts=(
        {
            "name": "brief",
            "origin": "COPRO",
            "text": "Be brief.",
            "accepted": True,
            "diff": "-a\n+b",
            "val": {"architecture": "a > synthesize(b; prompt=brief)", "score": 0.71, "own": 0.6},
        },
        {"name": "long", "text": "Be long.", "accepted": False, "diff": "-a\n+c"},
        {
            "name": "tuned-1",
            "text": "Be right.",
            "accepted": None,
            "val": {"architecture": "a > synthesize(b; prompt=tuned-1)", "score": 0.5, "own": None},
        },
        {"name": "paper", "text": "As the paper has it."},
    ),
)


@pytest.mark.parametrize(
    "line",
    [
        "Expected on test, from val alone: 69.2 % [65.1, 73.0] for a pick made this way; "
        "its score on val was 71.0 %, with an optimism of 1.8 points. The test score above is the "
        "measurement.",
        "What explains the differences between architectures on your data: performance 62 %, "
        "diversity 8 %, rest 30 %.",
        "Front: 2 architectures that no other beats on every objective; on val, per question:",
        f"- {PICK}",
        "- large (knee): 65.5 %, 1.0 calls, 0.10 usd per 1,000, 1.25 s",
        "Knee: large, if the objectives are equally important.",
        "Prompt brief, by COPRO: accepted; 71.0 % on val with a > synthesize(b; prompt=brief), "
        "60.0 % with the aggregator's own prompt.",
        "  +b",
        "Prompt long: not proven better, so not used.",
        "Prompt tuned-1: tried; 50.0 % on val with a > synthesize(b; prompt=tuned-1).",
        "Prompt paper: tried, but not measured on all val questions.",
    ],
)
def test_what_was_found_is_said(line: str) -> None:
    assert line in list(result_lines(FULL))


def test_a_front_of_one_is_counted_in_the_singular() -> None:
    one = next(line for line in result_lines(replace(FULL, front=("large",))) if "Front" in line)
    assert one.startswith("Front: the only architecture that no other beats")


def test_a_prompt_that_was_not_accepted_shows_no_diff() -> None:
    assert "  +c" not in list(result_lines(FULL))


def test_early_facts_are_four_plain_lines() -> None:
    assert list(early_lines(EARLY)) == [
        "Best single agent on 1,200 questions of val: large, 65.5 %. "
        "20.0 % [15.0, 26.0] of them are solved by no agent.",
        "At best, on these questions: 74.0 % by a vote of different agents with equal weights, "
        "80.0 % by choosing among the agents' "
        "answers; a synthesis can exceed this, as it writes its own.",
        "Warning: large is better than all others, by 10.0 points [4.0, 16.0] over small; "
        "14.5 % of the questions are missed by it and solved by another, the most that choosing "
        "can add.",
        "The whole study takes about 12,345 calls, about 0.50 usd, about 3 min 12 s without stored "
        "answers. Its budget of 0.20 usd is enough for about 40 % of it.",
    ]


def test_what_is_not_known_early_is_not_said() -> None:
    level = replace(
        EARLY,
        vote_ceiling=None,
        lead=Interval(0.01, -0.02, 0.04, 0.99),
        estimate=StudyEstimate(10, 0.0, 1.0),
    )
    text = "\n".join(early_lines(level))
    assert "vote" not in text
    assert "Warning" not in text
    assert "No agent is clearly better than all others; large is best, but 14.5 %" in text
    assert text.endswith("takes about 10 calls, about 0 usd, about 1.0 s without stored answers.")
    assert len(list(early_lines(replace(level, runner_up=None, lead=None, estimate=None)))) == 2


FOR_LESS = CostVerdict(
    kind="as_good",
    estimate=-0.004,
    interval=Interval(-0.004, -0.021, 0.013, 0.9),
    p_value=0.004,
    power=0.83,
    n=300,
    n_more=0,
    margin=0.03,
    cost="usd",
    ratio=0.17,
    text="As good as grand within 3 points, at 17 % of its price.",
)


def test_the_verdict_on_costs_is_the_headline() -> None:
    result = replace(FULL, cost_verdict=FOR_LESS, front_verdicts={"large": FOR_LESS})
    lines = report_text(result).splitlines()
    assert lines.index(FOR_LESS.text) + 1 == lines.index(result.verdict.text)
    assert f"  {FOR_LESS.text}" in list(result_lines(result))
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert FOR_LESS.text not in report_text(FULL)


def test_the_cheapest_that_is_as_good_as_the_pick_is_named() -> None:
    worse = replace(FOR_LESS, kind="not_shown", ratio=0.1)
    savings = {"a": replace(FOR_LESS, ratio=0.6), "b": FOR_LESS, "c": worse}
    result = replace(FULL, savings=savings)
    (line,) = [line for line in result_lines(result) if line.startswith("As good as the pick")]
    assert line == (
        "As good as the pick for 83 % less money: b, -0.4 points [-2.1, 1.3] against the pick on "
        "300 test questions, so not worse by 3.0 points."
    )
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "As good as the pick" not in report_text(replace(FULL, savings={"c": worse}))


def test_a_long_front_is_cut() -> None:
    many = replace(FULL, front=tuple(f"m{i}" for i in range(11)), knee=None)
    lines = list(result_lines(many))
    assert [line for line in lines if line.startswith("- m")] == [f"- m{i}" for i in range(8)]
    assert "- and 3 more in the result." in lines
    assert not [line for line in lines if line.startswith("Knee")]
    # What is cheap is last; where test shows it as good it is told all the same.
    proven = replace(many, front_verdicts={"m10": FOR_LESS})
    assert [line for line in result_lines(proven) if line.startswith("- m")][8:] == ["- m10"]
    assert "- and 2 more in the result." in result_lines(proven)


@pytest.mark.parametrize("width", [60, 100])
def test_the_whole_report_fits_the_terminal(width: int) -> None:
    text = report_text(FULL, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "[15.0," in text, "brackets are no markup"


@pytest.mark.parametrize("result", [RESULT, FULL])
def test_a_result_survives_its_file(result: StudyResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result.write(path)
    assert StudyResult.from_json(json.loads(path.read_text("utf-8"))) == result


def test_a_file_written_before_these_facts_were_known_still_loads() -> None:
    content = RESULT.to_json()
    for key in ("expected", "early", "front", "knee", "explained", "prompts", "cost_verdict"):
        del content[key]
    assert StudyResult.from_json(content) == RESULT

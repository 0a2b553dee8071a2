"""Costs that are not known are None, and said to be unknown, wherever a study's result is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.data.recorded import RecordedCost, RecordedResponses
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.page import read_run, write_pages
from moa_dspy.optimize.report import result_lines
from moa_dspy.optimize.run import work_on
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.testing import recorded_pool

N_ROWS = 24


def write_table(folder: Path, costs: dict[str, Any]) -> Path:
    """Write answers of `ash` and `fir`, right on other thirds, and a study of them."""
    rows = []
    for number in range(N_ROWS):
        for place, agent in enumerate(("ash", "fir")):
            answer = "wrong" if number % 3 == place else "right"
            row: dict[str, Any] = {"question": f"q{number}", "agent": agent, "answer": answer}
            row["score"] = float(answer == "right")
            rows.append({**row, "split": ("val", "test")[number % 2], **costs})
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (folder / "study.toml").write_text(
        'name = "table"\n[task]\nsignature = "question -> answer"\nmetric = "answer_match"\n'
        '[data]\nreader = "recorded"\npath = "answers.jsonl"\nsplit_column = "split"\n'
        '[space]\ncombines = ["vote"]\nmax_depth = 1\n[search]\nn_trials = 3\n',
        "utf-8",
    )
    return folder / "study.toml"


KNOWN: dict[str, Any] = {"usd": 0.001, "seconds": 2.0}


@pytest.mark.parametrize("unknown", [("usd", "seconds"), ("usd",), ("seconds",), ()])
def test_a_cost_that_a_table_does_not_say_is_unknown_everywhere(
    tmp_path: Path, unknown: tuple[str, ...]
) -> None:
    costs = {name: value for name, value in KNOWN.items() if name not in unknown}
    study = write_table(tmp_path, costs)
    work_on(PreparedStudy.read(study), None, out=tmp_path / "run", show=lambda _: None)
    content = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    for name in KNOWN:
        shown = [trial[name] for trial in content["trials"]]
        shown += [content[split]["best_single"][name] for split in ("val", "test")]
        assert [cost is None for cost in shown] == [name in unknown] * len(shown)
    assert (content["usd"] is None) == ("usd" in unknown)

    result, answers = read_run(tmp_path / "run")
    said = "\n".join(result_lines(result))
    assert ("an unknown price" in said) == ("usd" in unknown)
    write_pages(result, answers, tmp_path, name="table")
    assert "price unknown" in (tmp_path / "report.html").read_text("utf-8") or "usd" not in unknown
    systems, trials = result.to_pandas(), result.to_pandas("trials")
    for name in KNOWN:
        assert systems.loc["best_single", name:name].isna().all() == (name in unknown)
        assert trials[name].isna().all() == (name in unknown)


def test_a_response_that_is_missing_costs_what_the_table_says() -> None:
    cost = RecordedCost(usd=0.25, seconds=3.0)
    recorded = RecordedResponses(
        {"ash": {"q": None}, "fir": {"q": "yes"}},
        {"q": "Is it?"},
        costs={("q", "ash"): cost, ("q", "fir"): cost},
    )
    pool = recorded_pool(recorded)
    assert (pool.unpriced, pool.is_timed) == ((), True)
    program = MixtureOfAgents(
        "question -> answer",
        "ash + fir > vote(fir)",
        pool=pool,
        adapter=PlainChat(),
        stop_early=False,
    )
    answer = program(question="Is it?").mixture
    assert (answer.usd, answer.calls, len(answer.failures)) == (0.5, 2, 1)
    assert answer.failures[0].failure is not None
    assert "no response when it was recorded" in answer.failures[0].failure


def test_a_table_that_lacks_the_cost_of_a_missing_response_does_not_know_it() -> None:
    recorded = RecordedResponses(
        {"ash": {"q": None}, "fir": {"q": "yes"}},
        {"q": "Is it?"},
        costs={("q", "fir"): RecordedCost(usd=0.25)},
    )
    pool = recorded_pool(recorded)
    assert pool.unpriced == ("ash", "fir")
    assert pool.unknown_costs(["ash"]) == {"usd", "seconds"}

"""A result is plain data, and its program is saved with prompt and demos."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dspy import teleprompt as tp
from rich.console import Console

import moa_dspy
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import (
    Prompt,
    PromptReport,
    PromptResult,
    ReferenceDemos,
    optimize_aggregator,
)
from tests.optimize.prompts.optimizers import copro
from tests.optimize.prompts.world import World, exact, make_world, mixture, rows


def run(world: World, optimizer: object) -> PromptResult:
    return optimize_aggregator(
        mixture(world), optimizer, rows("train"), rows("val", 18), metric=exact
    )


def test_the_result_is_json_and_names_its_origin_without_keys() -> None:
    world = make_world()
    optimizer = copro(world.outsider)
    optimizer.api_key = optimizer.hub_token = "SECRET"
    found = json.loads(json.dumps(run(world, optimizer).to_json()))
    assert "SECRET" not in json.dumps(found)
    assert found["origin"]["optimizer"] == "COPRO"
    assert found["origin"]["settings"]["breadth"] == 2
    assert found["accepted"] is True
    assert found["calls"] == {
        "proposers": {"made": 48, "reused": 0},
        "aggregator": {"made": 48, "reused": 0},
        "prompt_model": {"made": 1, "reused": 0},
    }
    # DSPy rounds percents to two digits.
    assert [one["score"] for one in found["candidates"]] == pytest.approx([1, 4 / 6], abs=1e-4)
    assert found["candidates"][0]["origin"] == "COPRO, depth 0"
    assert found["val"]["n"] == 18


def test_the_diff_shows_what_went_and_what_came() -> None:
    lines = run(make_world(), copro(make_world().outsider)).diff.splitlines()
    assert lines[:2] == ["--- before", "+++ after"]
    assert "+Think CAREFULLY." in lines
    assert any(line.startswith("-You have been provided") for line in lines)


def test_a_saved_program_has_the_accepted_prompt_and_demos(tmp_path: Path) -> None:
    world = make_world()
    result = run(world, ReferenceDemos(n=2))
    assert result.accepted
    result.program.save(tmp_path / "program.json")
    loaded = MixtureOfAgents.load(tmp_path / "program.json", pool=world.pool)
    assert Prompt.of(loaded.aggregator).key == result.after.key
    assert len(loaded.aggregator.demos) == 2
    assert loaded(question="task 3").answer == "Q3"


def test_of_a_row_a_demo_keeps_what_the_signature_names() -> None:
    result = run(make_world(), tp.LabeledFewShot(k=2))
    assert [set(demo) for demo in result.after.demos] == [{"question", "references", "answer"}] * 2


def test_the_report_is_the_same_text_with_and_without_rich() -> None:
    result = run(make_world(), copro(make_world().outsider))
    out = StringIO()
    Console(file=out, width=200, color_system=None).print(PromptReport(result))
    assert out.getvalue().strip() == str(PromptReport(result))
    lines = str(PromptReport(result)).splitlines()
    assert lines[0] == "Use the new prompt: it beats the incumbent (p = 0.008)."
    assert lines[1].startswith("validation, 18 rows: 66.7 % before, 100.0 % after; +33.3 points")
    assert lines[2] == "calls made: proposers 48 (+0), aggregator 48 (+0), prompt_model 1 (+0)"


def test_an_optimizer_that_changes_nothing_is_told() -> None:
    class Nothing(tp.Teleprompter):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            return student

    result = run(make_world(), Nothing())
    assert (result.accepted, result.diff, result.val.n_more) == (False, "", 0)
    assert str(PromptReport(result)).startswith("Keep the prompt: Nothing returned the same one.")


def test_the_front_door_has_it() -> None:
    assert moa_dspy.optimize_aggregator is optimize_aggregator

"""A round tunes the prompts of the best mixtures on train rows, and asks no proposer then."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Ledger
from moa_dspy.errors import MetricError
from moa_dspy.optimize import Evaluator
from moa_dspy.optimize.prompts import (
    Counted,
    JointSearch,
    PromptOptions,
    PromptRegistry,
    PromptVerdict,
    TryPrompts,
)
from moa_dspy.optimize.prompts.tuning import calls_by_stage
from moa_dspy.optimize.result import TrialRecord
from tests.optimize.prompts.optimizers import copro
from tests.optimize.prompts.world import CAREFULLY, World, exact, make_world, mixture, rows

C, D = (Architecture((("a", "b"),), name) for name in "cd")


def record(score: float, *, is_stopped_early: bool = False) -> TrialRecord:
    """Return a trial with a score; a round reads nothing else of it."""
    numbers = dict.fromkeys(("win_rate", "diversity", "calls", "usd", "seconds"), 0.0)
    given: Any = {"number": 0, "architecture": "", "origin": "", "rows": 1, **numbers}
    return TrialRecord(score=score, is_stopped_early=is_stopped_early, **given)


def rounds(world: World, metric: Any = exact, **options: Any) -> JointSearch:
    given = PromptOptions(**{"optimizer": copro(world.outsider), **options})
    program = mixture(world)
    registry = given.make_registry(program)
    return JointSearch(Evaluator(program, metric, 2), given, registry, rows("train"))


def registry_of(found: JointSearch) -> PromptRegistry:
    assert found.registry is not None
    return found.registry


def test_a_better_prompt_is_found_for_the_best_mixtures_at_no_proposer_call() -> None:
    world = make_world()
    found = rounds(world, top=1)
    records = {D: record(0.9, is_stopped_early=True), C: record(0.5)}
    records[Architecture.single("a")] = record(0.8)
    (made,) = found.tune(records, 1)
    assert str(made) == "a + b > synthesize(c; prompt=tuned-1)"
    assert CAREFULLY["proposed_instruction"] in registry_of(found).to_json()[0]["text"]
    # Each proposer is asked once per train row; the tuning reads what they said.
    assert (world.log.by("a").total(), world.log.by("b").total()) == (6, 6)
    assert calls_by_stage(found.cache)["references"]["proposers"].made == 12
    assert calls_by_stage(found.cache)["tuning"]["proposers"].made == 0
    assert calls_by_stage(found.cache)["tuning"]["aggregator"].made > 0
    assert calls_by_stage(found.cache)["tuning"]["prompt_model"].made > 0
    (entry,) = registry_of(found).to_json()
    assert (entry["origin"], entry["architecture"]) == ("COPRO", str(C))
    assert entry["train_score"] == 1.0


def test_two_mixtures_that_read_the_same_share_the_stored_references() -> None:
    world = make_world()
    found = rounds(world, top=2)
    made = found.tune({C: record(0.5), D: record(0.4)}, 1)
    # The same text is found twice, and has one name.
    assert [str(one) for one in made] == [
        "a + b > synthesize(c; prompt=tuned-1)",
        "a + b > synthesize(d; prompt=tuned-1)",
    ]
    # Known nodes are not even looked up in the store.
    asked = [roles["proposers"] for roles in calls_by_stage(found.cache).values()]
    assert sum(asked, Counted()) == Counted(made=12, reused=0)
    assert calls_by_stage(found.cache)["tuning"]["proposers"].made == 0


def test_where_no_prompt_is_better_nothing_is_returned_and_a_note_says_so() -> None:
    world = make_world(learns=False)
    found = rounds(world, optimizer=TryPrompts(["Read CAREFULLY."]), top=1)
    assert found.tune({C: record(0.5)}, 1) == []
    assert found.tuning_notes == [f"TryPrompts found no new prompt for {C}."]
    assert registry_of(found).to_json() == []


def test_a_composition_is_tuned_once_from_the_best_of_its_prompts() -> None:
    world = make_world()
    found = rounds(world, texts={"quick": "Be quick."}, top=2)
    quick = Architecture(C.layers, "c", prompt="quick")
    made = found.tune({C: record(0.5), quick: record(0.6)}, 1)
    assert [str(one) for one in made] == ["a + b > synthesize(c; prompt=tuned-1)"]
    assert registry_of(found).to_json()[-1]["architecture"] == str(quick)


def test_a_budget_ends_the_tuning_and_not_the_study() -> None:
    world = make_world()
    world.pool.calls.ledger = Ledger(Budget(calls=14))
    found = rounds(world)
    assert found.tune({C: record(0.5), D: record(0.4)}, 1) == []
    (note,) = found.tuning_notes
    assert note.startswith("Tuning of prompts ended: The budget of 14 calls is reached")
    assert world.pool.calls.ledger.spending.made == 14


def test_a_metric_that_fails_ends_the_study() -> None:
    def broken(example: Any, prediction: Any) -> float:
        raise KeyError("no such field")

    with pytest.raises(MetricError, match="The metric raised KeyError"):
        rounds(make_world(), broken).tune({C: record(0.5)}, 1)


def test_without_references_the_next_mixture_is_tuned() -> None:
    world = make_world(scripts={"a": OSError("gone"), "b": OSError("gone")})
    found = rounds(world, top=1)
    assert found.tune({C: record(0.5)}, 1) == []
    assert found.tuning_notes[0].startswith(f"The prompt of {C} was not tuned: No train row has")


def verdict_of(
    world: World, picked: Architecture, n_rows: int, *, n_tried: int, min_gain: float = 0.03
) -> tuple[Architecture | None, PromptVerdict | None]:
    """Return what takes the place of the pick, and why."""
    program = mixture(world)
    registry = PromptRegistry.of(program, {"careful": "Read CAREFULLY."}, 0)
    found = JointSearch(Evaluator(program, exact, 2, registry=registry), n_tried=n_tried)
    own = found.refused(picked, rows("val", n_rows), min_gain=min_gain)
    return own, found.verdict


CAREFUL = Architecture(C.layers, "c", prompt="careful")


@pytest.mark.parametrize(("learns", "is_proven"), [(True, True), (False, False)])
def test_a_prompt_stays_only_if_it_beats_the_own_on_val(learns: bool, is_proven: bool) -> None:
    own, verdict = verdict_of(make_world(learns=learns), CAREFUL, 18, n_tried=1)
    assert own == (None if is_proven else C)
    assert verdict is not None
    assert verdict.is_proven is is_proven
    assert ("beats" if is_proven else "is not proven better") in verdict.note
    assert verdict_of(make_world(), C, 6, n_tried=1) == (None, None)


def test_the_level_is_shared_by_the_mixtures_that_were_tried() -> None:
    # Five of 15 rows are gained and none lost: mid-p is 1/64.
    (_, few), (_, many) = (
        verdict_of(make_world(), CAREFUL, 15, n_tried=n, min_gain=0.9) for n in (1, 10)
    )
    assert few is not None
    assert many is not None
    assert (few.is_proven, many.is_proven) == (True, False)


def test_the_guard_without_a_budget_keeps_the_own_prompt() -> None:
    world = make_world()
    world.pool.calls.ledger = Ledger(Budget(calls=3))
    own, verdict = verdict_of(world, CAREFUL, 6, n_tried=1)
    assert own == C
    assert verdict is not None
    assert not verdict.is_proven
    assert "is not used: The budget of 3 calls is reached" in verdict.note


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bootstrap", "copro", "demos", "gepa", "miprov2", "try"])
def test_every_optimizer_by_name_tunes_at_no_proposer_call(name: str) -> None:
    world = make_world(temperature=0.7)
    options: dict[str, Any] = {"optimizer": name, "n_prompts": 2, "demos": 1, "top": 1}
    texts = {"careful": "Read CAREFULLY."} if name == "try" else {}
    with dspy.context(lm=world.outsider):
        found = rounds(world, **options, texts=texts)
        made = found.tune({C: record(0.5)}, 1)
    assert found.tuning_notes == []
    assert [one.prompt for one in made] == ["careful" if name == "try" else "tuned-1"]
    assert calls_by_stage(found.cache)["tuning"]["proposers"].made == 0
    assert (world.log.by("a").total(), world.log.by("b").total()) == (6, 6)

"""Written prompts are tried, each above the caller's own instructions."""

from __future__ import annotations

import dspy
import pytest

from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import TryPrompts, optimize_aggregator
from tests.optimize.prompts.world import ARCHITECTURE, exact, make_world, rows


def test_every_prompt_is_tried_and_the_task_stays_below_it() -> None:
    world = make_world()
    signature = dspy.make_signature("question -> answer", "Answer in one word.")
    program = MixtureOfAgents(signature, ARCHITECTURE, pool=world.pool)
    optimizer = TryPrompts(["Be quick.", "Read CAREFULLY."])
    result = optimize_aggregator(program, optimizer, rows("train"), rows("val", 18), metric=exact)
    assert result.after.instructions == "Read CAREFULLY.\n\nAnswer in one word."
    tried = [(one.origin, one.score) for one in result.candidates]
    assert tried == [
        ("TryPrompts, prompt 2", 1.0),
        ("TryPrompts, prompt 0", 4 / 6),
        ("TryPrompts, prompt 1", 4 / 6),
    ]
    assert result.calls["tuning"]["aggregator"].made == 3 * 6
    assert result.calls_of("prompt_model").made == 0


def test_of_equal_prompts_the_incumbent_stays() -> None:
    world = make_world(learns=False)
    program = MixtureOfAgents("question -> answer", ARCHITECTURE, pool=world.pool)
    optimizer = TryPrompts(["Read CAREFULLY."])
    result = optimize_aggregator(program, optimizer, rows("train"), rows("val"), metric=exact)
    assert (result.diff, result.accepted) == ("", False)


@pytest.mark.parametrize("prompts", [[], "Read.", ["Read.", " "]])
def test_no_prompt_or_an_empty_one_is_refused(prompts: list[str]) -> None:
    with pytest.raises(StudyError, match="`prompts` must be a list of texts, none empty, but got"):
        TryPrompts(prompts)

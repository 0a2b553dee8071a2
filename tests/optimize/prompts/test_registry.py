"""Prompts of a search have names that never change, and each different one has one."""

from __future__ import annotations

import enum

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.prompts import Candidate, Prompt, PromptRegistry
from moa_dspy.optimize.prompts.prompt import prompt_diff
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE
from tests.optimize.prompts.world import make_world, mixture

TEXTS = {"paper": AGGREGATE_AND_SYNTHESIZE, "careful": "Read CAREFULLY.", "same": "Read CAREFULLY."}


def registry(n_slots: int = 2) -> PromptRegistry:
    return PromptRegistry.of(mixture(make_world()), TEXTS, n_slots)


def with_prompt(name: str | None) -> Architecture:
    return Architecture((("a", "b"),), "c", prompt=name)


def entry(found: PromptRegistry, text: str) -> Candidate:
    made = PromptRegistry.of(mixture(make_world()), {"it": text}, 0)
    ((_, given),) = made.entries()
    return Candidate(given.prompt, "COPRO", 0.5, "a + b > synthesize(c)")


def test_the_choices_are_declared_once() -> None:
    found = registry()
    before = found.names
    assert before == ("own", "paper", "careful", "same", "tuned-1", "tuned-2")
    found.add(entry(found, "Be quick."))
    assert found.names == before


def test_a_new_prompt_fills_a_slot_and_a_known_one_none() -> None:
    found = registry(n_slots=1)
    assert found.add(entry(found, "Read CAREFULLY.")) == "careful"
    assert found.add(Candidate(found.own, "COPRO")) == "own"
    assert found.has_room
    assert found.add(entry(found, "Be quick.")) == "tuned-1"
    assert not found.has_room
    assert found.add(entry(found, "Be quick.")) == "tuned-1"
    assert found.add(entry(found, "Be slow.")) is None


@pytest.mark.parametrize(
    ("name", "canonical_form"),
    [(None, None), ("paper", None), ("tuned-1", None), ("careful", "careful"), ("same", "careful")],
)
def test_equal_prompts_are_one_architecture_and_an_empty_slot_is_the_own(
    name: str | None, canonical_form: str | None
) -> None:
    assert registry().canonical(with_prompt(name)) == with_prompt(canonical_form)


def test_the_named_prompt_is_in_the_seat_and_the_program_names_it_no_more() -> None:
    world = make_world()
    student = Student.of(mixture(world), registry())
    measured = student.to_measure(with_prompt("careful")).mixture
    assert measured.architecture == with_prompt("careful")
    program = student.with_architecture(with_prompt("careful"))
    assert program.architecture == with_prompt(None)
    for made in (measured, program):
        assert made.aggregator.signature.instructions.startswith("Read CAREFULLY.")
    assert (
        Prompt.of(student.with_architecture(with_prompt(None)).aggregator).key == registry().own.key
    )


def test_an_unknown_prompt_is_an_error_and_never_the_own_in_disguise() -> None:
    program = mixture(make_world())
    with pytest.raises(StudyError, match=r"Unknown prompt 'brief' of .*: there are no prompts"):
        Student.of(program).to_measure(with_prompt("brief"))
    with pytest.raises(StudyError, match="'brief' is unknown; known ones are paper, careful, same"):
        Student.of(program, registry()).with_architecture(with_prompt("brief"))


@pytest.mark.parametrize("name", ["own", "tuned-1", "tuned-x"])
def test_names_of_the_registry_are_not_the_callers(name: str) -> None:
    with pytest.raises(StudyError, match=f"`prompts.texts`: '{name}' is taken"):
        PromptRegistry.of(mixture(make_world()), {name: "Read."}, 1)


def test_the_registry_as_plain_data_has_text_origin_and_difference() -> None:
    found = registry()
    found.add(entry(found, "Be quick."))
    names = {one["name"]: one for one in found.to_json()}
    assert list(names) == ["paper", "careful", "same", "tuned-1"]
    assert (names["careful"]["origin"], names["tuned-1"]["origin"]) == ("given", "COPRO")
    assert names["paper"]["diff"] == ""
    assert "+Be quick." in names["tuned-1"]["diff"]
    assert (names["tuned-1"]["architecture"], names["tuned-1"]["train_score"]) == (
        "a + b > synthesize(c)",
        0.5,
    )


class Colour(enum.Enum):
    RED = "red"


def test_a_typed_demo_is_shown_as_in_a_prompt() -> None:
    signature = dspy.Signature(
        {"question": (str, dspy.InputField()), "answer": (Colour, dspy.OutputField())}, "Answer."
    )
    module = dspy.Predict(signature)
    before = Prompt.of(module)
    module.demos = [dspy.Example(question="q", answer=Colour.RED)]
    assert '"answer": "red"' in prompt_diff(before, Prompt.of(module))

"""Seats are told apart by a mark in their signatures that no prompt shows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.layers import SEAT_MARK
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.program_file import save_program
from moa_dspy.signatures import with_references
from moa_dspy.testing import scripted_pool


class Task(dspy.Signature):
    """Sort the claim."""

    history: dspy.History = dspy.InputField()
    claim: str = dspy.InputField(desc="a sentence")
    kind: Literal["fact", "opinion"] = dspy.OutputField()
    share: float = dspy.OutputField(desc="of people who agree", ge=0)


INPUTS = {
    "history": dspy.History(messages=[{"claim": "Ice is hot.", "kind": "fact", "share": 0.0}]),
    "claim": "Snow is white.",
    "references": ["one", "two"],
}


def mixture(signature: Any, **options: Any) -> MixtureOfAgents:
    pool = scripted_pool(dict.fromkeys("abc", "x"))
    return MixtureOfAgents(signature, "a + b > a > synthesize(c)", pool=pool, **options)


@pytest.mark.parametrize("agent", [dspy.Predict, dspy.ChainOfThought])
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_no_adapter_shows_the_mark(adapter: Any, agent: Any) -> None:
    program = mixture(Task, module=agent)
    for depth, layer in enumerate(program.layers):
        signature = with_references(Task) if depth else Task
        (unmarked,) = agent(signature).predictors()
        for seat in layer.proposers:
            (predictor,) = seat.predictors()
            demos = [{"claim": "Grass is nice.", "kind": "opinion", "share": 0.9}]
            shown = adapter.format(predictor.signature, demos, dict(INPUTS))
            assert shown == adapter.format(unmarked.signature, demos, dict(INPUTS))
            assert SEAT_MARK not in str(shown)


def test_plain_chat_does_not_show_the_mark() -> None:
    program = mixture("question -> answer")
    inputs = {"question": "q", "references": ["r"]}
    shown = PlainChat().format(program.aggregator.signature, [], inputs)
    unmarked = with_references(dspy.ensure_signature("question -> answer"))
    assert shown == PlainChat().format(unmarked, [], inputs)


def test_no_two_seats_have_equal_signatures() -> None:
    signatures = [predictor.signature for predictor in mixture(Task).predictors()]
    for i, signature in enumerate(signatures):
        assert [signature.equals(other) for other in signatures] == [i == j for j in range(4)]


def test_the_same_seat_of_another_program_has_an_equal_signature() -> None:
    # A teacher of other agents is a teacher all the same.
    pool = scripted_pool(dict.fromkeys("defg", "x"))
    teacher = MixtureOfAgents(Task, "d + e > f > synthesize(g)", pool=pool)
    for predictor, other in zip(mixture(Task).predictors(), teacher.predictors(), strict=True):
        assert predictor.signature.equals(other.signature)


def test_the_mark_outlives_copies_new_instructions_and_saved_states(tmp_path: Path) -> None:
    program = mixture("question -> answer")
    path = tmp_path / "program.json"
    save_program(program, path)
    loaded = MixtureOfAgents.load(path, pool=program.pool)
    changed = copy.deepcopy(program)
    for seat in changed.predictors():
        new = seat.signature.with_instructions("New.").with_updated_fields("answer", prefix="A:")
        seat.signature = new
    restored = mixture("question -> answer")
    restored.load_state(changed.dump_state())
    for other in (program.deepcopy(), program.reset_copy(), loaded, changed, restored):
        for (name, predictor), another in zip(
            program.named_predictors(), other.predictors(), strict=True
        ):
            found = another.signature.fields["question"].json_schema_extra[SEAT_MARK]
            assert (
                found == predictor.signature.fields["question"].json_schema_extra[SEAT_MARK] == name
            )
    assert restored.aggregator.signature.instructions == "New."


def test_states_and_the_users_signature_know_nothing_of_the_mark() -> None:
    program = mixture(Task)
    assert SEAT_MARK not in str(program.dump_state())
    assert SEAT_MARK not in repr(Task)
    assert program.signature is Task
    first: Any = program.layers[0].proposers[0]
    assert first.signature.dump_state() == Task.dump_state()


def test_a_signature_without_inputs_is_left_as_it_is() -> None:
    assert SEAT_MARK not in repr(mixture("-> answer").layers[0].proposers[0].signature)

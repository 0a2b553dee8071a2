from __future__ import annotations

import copy
import pickle
from typing import Any

import cloudpickle
import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.signatures import ranker, separated, with_references
from moa_dspy.testing import scripted_pool
from tests.adapters.paper_messages import (
    ASKED,
    CASES,
    EARLIER,
    ONE,
    OWN,
    PROMPT,
    TURNS,
)

PAPER = PlainChat(layout="paper")


def signature(own: str | None = None, *, is_multi_turn: bool = False) -> Any:
    text = "question, history: dspy.History -> answer" if is_multi_turn else "question -> answer"
    return dspy.Signature(text, own)


@pytest.mark.parametrize("case", CASES)
def test_every_message_is_what_the_papers_program_sends(case: str) -> None:
    own, earlier, references, messages = CASES[case]
    asked: Any = signature(own, is_multi_turn=bool(earlier))
    inputs: dict[str, Any] = {"question": "France?"}
    if earlier:
        inputs["history"] = dspy.History(messages=earlier)
    if references:
        asked, inputs["references"] = with_references(asked), references
    assert PAPER.format(asked, [], inputs) == messages


def test_all_requests_of_a_mixture_are_the_papers() -> None:
    # Two layers of two, then the aggregator: the same prompt in the middle as at the end.
    pool = scripted_pool({"a": "A", "b": "B", "c": "C"})
    program = MixtureOfAgents(
        signature(OWN), "a + b > a + b > synthesize(c)", pool=pool, adapter=PAPER
    )
    assert program(question="France?").answer == "C"
    first = [{"role": "system", "content": OWN}, ASKED]
    later = [{"role": "system", "content": f"{OWN}\n\n{PROMPT}\n1. A\n2. B"}, ASKED]
    for name, expected in [("a", [first, later]), ("b", [first, later]), ("c", [later])]:
        assert [entry["messages"] for entry in pool.lm(name).history] == expected


@pytest.mark.parametrize("own", [None, "", OWN], ids=["default", "none", "own"])
def test_the_two_instructions_stay_apart_however_a_signature_is_copied(own: str | None) -> None:
    made = with_references(signature(own))
    expected = (own or "", PROMPT.partition("\n\n")[0])
    copies = {
        "made": made,
        "deepcopy": copy.deepcopy(made),
        "with_instructions": made.with_instructions(made.instructions),
        "load_state": made.load_state(made.dump_state()),
        "pickle": pickle.loads(cloudpickle.dumps(made)),
        "predictor": dspy.Predict(made).deepcopy().signature,
        "description": made.with_updated_fields("question", desc="new"),
    }
    assert {name: separated(found) for name, found in copies.items()} == dict.fromkeys(
        copies, expected
    )


@pytest.mark.parametrize(
    ("instructions", "own", "prompt"),
    [
        # An optimizer's text stands where the prompt stood.
        ("Merge them.", OWN, "Merge them."),
        # It kept the caller's own, or the prompt: the rest is the other part.
        (f"Merge them.\n\n{OWN}", OWN, "Merge them."),
        (f"{PROMPT.partition(chr(10))[0]}\n\nBe long.", "Be long.", PROMPT.partition("\n")[0]),
    ],
)
def test_new_instructions_are_the_prompt_but_for_what_they_kept(
    instructions: str, own: str, prompt: str
) -> None:
    new = with_references(signature(OWN)).with_instructions(instructions)
    assert separated(new) == (own, prompt)
    system = PAPER.format(new, [], {"question": "France?", "references": ["x"]})[0]["content"]
    assert system == f"{own}\n\n{prompt}\n\nResponses from models:\n1. x"


def test_new_instructions_of_the_first_layer_are_the_system_message() -> None:
    new = signature().with_instructions("Think twice.")
    assert PAPER.format(new, [], {"question": "France?"}) == [
        {"role": "system", "content": "Think twice."},
        ASKED,
    ]


@pytest.mark.parametrize(
    "text", ["question -> answer", "a, b -> c, d", "question, history: dspy.History -> answer"]
)
def test_dspys_default_instructions_are_nobodys_system_message(text: str) -> None:
    made: Any = dspy.Signature(text)
    assert made.instructions.startswith("Given the fields")
    assert separated(made) == ("", "")


def test_without_a_response_there_is_no_prompt_for_it() -> None:
    # The reference implementation's rule: an empty layer leaves the conversation as it was.
    made = with_references(signature(OWN))
    inputs = {"question": "France?", "references": []}
    assert PAPER.format(made, [], inputs) == [{"role": "system", "content": OWN}, ASKED]


def test_a_ranker_reads_the_references_where_an_aggregator_does() -> None:
    made: Any = ranker(signature(OWN))
    system, user = PAPER.format(made, [], {"question": "France?", "references": ["x", "y"]})
    heading = "\n\nResponses from models:\n1. x\n2. y"
    assert (system["content"], user) == (f"{made.instructions}{heading}", ASKED)


def test_demos_are_turns_before_the_conversation_without_what_they_read() -> None:
    demos = [{"question": "Spain?", "references": ["Madrid", "x"], "answer": "Madrid."}]
    made = with_references(signature(is_multi_turn=True))
    history = dspy.History(messages=EARLIER)
    inputs = {"question": "France?", "history": history, "references": ["Paris."]}
    assert PAPER.format(made, demos, inputs) == [
        {"role": "system", "content": ONE},
        {"role": "user", "content": "Spain?"},
        {"role": "assistant", "content": "Madrid."},
        *TURNS,
        ASKED,
    ]


def test_half_of_a_surrogate_pair_is_a_question_mark_here_too() -> None:
    made = with_references(signature())
    system = PAPER.format(made, [], {"question": "France?", "references": ["cut \ud83d"]})[0]
    assert system["content"].endswith("\n1. cut ?")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"Unknown `layout` 'x'; known ones are guarded, p"):
        PlainChat(layout="x")

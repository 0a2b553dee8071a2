from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, with_references
from moa_dspy.testing import scripted_pool

SIGNATURE: Any = dspy.Signature("question -> answer", "Name the capital.")


def messages(signature: Any, demos: list[dict[str, Any]] | None = None, **inputs: Any) -> Any:
    return PlainChat().format(signature, demos or [], inputs)


def test_the_question_comes_first_and_the_references_numbered_after_it() -> None:
    system, user = messages(
        with_references(SIGNATURE), question="France?", references=["Paris\nit is", "Rome"]
    )
    assert system == {
        "role": "system",
        "content": f"{AGGREGATE_AND_SYNTHESIZE}\n\nName the capital.",
    }
    assert user == {
        "role": "user",
        "content": 'France?\n\nResponses from models:\n1. "Paris\\nit is"\n2. "Rome"',
    }


def test_several_inputs_are_named_and_no_references_leave_no_heading() -> None:
    signature: Any = dspy.Signature("context, question -> answer", "Name the capital.")
    _, user = messages(signature, context="Europe", question="France?")
    assert user["content"] == "context: Europe\n\nquestion: France?"
    _, user = messages(with_references(SIGNATURE), question="France?", references=[])
    assert user["content"] == "France?"


def test_demos_are_turns_between_the_instructions_and_the_question() -> None:
    demos = [{"question": "Italy?", "answer": "Rome"}, {"question": "Spain?", "answer": "Madrid"}]
    found = messages(SIGNATURE, demos, question="France?")
    assert [(m["role"], m["content"]) for m in found[1:]] == [
        ("user", "Italy?"),
        ("assistant", "Rome"),
        ("user", "Spain?"),
        ("assistant", "Madrid"),
        ("user", "France?"),
    ]


def test_the_whole_reply_is_the_answer_stripped_and_never_asked_for_twice() -> None:
    assert PlainChat().parse(SIGNATURE, "\n [[ ## x ## ]] Paris.\n") == {
        "answer": "[[ ## x ## ]] Paris."
    }
    pool = scripted_pool({"a": "not in any format"})
    MixtureOfAgents(SIGNATURE, "a", pool=pool, adapter=PlainChat())(question="France?")
    assert pool.calls.ledger.spending.made == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("question -> answer, reason", "answer: <class 'str'>, reason: <class 'str'>"),
        ("question -> answer: int", "answer: <class 'int'>"),
    ],
)
def test_a_signature_without_exactly_one_text_output_is_refused(text: str, shown: str) -> None:
    with pytest.raises(ArchitectureError, match=f"exactly one text output, .* has {shown}; choose"):
        messages(dspy.ensure_signature(text), question="France?")

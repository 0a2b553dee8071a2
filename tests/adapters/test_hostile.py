from __future__ import annotations

import json
from collections.abc import Callable

import dspy
import pytest

from moa_dspy.adapters import ADAPTERS, guarded_references
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool
from tests.adapters.hostile import FAMILIES, FORGED, texts
from tests.adapters.layouts import LAYOUTS

EVERY = list(dict.fromkeys(text for family in FAMILIES for text in texts(family)))


def test_there_are_enough_hostile_texts() -> None:
    assert len(EVERY) >= 400
    assert max(map(len, EVERY)) >= 100_000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quoted_reference_alters_no_field_and_no_prompt(layout: str, family: str) -> None:
    faults = {text[:80]: LAYOUTS[layout].faults(text) for text in texts(family)}
    assert {text: fault for text, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    ("layout", "altered", "altered_fields"),
    [
        # Plain chat has one field, which holds all that is said: what is altered is the prompt.
        ("plain", 100, 0),
        ("chat", 60, 30),
        # A valid JSON reply can quote anything; see below for those that are not.
        ("json", 50, 5),
        ("xml", 60, 40),
    ],
)
def test_without_the_guard_many_do(layout: str, altered: int, altered_fields: int) -> None:
    faults = [LAYOUTS[layout].faults(text, is_guarded=False) for text in EVERY[::4]]
    assert sum(map(bool, faults)) >= altered
    in_fields = [
        any(fault in ("reasoning", "answer", "asked again") or "Error" in fault for fault in found)
        for found in faults
    ]
    assert sum(in_fields) >= altered_fields


def a_comma_too_many(quote: str) -> str:
    return json.dumps({"reasoning": f"They said: {quote} I do not.", "answer": "Paris"})[:-1] + ",}"


def prose_around(quote: str) -> str:
    return f"They said: {quote}\n" + json.dumps({"reasoning": "I do not.", "answer": "Paris"})


@pytest.mark.parametrize(
    ("reply", "forged_without"), [(a_comma_too_many, 1), (prose_around, 5)], ids=["comma", "prose"]
)
def test_json_that_must_be_repaired_gets_no_field_from_a_reference(
    reply: Callable[[str], str], forged_without: int
) -> None:
    adapter = dspy.JSONAdapter()
    signature = dspy.Signature("question -> reasoning, answer")
    payloads = FAMILIES["json"]
    quotes = [f"{payload}\n{other}" for payload in payloads for other in payloads]

    def forged(texts: list[str]) -> list[str]:
        answers = []
        for quote in texts:
            try:
                answers.append(adapter.parse(signature, reply(quote))["answer"])
            except dspy.utils.exceptions.AdapterParseError:
                continue  # a failed reply, which is shown as one
        return [answer for answer in answers if FORGED in answer]

    assert forged(guarded_references(quotes, adapter=adapter)) == []
    assert len(forged(quotes)) >= forged_without


REPLIES: dict[str, Callable[[str], str]] = {
    "json": lambda text: json.dumps({"answer": text}),
    "plain": lambda text: text,
}
"""Replies that make a hostile text a proposer's answer; chat and XML would not parse it so."""


@pytest.mark.parametrize("name", REPLIES)
def test_a_selected_response_and_the_stored_ones_are_the_original_text(name: str) -> None:
    for payloads in FAMILIES.values():
        text = payloads[2].strip()
        ranker = '{"best": "1"}' if name == "json" else "1"
        scripts = {"a": REPLIES[name](text), "b": REPLIES[name]("x"), "c": ranker}
        program = MixtureOfAgents(
            "question -> answer",
            "a + b > select(c)",
            pool=scripted_pool(scripts),
            adapter=ADAPTERS[name](),
        )
        prediction = program(question="Capital?")
        assert prediction.answer == text
        assert prediction.mixture.layers[0][0].text == text

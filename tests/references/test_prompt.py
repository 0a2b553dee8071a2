from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat, guarded_references
from moa_dspy.references import ReferenceLimits, built_tokens, fit
from moa_dspy.signatures import REFERENCES, with_references

SIGNATURE: Any = with_references(dspy.Signature("question -> answer", "Be brief."))
INPUTS = {"question": "France?", REFERENCES: ["Paris is it", "Rome"]}
AROUND = 32 + 2 * 8
"""Of a prompt with two messages, for the chat template."""


def words(text: str) -> int:
    return len(text.split())


def test_it_is_the_prompt_that_the_predictor_would_send() -> None:
    messages = PlainChat().format(SIGNATURE, [], INPUTS)
    expected = sum(words(message["content"]) for message in messages)
    measured = built_tokens(dspy.Predict(SIGNATURE), PlainChat(), INPUTS, words)
    assert measured == expected + AROUND
    chat = built_tokens(dspy.Predict(SIGNATURE), dspy.ChatAdapter(), INPUTS, words)
    assert chat > measured
    assert built_tokens(dspy.Predict(SIGNATURE), None, INPUTS, words) == chat
    with dspy.context(adapter=PlainChat()):
        assert built_tokens(dspy.Predict(SIGNATURE), None, INPUTS, words) == measured


def test_demos_and_what_a_module_adds_count() -> None:
    plain = built_tokens(dspy.Predict(SIGNATURE), None, INPUTS)
    taught = dspy.Predict(SIGNATURE)
    taught.demos = [{"question": "Italy?", REFERENCES: ["Rome"], "answer": "Rome"}]
    assert built_tokens(taught, None, INPUTS) > plain
    assert built_tokens(dspy.ChainOfThought(SIGNATURE), None, INPUTS) > plain
    assert built_tokens(dspy.ReAct(SIGNATURE, tools=[]), None, INPUTS) > plain


def test_an_image_has_a_price_of_its_own() -> None:
    signature = dspy.Signature("image: dspy.Image, question -> answer", "Look.")
    inputs = {"image": dspy.Image("data:image/png;base64," + "A" * 9999), "question": "What is it?"}
    measured = built_tokens(dspy.Predict(signature), PlainChat(), inputs, words)
    assert measured == 1600 + words("Look. What is it?") + AROUND


class Silent(dspy.Module):
    def forward(self, **inputs: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=str(inputs))


@pytest.mark.parametrize("module", [Silent(), lambda **inputs: inputs], ids=["module", "function"])
def test_without_a_predictor_it_is_the_inputs(module: Any) -> None:
    assert built_tokens(module, None, {"question": "one two", "n": 3}, words) == 3 + AROUND


def test_a_prompt_that_cannot_be_built_is_measured_by_its_inputs() -> None:
    # Two outputs are more than plain chat can send; the call itself says so.
    module = dspy.Predict("question -> answer, reason")
    assert built_tokens(module, PlainChat(), {"question": "one two"}, words) == 2 + 32 + 8


def test_measuring_is_no_call_to_those_who_watch_calls() -> None:
    class Watcher(dspy.utils.callback.BaseCallback):
        seen = 0

        def on_adapter_format_start(self, **_: Any) -> None:
            self.seen += 1

    watcher = Watcher()
    with dspy.context(callbacks=[watcher]):
        built_tokens(dspy.Predict(SIGNATURE), dspy.ChatAdapter(), INPUTS)
        assert watcher.seen == 0
        dspy.ChatAdapter().format(SIGNATURE, [], INPUTS)
    assert watcher.seen == 1


@pytest.mark.parametrize(
    "adapter", [PlainChat(), dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
)
def test_references_fit_a_window_with_all_that_an_adapter_adds_and_escapes(adapter: Any) -> None:
    texts = ['<b>"quoted" & [[ ## marked ## ]]</b>\n' * 200, "short"]
    module = dspy.Predict(SIGNATURE)

    def inputs(references: list[str]) -> dict[str, Any]:
        return {"question": "France?", REFERENCES: guarded_references(references, adapter=adapter)}

    def measure(references: list[str]) -> int:
        return built_tokens(module, adapter, inputs(references))

    read, cuts = fit(
        texts,
        agents=["a", "b"],
        limits=ReferenceLimits(),
        room=2000 - 300,
        measure=measure,
    )
    assert 1600 <= measure(read) <= 1700
    assert read[1] == "short"
    assert [(cut.reference, cut.agent) for cut in cuts] == [(1, "a")]

"""What of a reply is thought, and what is answer."""

from __future__ import annotations

import random
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.reply import ReplySplitter, split_reply, thinks_aloud
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool

HARMONY = (
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Paris"
)
WITH_THOUGHT = [
    "<think>\nhm\n</think>\n\nParis",
    "  <THINKING>hm</Thinking>Paris",
    "<think>hm</think>\n<think></think>\nParis",
    "hm\n</think>\n\nParis",
    "hm</think>Paris",
    "\ufeff<think>hm</think>Paris",
    "<reasoning>\nhm\n</reasoning>\nParis",
    "<scratchpad>hm</scratchpad>Paris",
    "<antThinking>hm</antThinking>Paris",
    "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Paris",
    "<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>\nParis",
    "hm\n</think>\n<|begin_of_box|>Paris",
    "[THINK]hm[/THINK]Paris",
    HARMONY,
    f"{HARMONY}<|return|>",
    "<|channel|>analysis<|message|>hm<|end|>Paris",
    "analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Paris",
]
WITHOUT_THOUGHT = [
    " Paris\n",
    "Write <think> first and </think> last.",
    "The </think> tag ends a thought.",
    "Close it with `</think>`.\nParis",
    "```\nx\n</think>\n```",
    "<thinker>Paris</thinker>",
    "Analysis of it: Paris",
    "x < y",
    "",
]


@pytest.mark.parametrize("text", WITH_THOUGHT)
def test_a_thought_is_told_from_the_answer(text: str) -> None:
    split = split_reply(text)
    assert (split.thought, split.answer) == ("hm", "Paris")


@pytest.mark.parametrize("text", WITHOUT_THOUGHT)
def test_a_text_that_mentions_a_tag_stays_as_it_is(text: str) -> None:
    split = split_reply(text)
    assert (split.thought, split.answer) == ("", text)


@pytest.mark.parametrize("text", ["<think>\nfirst I", "<|channel|>analysis<|message|>first I"])
def test_a_thought_that_was_cut_leaves_no_answer(text: str) -> None:
    assert (split_reply(text).thought, split_reply(text).answer) == ("first I", "")


def test_a_tag_that_is_a_field_of_the_request_is_no_thought() -> None:
    text = "<thinking>a</thinking>\n<answer>b</answer>"
    asked = "<thinking>\n{thinking}\n</thinking>"
    assert split_reply(text, request=asked).answer == text
    assert split_reply(text).answer == "<answer>b</answer>"


def test_a_rarer_tag_that_the_request_mentions_is_no_thought() -> None:
    text, asked = "<reasoning>a</reasoning>b", "Reply in <reasoning> tags first."
    assert split_reply(text, request=asked).answer == text
    assert split_reply(text.replace("reasoning", "think"), request=asked).answer == "b"


@pytest.mark.parametrize("is_opened", [False, None, True])
@pytest.mark.parametrize("text", [*WITH_THOUGHT, *WITHOUT_THOUGHT, "<think>only"])
def test_pieces_give_what_the_whole_gives(text: str, is_opened: bool | None) -> None:
    whole, draw = split_reply(text), random.Random(text)
    if whole.is_unopened and not (is_opened or (is_opened is None and thinks_aloud(text))):
        return  # Nothing says that it is a thought until its end has come.
    for _ in range(50):
        splitter, rest, got = ReplySplitter(is_opened=is_opened), text, ["", ""]
        while rest:
            size = draw.randint(1, 6)
            new, rest = splitter.feed(rest[:size]), rest[size:]
            got = [before + after for before, after in zip(got, new, strict=True)]
        got = [before + after for before, after in zip(got, splitter.flush(), strict=True)]
        assert got == [whole.thought, whole.answer]


FORMATS: dict[str, tuple[Any, str]] = {
    "plain": (PlainChat(), "{}"),
    "chat": (dspy.ChatAdapter(), "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"),
    "json": (dspy.JSONAdapter(), '{{"answer": "{}"}}'),
    "xml": (dspy.XMLAdapter(use_json_adapter_fallback=False), "<answer>{}</answer>"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("before", ["<think>\n{}\n</think>\n\n", "{}\n</think>\n\n"])
def test_no_adapter_reads_the_thought(name: str, before: str) -> None:
    adapter, layout = FORMATS[name]
    # The thought rehearses the format with a wrong answer.
    text = before.format(layout.format("Lyon") + " no") + layout.format("Paris")
    pool = scripted_pool({"a": text})
    answer = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=adapter)(question="q")
    assert answer.answer == "Paris"
    assert answer.mixture.calls == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_thought_without_an_answer_is_a_failure_in_one_line(name: str) -> None:
    adapter, layout = FORMATS[name]
    pool = scripted_pool({"a": f"<think>\n{layout.format('Lyon')}"})
    program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=adapter)
    with pytest.raises(LayerFailedError, match="a: The model answered with reasoning only, and no"):
        program(question="q")


def test_thoughts_do_not_vote() -> None:
    scripts = {"a": "<think>one</think>Paris", "b": "<think>two</think>Paris", "c": "Lyon"}
    program = MixtureOfAgents(
        "question -> answer",
        "c + a + b > vote(c)",
        pool=scripted_pool(scripts),
        adapter=PlainChat(),
    )
    assert program(question="q").answer == "Paris"

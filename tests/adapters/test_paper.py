from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
from typing import Any

import cloudpickle
import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
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
from tests.servers.chat import Reply, serving

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


VERBATIM = PlainChat(layout="paper", verbatim=True)


@pytest.mark.parametrize("is_async", [False, True])
def test_verbatim_references_keep_their_blanks_and_an_empty_one_its_number(is_async: bool) -> None:
    # The reference implementation drops a reference only where a request failed.
    said: dict[str, Any] = {
        "a": "\n Paris.\n\n",
        "b": "",
        "c": "end<|im_end|>",
        "d": OSError("down"),
        "e": "E\n",
    }
    pool = scripted_pool(said)
    program = MixtureOfAgents(
        signature(), "a + b + c + d > synthesize(e)", pool=pool, adapter=VERBATIM
    )
    made = asyncio.run(program.acall(question="?")) if is_async else program(question="?")
    assert pool.lm("e").history[-1]["messages"] == [
        {"role": "system", "content": f"{PROMPT}\n1. \n Paris.\n\n\n2. \n3. end<|im_end|>"},
        {"role": "user", "content": "?"},
    ]
    assert made.answer == "E\n"
    (layer,) = made.mixture.layers
    assert [(r.text, r.has_answer) for r in layer] == [
        ("\n Paris.\n\n", True),
        ("", True),
        ("end<|im_end|>", True),
        ("", False),
    ]


def test_without_verbatim_blanks_go_and_an_empty_reply_is_left_out() -> None:
    pool = scripted_pool({"a": "\n Paris.\n\n", "b": "", "c": "C\n"})
    program = MixtureOfAgents(signature(), "a + b > synthesize(c)", pool=pool, adapter=PAPER)
    assert program(question="?").answer == "C"
    system = pool.lm("c").history[-1]["messages"][0]["content"]
    assert system == f"{PROMPT}\n1. Paris."


@pytest.mark.parametrize("architecture", ["b", "a > synthesize(b)"])
def test_a_final_answer_that_is_empty_is_a_failure_all_the_same(architecture: str) -> None:
    pool = scripted_pool({"a": "A", "b": ""})
    program = MixtureOfAgents(signature(), architecture, pool=pool, adapter=VERBATIM)
    with pytest.raises(LayerFailedError, match=r"b: The model answered with an empty text\."):
        program(question="?")


def test_a_refusal_is_no_empty_reference() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    refused = Reply(body=json.dumps({"choices": [choice]}).encode())
    with serving(lambda asked: refused if asked["model"] == "a" else Reply("B")) as server:
        pool = Pool([Agent(name=n, model=f"openai/{n}", api_base=server.url) for n in ("a", "b")])
        program = MixtureOfAgents(signature(), "a + b > vote", pool=pool, adapter=VERBATIM)
        made = program(question="?")
    assert made.answer == "B"
    assert made.mixture.failures[0].failure == "The model refused: I will not."


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("client", ["auto", "litellm"])
@pytest.mark.parametrize(("temperature", "sent"), [(0.0, b"0"), (0.7, b"0.7"), (1.0, b"1.0")])
def test_temperature_0_goes_out_as_the_papers_program_writes_it(
    temperature: float,
    sent: bytes,
    client: str,
    is_async: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOA_TEST_KEY", "sk-test-0123456789")
    with serving(Reply("A")) as server:
        agent = Agent(
            name="a",
            model="openai/a",
            api_base=server.url,
            api_key_env="MOA_TEST_KEY",
            client=client,
            temperature=temperature,
        )
        lm = Pool([agent]).lm("a")
        asyncio.run(lm.acall("?")) if is_async else lm("?")
        (raw,) = server.raw
    assert re.search(rb'"temperature": ?([^,}]+)', raw)[1] == sent  # type: ignore[index]

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Any

import dspy
import pytest

import moa_dspy
from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import ArchitectureError
from moa_dspy.pool import Pool
from moa_dspy.presets import PAPER_AGENTS
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE
from moa_dspy.testing import scripted_pool
from tests.adapters.paper_messages import PROMPT
from tests.servers.chat import Reply, serving

SIX = "wizardlm-2-8x22b + qwen1.5-110b + qwen1.5-72b + llama-3-70b + mixtral-8x22b + dbrx"
"""The paper's six, in its order (section 3.1)."""


@pytest.mark.parametrize(
    ("preset", "architecture", "calls"),
    [
        (moa_dspy.moa, f"{SIX} > {SIX} > synthesize(qwen1.5-110b)", 13),
        (moa_dspy.moa_lite, f"{SIX} > synthesize(qwen1.5-72b)", 7),
        (moa_dspy.self_moa, "wizardlm-2-8x22b*6 > synthesize(qwen1.5-110b)", 7),
    ],
)
def test_the_papers_mixtures_have_the_papers_seats(
    preset: Any, architecture: str, calls: int
) -> None:
    # 13 and 7 forward passes: tables 8 and 10 of arXiv:2502.00674.
    program = preset()
    assert (str(program.architecture), program.architecture.calls) == (architecture, calls)
    assert program.adapter.layout == "paper"


def test_the_papers_agents_are_asked_as_its_alpaca_eval_entry_did() -> None:
    assert {(agent.temperature, agent.max_tokens) for agent in PAPER_AGENTS} == {(0.7, 2048)}
    assert [agent.name for agent in PAPER_AGENTS] == list(Pool(PAPER_AGENTS))


def test_a_pool_of_ones_own_takes_the_papers_place() -> None:
    pool = scripted_pool({"a": "1", "b": "2", "c": lambda prompt: prompt})
    program = moa_dspy.moa_lite(pool=pool, proposers=["a", "b"], aggregator="c")
    assert str(program.architecture) == "a + b > synthesize(c)"
    assert program(question="q").answer == "q"  # in the paper's layout no reference is here
    guarded = moa_dspy.self_moa(pool=pool, agent="a", samples=2, adapter=PlainChat())
    assert str(guarded.architecture) == "a*2 > synthesize(a)"
    assert guarded.adapter.layout == "guarded"
    sequence = moa_dspy.self_moa_seq(pool=pool, agent="a", aggregator="c", samples=4, window=2)
    assert sequence(question="q").mixture.calls == 4 + 3


@pytest.mark.parametrize("is_async", [False, True])
def test_every_agents_settings_and_the_papers_messages_reach_the_wire(is_async: bool) -> None:
    settings = {"a": (0.3, 11), "b": (0.9, 22), "c": (0.0, 33)}
    with serving(lambda body: Reply(f"I am {body['model']}.")) as server:
        pool = Pool(
            Agent(name=n, model=f"openai/{n}", api_base=server.url, temperature=t, max_tokens=m)
            for n, (t, m) in settings.items()
        )
        program = moa_dspy.moa(pool=pool, proposers=["a", "b"], aggregator="c")
        call = {"question": "Who are you?"}
        found = asyncio.run(program.acall(**call)) if is_async else program(**call)
    assert found.answer == "I am c."
    sent = [(b["model"], b["temperature"], b["max_tokens"]) for b in server.bodies]
    assert sorted(sent) == sorted((n, *settings[n]) for n in ["a", "b", "a", "b", "c"])
    user = {"role": "user", "content": "Who are you?"}
    read = f"{AGGREGATE_AND_SYNTHESIZE}\n\nResponses from models:\n1. I am a.\n2. I am b."
    system = {"role": "system", "content": read}
    assert [body["messages"] for body in server.bodies] == [[user]] * 2 + [[system, user]] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_references_stand_in_the_order_of_the_proposers_in_every_layer(is_async: bool) -> None:
    with serving(lambda body: Reply(f"I am {body['model']}.")) as server:
        pool = Pool(Agent(name=n, model=f"openai/{n}", api_base=server.url) for n in "zamk")
        program = moa_dspy.moa(pool=pool, proposers=["z", "a", "m"], aggregator="k")
        if is_async:
            asyncio.run(program.acall(question="q"))
        else:
            program(question="q")
    read = [body["messages"][0]["content"] for body in server.bodies[3:]]
    # The second layer's three, then the aggregator.
    assert len(read) == 4
    assert {text.partition(":\n")[2] for text in read} == {"1. I am z.\n2. I am a.\n3. I am m."}


ORDERS = list(permutations("zam"))


@pytest.mark.parametrize("order", ORDERS, ids="".join)
@pytest.mark.parametrize("own", [None, "Be brief. "])
@pytest.mark.parametrize("is_multi_turn", [False, True])
def test_every_request_of_a_preset_is_the_papers_in_any_order(
    order: tuple[str, ...], own: str | None, is_multi_turn: bool
) -> None:
    # The rule stands in `paper_messages`: what every seat after the first layer reads, the turns
    # as they were, blanks at their ends included, and a temperature of 0 goes out as 0.
    asked: Any = "question, history: dspy.History -> answer" if is_multi_turn else "q -> answer"
    turns = [{"question": "Italy? ", "answer": " Rome.\n"}] if is_multi_turn else []
    with serving(lambda body: Reply(f"I am {body['model']}.")) as server:
        pool = Pool(
            Agent(name=n, model=f"openai/{n}", api_base=server.url, temperature=0) for n in "zamk"
        )
        program = moa_dspy.moa(
            dspy.Signature(asked, own), pool=pool, proposers=order, aggregator="k"
        )
        call = {"history": dspy.History(messages=turns)} if is_multi_turn else {}
        program(**{"question" if is_multi_turn else "q": "France? "}, **call)
    talk = [
        message
        for turn in turns
        for message in (
            {"role": "user", "content": turn["question"]},
            {"role": "assistant", "content": turn["answer"]},
        )
    ] + [{"role": "user", "content": "France? "}]
    items = "".join(f"\n{number}. I am {name}." for number, name in enumerate(order, start=1))
    system = f"{PROMPT}{items}" if own is None else f"{own}\n\n{PROMPT}{items}"
    first = talk if own is None else [{"role": "system", "content": own}, *talk]
    later = [{"role": "system", "content": system}, *talk]
    assert [body["messages"] for body in server.bodies] == [first] * 3 + [later] * 4
    assert [body["temperature"] for body in server.bodies] == [0] * 7
    assert server.bodies[-1]["model"] == "k"


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        (moa_dspy.moa, {}, "`aggregator` must be given with a pool of your own"),
        (moa_dspy.moa_lite, {}, "`aggregator` must be given with a pool of your own"),
        (moa_dspy.self_moa, {}, "`agent` must be given with a pool of your own"),
        (moa_dspy.self_moa_seq, {}, "`agent` must be given with a pool of your own"),
        (moa_dspy.self_moa, {"agent": "a", "samples": 0}, "`samples` must be at least 1"),
    ],
)
def test_what_a_preset_cannot_know_must_be_said(
    preset: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        preset(pool=scripted_pool({"a": "x"}), **options)

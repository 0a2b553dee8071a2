"""A mixture as a language model of DSPy: programs, usage, cost, history, samples and streams."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.serve import MixtureLM
from moa_dspy.testing import scripted_pool
from tests.servers.chat import Reply, serving

MIXTURE = "a + b > synthesize(c)"


def fields(**values: str) -> str:
    return "\n".join(f"[[ ## {k} ## ]]\n{v}\n" for k, v in values.items()) + "[[ ## completed ## ]]"


def noted(prompts: list[str]) -> Callable[[str], str]:
    """Return a script that notes what it is asked."""

    def reply(prompt: str) -> str:
        prompts.append(prompt)
        return "done"

    return reply


def test_an_unchanged_program_runs_on_a_mixture() -> None:
    pool = scripted_pool({"a": fields(answer="no"), "b": "??", "c": fields(answer="yes")})
    with dspy.context(lm=MixtureLM(MIXTURE, pool=pool)):
        assert dspy.Predict("question -> answer")(question="Is it?").answer == "yes"


def test_usage_is_the_sum_and_cost_the_pools() -> None:
    pool = scripted_pool(
        {"a": "one two", "b": "three", "c": "the answer now"},
        usd_per_million_tokens={"a": 1.0, "b": 2.0, "c": 10.0},
    )
    lm = MixtureLM(MIXTURE, pool=pool, name="tuned")
    with dspy.context(lm=lm), dspy.track_usage() as tracker:
        assert lm("hello you") == ["the answer now"]
    # a and b read 2 words and say 2 and 1; c reads 2, the heading's 3, and 1. "one two" 2. "three"
    read = 2 + 3 + len(["1.", '"one', 'two"', "2.", '"three"'])
    usage = {"prompt_tokens": 2 + 2 + read, "completion_tokens": 2 + 1 + 3}
    (entry,) = lm.history
    assert {k: entry["usage"][k] for k in usage} == usage
    assert entry["cost"] == pytest.approx((4 * 1.0 + 3 * 2.0 + (read + 3) * 10.0) / 1e6)
    assert entry["model"] == "moa/tuned"
    assert [(r["seat"], r["agent"], r["text"]) for r in entry["moa"][0]["responses"]] == [
        ("layer 1", "a", "one two"),
        ("layer 1", "b", "three"),
        ("last", "c", "the answer now"),
    ]
    # The mixture's own calls are not counted a second time.
    assert list(tracker.get_total_tokens()) == ["moa/tuned"]
    assert [len(pool.lm(name).history) for name in "abc"] == [1, 1, 1]


def test_a_price_that_is_unknown_makes_the_cost_unknown() -> None:
    agents = [
        Agent(name="a", model="x/a"),
        Agent(
            name="b",
            model="x/b",
            usd_per_million_prompt_tokens=1.0,
            usd_per_million_completion_tokens=1.0,
        ),
    ]
    lms = {name: scripted_pool({name: "hi"}).lm(name) for name in "ab"}
    lm = MixtureLM("a + b > vote", pool=Pool(agents, lms=lms))
    lm("hello")
    assert lm.history[-1]["cost"] is None


def test_references_stand_below_the_last_message_quoted() -> None:
    prompts: list[str] = []
    pool = scripted_pool({"a": 'one\n"two" <|im_end|>', "c": noted(prompts)}, reads_all=True)
    lm = MixtureLM("a > synthesize(c)", pool=pool)
    turns = (
        lm15.Message.user("first"),
        lm15.Message.assistant("reply"),
        lm15.Message.user("second"),
    )
    system = "Be brief."
    lm(lm15.Request(model=lm.model, messages=turns[:1], system=system))
    lm(lm15.Request(model=lm.model, messages=turns, system=system))
    first, second = prompts
    shown = 'Responses from models:\n1. "one\\n\\"two\\" \\u003c|im_end|>"'
    assert second.endswith(f"Be brief.\n\nfirst\n\nreply\n\nsecond\n\n{shown}")
    # What stands before the references is what stood there in the turn before.
    assert second.startswith(first.removesuffix(shown))


def test_settings_hold_for_who_answers_and_tools_for_all() -> None:
    with serving([Reply("draft"), Reply("final")]) as server:
        pool = Pool([_agent("a", server.url, 0.5), _agent("c", server.url, 0.25)])
        tool = lm15.FunctionTool(name="look", parameters={"type": "object", "properties": {}})
        request = lm15.Request(
            model="moa/mixture",
            messages=(lm15.Message.user("hi"),),
            tools=(tool,),
            config=lm15.Config(temperature=1.5, max_tokens=5, stop=("END",)),
        )
        MixtureLM("a > synthesize(c)", pool=pool)(request)
    proposer, aggregator = server.bodies
    assert (proposer["temperature"], proposer["max_tokens"], "stop" in proposer) == (
        0.5,
        100,
        False,
    )
    assert (aggregator["temperature"], aggregator["max_tokens"]) == (1.5, 5)
    assert aggregator["stop"] == ["END"]
    assert [b["tools"][0]["function"]["name"] for b in server.bodies] == ["look", "look"]


def _agent(name: str, url: str, temperature: float = 0.5) -> Agent:
    return Agent(
        name=name,
        model=f"openai/{name}",
        api_base=url,
        api_key_env="TEST_KEY",
        max_tokens=100,
        temperature=temperature,
    )


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-test-secret")


def test_a_tool_call_is_an_answer_and_a_proposal() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    body = {
        "id": "1",
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    with serving(Reply(body=json.dumps(body).encode())) as server:
        pool = Pool([_agent("a", server.url), _agent("c", server.url)])
        tool = lm15.FunctionTool(name="look", parameters={"type": "object", "properties": {}})
        user = lm15.Message.user("hi")
        request = lm15.Request(model="moa/mixture", messages=(user,), tools=(tool,))
        made = MixtureLM("a > synthesize(c)", pool=pool)(request)
    assert [(tool_call.name, tool_call.input) for tool_call in made.tool_calls] == [
        ("look", {"at": 1})
    ]
    assert made.finish_reason == "tool_call"
    assert "call of look" in server.bodies[1]["messages"][-1]["content"]


def test_rollouts_and_n_draw_other_samples() -> None:
    counter = iter(range(100))
    pool = scripted_pool({"a": lambda _: f"reply {next(counter)}"}, temperature=0.7)
    lm = MixtureLM("a + a > vote", pool=pool)
    assert lm("hi") == lm("hi")  # stored
    texts = lm("hi", n=3)
    assert len({*texts, *lm("hi", rollout_id=7)}) == 4
    assert lm("hi", rollout_id=7) == lm("hi", rollout_id=7)


def test_react_and_bootstrapping_run_on_a_mixture() -> None:
    def agent(prompt: str) -> str:
        if "next_thought" in prompt:
            name = "finish" if "Observation" in prompt or "observation_0" in prompt else "add"
            args = "{}" if name == "finish" else '{"x": 2, "y": 3}'
            return fields(next_thought="t", next_tool_name=name, next_tool_args=args)
        return fields(reasoning="sum", answer="5" if "5" in prompt else "4")

    def add(x: int, y: int) -> int:
        """Add two numbers."""
        return x + y

    pool = scripted_pool({"a": agent, "c": agent})
    with dspy.context(lm=MixtureLM("a > synthesize(c)", pool=pool)):
        assert dspy.ReAct("question -> answer", tools=[add])(question="2 + 3?").answer == "5"
        examples = [dspy.Example(question="5?", answer="5").with_inputs("question")]
        boot = dspy.BootstrapFewShot(metric=lambda e, p, trace=None: e.answer == p.answer)
        taught = boot.compile(dspy.Predict("question -> answer"), trainset=examples)
    assert [dict(demo)["answer"] for demo in taught.demos] == ["5"]


def test_the_aggregators_words_arrive_while_it_writes() -> None:
    last = threading.Event()
    replies = [Reply("draft"), Reply("Paris it is", split=str.split, wait=last)]
    with serving(replies) as server:
        pool = Pool([_agent("a", server.url), _agent("c", server.url)])
        program = dspy.Predict("question -> answer")
        lm = MixtureLM("a > synthesize(c)", pool=pool)

        async def words() -> list[str]:
            found = []
            with dspy.context(lm=lm, adapter=PlainChat()):
                stream = dspy.streamify(program, is_async_program=True)
                async for item in stream(question="Where?"):
                    if isinstance(item, dspy.Prediction):
                        found.append(f"whole: {item.answer}")
                    elif item.choices[0].delta.content:
                        found.append(item.choices[0].delta.content)
                        last.set()  # the server waits for this before it sends the last word
            return found

        found = asyncio.run(words())
    assert found[0].startswith("Paris")
    assert found[-1] == "whole: Parisitis"
    assert len(found) >= 3


def test_threads_stream_too() -> None:
    pool = scripted_pool({"a": "x", "c": fields(answer="one two three")})
    with dspy.context(lm=MixtureLM("a > synthesize(c)", pool=pool)):
        listener = dspy.streaming.StreamListener("answer")
        stream = dspy.streamify(
            dspy.Predict("question -> answer"), stream_listeners=[listener], async_streaming=False
        )
        chunks = [item.chunk for item in stream(question="?") if hasattr(item, "chunk")]
    assert "".join(chunks) == "one two three"
    assert len(chunks) > 2


def test_a_mixture_that_fails_is_an_error_of_its_lm() -> None:
    pool = scripted_pool({"a": Exception("down"), "b": Exception("down")})
    lm = MixtureLM("a > synthesize(b)", pool=pool)
    with pytest.raises(dspy.LMError, match="0 of 1 agents answered"):
        lm("hi")


def test_one_agent_of_several_is_enough_and_is_told() -> None:
    pool = scripted_pool({"a": "yes", "b": Exception("down"), "c": "yes"})
    lm = MixtureLM(MIXTURE, pool=pool)
    lm("hi")
    facts = lm.history[-1]["moa"][0]
    assert (facts["n_asked"], facts["n_answered"]) == (2, 1)


def test_a_saved_program_is_loaded_with_what_it_was_taught(tmp_path: Path) -> None:
    prompts: list[str] = []
    pool = scripted_pool({"a": "draft", "c": noted(prompts)}, reads_all=True)
    program = MixtureOfAgents("question -> answer", "a > synthesize(c)", pool=pool)
    signature = program.aggregator.signature
    program.aggregator.signature = signature.with_instructions("Take the best.")
    program.aggregator.demos = [dspy.Example(question="1 + 1?", answer="2")]
    program.save(tmp_path / "best.json")
    lm = MixtureLM.load(tmp_path / "best.json", pool=pool)
    assert lm.model == "moa/best"
    assert lm("2 + 2?") == ["done"]
    assert prompts[0].startswith("Take the best.\n\n1 + 1?\n\n2\n\n2 + 2?\n\nResponses")


def test_what_cannot_chat_is_refused_at_once() -> None:
    pool = scripted_pool({"a": "1"})
    typed = MixtureOfAgents("question -> answer: int", "a", pool=pool)
    with pytest.raises(ArchitectureError, match="must have one text output"):
        MixtureLM(typed)
    with pytest.raises(PoolError, match="Unknown agent 'z'"):
        MixtureLM("a + z > vote", pool=pool)


def test_copies_share_the_pool_and_a_program_is_not_saved_with_it(tmp_path: Path) -> None:
    pool = scripted_pool({"a": "hi"})
    lm = MixtureLM("a", pool=pool)
    copied = copy.deepcopy(lm)
    assert copied.mixture.pool is pool
    assert lm.copy(temperature=0.3)("x") == ["hi"]
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    with pytest.raises(ArchitectureError, match="without its LM"):
        program.save(tmp_path / "p.json")


def test_selection_returns_a_proposal_verbatim() -> None:
    pool = scripted_pool({"a": "wrong", "b": "right", "c": "[[2]]"})
    assert MixtureLM("a + b > select(c)", pool=pool)("which?") == ["right"]
    assert MixtureLM("a + b + b > vote", pool=pool)("which?") == ["right"]


def test_fusing_and_knockouts_chat_too() -> None:
    prompts: list[str] = []
    pool = scripted_pool(
        {"a": "one", "b": "two", "c": noted(prompts), "d": "they differ", "e": "[[2]]"},
        reads_all=True,
    )
    assert MixtureLM("a + b > fuse(c; analyst=d)", pool=pool)("which?") == ["done"]
    shown = '1. "one"\n2. "two"\n3. "Analysis of the responses above:\\nthey differ"'
    assert prompts[0].endswith(f"which?\n\nResponses from models:\n{shown}")
    # A judge that always names the second decides nothing: the one that is read first stays.
    assert MixtureLM("a + b > knockout(e)", pool=pool)("which?") == ["one"]


def test_the_lm_needs_no_server() -> None:
    code = (
        "import sys, moa_dspy.serve; "
        "print({'fastapi', 'uvicorn', 'prometheus_client', 'litellm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

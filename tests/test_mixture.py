from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest
from dspy import lm15

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Budget, Calls, Ledger
from moa_dspy.errors import ArchitectureError, BudgetReachedError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer, Response
from moa_dspy.signatures import AGGREGATION_PROMPTS
from moa_dspy.testing import scripted_pool

ECHO = {name: (lambda prompt, name=name: f"{name}<{prompt}>") for name in "abcd"}
"""Each agent says who it is and what it read, so the data flow can be seen in the answer."""


def mixture(pool: Pool, architecture: str, **options: Any) -> MixtureOfAgents:
    options.setdefault("adapter", PlainChat())
    return MixtureOfAgents("question -> answer", architecture, pool=pool, **options)


def ask(program: MixtureOfAgents, *, is_async: bool = False, question: str = "q") -> Answer:
    if is_async:
        answer = asyncio.run(program.acall(question=question)).mixture
    else:
        answer = program(question=question).mixture
    assert isinstance(answer, Answer)
    return answer


def numbered(*lines: str) -> str:
    """What a reader of references sees below the question."""
    rows = [f'{n}. "{line}"' for n, line in enumerate(lines, start=1)]
    return "\n".join(["q\n\nResponses from models:", *rows])


def test_a_single_agent_answers_alone() -> None:
    answer = ask(mixture(scripted_pool(ECHO), "a"))
    assert answer.final.text == "a<q>"
    assert (answer.layers, answer.responses, answer.calls) == ((), (answer.final,), 1)


def test_every_layer_reads_the_one_before_in_the_architectures_order() -> None:
    pool = scripted_pool({"a": "1", "b": "2", "c": lambda p: f"c:{len(p)}", "d": lambda p: p})
    answer = ask(mixture(pool, "b + a > c > synthesize(d)"))
    first = numbered("2", "1")  # b, then a: as they sit
    assert [[r.text for r in layer] for layer in answer.layers] == [["2", "1"], [f"c:{len(first)}"]]
    assert answer.final.text == numbered(f"c:{len(first)}")
    assert answer.calls == pool.calls.ledger.spending.made == 4


def test_the_last_step_reads_in_the_order_that_the_architecture_gives() -> None:
    pool = scripted_pool({"a": "1", "b": "2", "c": "3", "d": lambda p: p})
    answer = ask(mixture(pool, "a + b + c > synthesize(d; order=c)"))
    assert answer.final.text == numbered("3", "1", "2")
    assert [response.agent for response in answer.layers[-1]] == ["a", "b", "c"]


def test_without_an_order_every_step_reads_as_the_agents_sit() -> None:
    pool = scripted_pool({"z": "1", "a": "2", "m": lambda p: p})
    second, last = numbered("1", "2"), "q\n\nResponses from models:"
    answer = ask(mixture(pool, "z + a > m + z > synthesize(m)"))
    assert answer.layers[1][0].text == second
    assert answer.final.text.startswith(f'{last}\n1. "q\\n\\nResponses from models')
    assert answer.final.text.endswith('\n2. "1"')
    # A tie goes to the first seat.
    assert ask(mixture(pool, "a + z > vote")).final.text == "2"
    assert ask(mixture(pool, "z + a > vote")).final.text == "1"


def test_the_order_decides_the_ties_in_which_the_tie_breaker_has_no_part() -> None:
    pool = scripted_pool({"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"})
    assert ask(mixture(pool, "a + b + c + d + e > vote(e)")).final.text == "x"
    assert ask(mixture(pool, "a + b + c + d + e > vote(e; order=d)")).final.text == "y"


def test_another_prompt_is_another_computation() -> None:
    def nodes(architecture: str) -> list[str]:
        plan = mixture(scripted_pool(ECHO), architecture).plan({"question": "q"})
        questions = next(plan)
        found = plan.send([Response(q.agent, values={"answer": "x"}, text="x") for q in questions])
        plan.close()
        return [question.node for question in (*questions, *found)]

    plain, named = nodes("a > synthesize(b)"), nodes("a > synthesize(b; prompt=own_first)")
    assert plain[0] == named[0]
    assert plain[1] != named[1]


def test_a_prompt_of_the_library_is_used_by_its_name_and_another_is_refused() -> None:
    pool = scripted_pool(ECHO)
    named = mixture(pool, "a > synthesize(b; prompt=own_first)")
    assert named.aggregator.signature.instructions.startswith(AGGREGATION_PROMPTS["own_first"])
    with pytest.raises(ArchitectureError, match="Unknown prompt 'mine'; known ones are paper,"):
        mixture(pool, "a > synthesize(b; prompt=mine)")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_lm_in_the_call_replaces_no_agent(is_async: bool) -> None:
    other = scripted_pool({"z": "other"})
    pool = scripted_pool({"a": "1", "b": "2", "c": "3"}, temperature=0.7)
    program = mixture(pool, "a + b > synthesize(c)")
    lm = other.lm("z")
    if is_async:
        answer = asyncio.run(program.acall(question="q", lm=lm)).mixture
    else:
        answer = program(question="q", lm=lm).mixture
    assert [r.text for r in answer.responses] == ["1", "2", "3"]
    assert (pool.calls.ledger.spending.made, other.calls.ledger.spending.made) == (3, 0)
    again = lm.copy(rollout_id=7)
    assert answer.calls == program(question="q", lm=again).mixture.calls
    # Only its rollout counts: every sampled agent is asked anew.
    assert pool.calls.ledger.spending.made == 6
    with pytest.raises(ArchitectureError, match="`signature` cannot be given to a mixture's call"):
        program(question="q", signature="a -> b")


def test_a_signature_without_an_output_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"must have an output, .* but has only question"):
        MixtureOfAgents("question ->", "a + b > vote(a)", pool=scripted_pool(ECHO))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_seconds": float("inf")}, "must be positive, or None for no deadline.* inf"),
        ({"deadline_seconds": 1e10}, "must be positive, or None for no deadline"),
        ({"stop_early": "no"}, "`stop_early` must be true or false, but got 'no'"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        mixture(scripted_pool(ECHO), "a + b > vote(a)", **options)


@pytest.mark.parametrize(
    ("architecture", "final", "calls"),
    [
        ("a", "a<q>", 1),
        ("a + b > vote(b)", "b<q>", 1),  # b alone decides: it wins the only tie
        ("a + b + c > vote(b)", "b<q>", 3),
        ("a + b > select", "a<q>", 2),
        ("a + b > synthesize(c)", f"c<{numbered('a<q>', 'b<q>')}>", 3),
    ],
)
def test_sync_and_async_give_the_same_answer_for_the_same_calls(
    architecture: str, final: str, calls: int
) -> None:
    found = []
    for is_async in (False, True):
        pool = scripted_pool(ECHO)
        answer = ask(mixture(pool, architecture), is_async=is_async)
        found.append([(r.agent, r.sample, r.text) for r in answer.responses])
        # The tag that an agent opens around its prompt is quoted for who reads it.
        assert answer.final.text.replace("\\u003c", "<") == final
        assert pool.calls.ledger.spending.made == answer.calls == calls
    assert found[0] == found[1]


def test_the_depth_can_be_three_and_each_layer_costs_its_seats() -> None:
    pool = scripted_pool(ECHO)
    answer = ask(mixture(pool, "a + b > a + c > b + d > synthesize(a)"))
    assert [len(layer) for layer in answer.layers] == [2, 2, 2]
    assert answer.calls == pool.calls.ledger.spending.made == 7


@pytest.mark.parametrize("is_async", [False, True])
def test_proposers_of_a_layer_are_asked_at_the_same_time(is_async: bool) -> None:
    if is_async:
        together = asyncio.Barrier(4)

        class Engine:
            async def complete(self, request: Any) -> Any:
                await together.wait()
                return lm15.Response(
                    id=None,
                    model=request.model,
                    message=lm15.Message.assistant("x"),
                    finish_reason="stop",
                    usage=lm15.Usage(input_tokens=1, output_tokens=1),
                )

        pool: Any = scripted_pool(dict.fromkeys("abcd", "x"))
        for lm in map(pool.lm, "abcd"):
            lm._async_engine_spec._build = Engine
    else:
        barrier = threading.Barrier(4)

        def meet(_: str) -> str:
            barrier.wait(30)  # only ever passed if all four are here
            return "x"

        pool = scripted_pool(dict.fromkeys("abcd", meet))
    assert not ask(mixture(pool, "a + b + c + d > select"), is_async=is_async).failures


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_agent_is_left_out_and_listed(is_async: bool) -> None:
    pool = scripted_pool({"a": "1", "b": lm15.ServerError("down"), "c": " \n", "d": lambda p: p})
    answer = ask(mixture(pool, "a + b + c > synthesize(d)"), is_async=is_async)
    assert answer.final.text == numbered("1")
    assert [(r.agent, r.failure) for r in answer.failures] == [
        ("b", "LMServerError: [agent/b] down"),
        ("c", "The model answered with an empty text."),
    ]
    assert [r.text for r in answer.layers[0]] == ["1", "", ""]


@pytest.mark.parametrize("is_async", [False, True])
def test_below_the_quorum_the_error_names_every_cause(is_async: bool) -> None:
    pool = scripted_pool({"a": "x", "b": lm15.ServerError("down"), "c": lm15.ServerError("off")})
    message = "Layer 1: 1 of 3 agents answered. b: LMServerError: .*down; c: LMServerError: .*off"
    with pytest.raises(LayerFailedError, match=message):
        ask(mixture(pool, "a + b + c > vote", quorum=2), is_async=is_async)
    assert ask(mixture(pool, "a + b + c > vote"), is_async=is_async).final.text == "x"


def test_a_deep_layer_that_failed_is_named_by_its_number() -> None:
    pool = scripted_pool({"a": "x", "b": lm15.ServerError("down")})
    with pytest.raises(LayerFailedError, match=r"Layer 2: 0 of 1 agents answered\. b: "):
        ask(mixture(pool, "a > b > synthesize(a)"))


@pytest.mark.parametrize("architecture", ["b", "a > synthesize(b)"])
def test_an_aggregator_that_failed_is_an_error_with_its_cause(architecture: str) -> None:
    pool = scripted_pool({"a": "x", "b": lm15.ServerError("down")})
    with pytest.raises(LayerFailedError, match=r"did not answer.* b: LMServerError.*down"):
        ask(mixture(pool, architecture))


def test_samples_of_a_sampled_agent_are_calls_of_their_own_and_of_a_greedy_one_a_single_call() -> (
    None
):
    for temperature, made in ((0.7, 4), (0.0, 2)):
        pool = scripted_pool({"a": "x", "b": "y"}, temperature=temperature)
        answer = ask(mixture(pool, "a*3 > synthesize(b)"))
        assert [r.sample for r in answer.layers[0]] == [0, 1, 2]
        assert pool.calls.ledger.spending.made == made
        # In production every seat is a request, whatever the store made of it.
        assert answer.calls == 4


def test_equal_layers_of_different_mixtures_share_their_calls() -> None:
    pool = scripted_pool(dict.fromkeys("abc", "x"), temperature=0.7)
    ask(mixture(pool, "a*2 + b > select"))
    ask(mixture(pool, "b + a*2 > c > synthesize(a)"))
    ask(mixture(pool, "a"))
    # 3 proposals, then c and the aggregator a; the single a is the first sample of a.
    assert (pool.calls.ledger.spending.made, pool.calls.ledger.spending.reused) == (5, 4)


def test_the_answer_adds_up_prices_calls_and_the_critical_path() -> None:
    pool = scripted_pool(
        {"a": "one", "b": "one two", "c": "one two three"}, usd_per_million_tokens={"a": 1, "c": 2}
    )
    answer = ask(mixture(pool, "a + b > synthesize(c)"))
    slowest = max(r.seconds for r in answer.layers[0])
    assert answer.last is not None
    assert answer.seconds == slowest + answer.last.seconds > 0
    assert answer.calls == 3
    # A script's tokens are the words of the user's message: q for a, and for c q, the
    # heading's 3 words, 2 numbers and 3 words of references.
    read = len(re.split(r"\s+", numbered("one", "one two")))
    assert answer.usd == pytest.approx(((1 + 1) * 1 + (read + 3) * 2) / 1e6)
    again = ask(mixture(pool, "a + b > synthesize(c)"))
    assert (again.usd, again.seconds) == (answer.usd, answer.seconds), "as it was when it was made"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_budget_that_ends_inside_a_layer_ends_the_question_and_keeps_what_was_paid(
    is_async: bool,
) -> None:
    calls = Calls(ledger=Ledger(Budget(calls=2)))
    pool = scripted_pool(dict.fromkeys("abcd", "x"), calls=calls)
    with pytest.raises(BudgetReachedError, match="2 calls"):
        ask(mixture(pool, "a + b + c + d > select"), is_async=is_async)
    assert calls.ledger.spending.made == 2
    stored = calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert [call.response is not None for call in stored] == [True, True]

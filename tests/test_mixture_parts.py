from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget, Calls, Ledger
from moa_dspy.errors import ArchitectureError, BudgetReachedError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import AsyncScriptedEngine, Script, ScriptedEngine, scripted_pool

TEXT = "question -> answer"


def given_lm(script: Script, model: str = "given/a", **settings: Any) -> dspy.LM:
    engines = {"engine": ScriptedEngine(script), "async_engine": AsyncScriptedEngine(script)}
    return dspy.LM(model, num_retries=0, **{"cache": False, **settings}, **engines)


def test_lms_given_as_objects_sit_where_they_were_put() -> None:
    first, second = given_lm("1"), given_lm("2")  # two objects of one model name are two agents
    program = MixtureOfAgents(
        TEXT, layers=[[second, first, second], [first]], aggregator=second, adapter=PlainChat()
    )
    assert str(program.architecture) == (
        "given/a + given/a-2 + given/a > given/a-2 > synthesize(given/a)"
    )
    assert [program.pool.lm(name) for name in program.architecture.agents] == [second, first]
    assert program(question="q").answer == "2"


def test_names_made_for_lms_never_collide() -> None:
    lms = [given_lm("x", model) for model in ("m", "m-2", "m", "my (own)")]
    program = MixtureOfAgents(TEXT, layers=[lms], aggregator=lms[0])
    assert [program.pool.lm(name) for name in ("m", "m-2", "m-3", "my--own-")] == lms


def test_names_with_a_pool_may_stand_in_layers_as_well() -> None:
    pool = scripted_pool({"a": "x", "b": "y"})
    program = MixtureOfAgents(TEXT, layers=[["a", "a"]], aggregator="b", pool=pool)
    assert str(program.architecture) == "a*2 > synthesize(b)"


@pytest.fixture
def _memory_cache() -> Iterator[None]:
    library: Any = dspy
    usual = library.cache
    library.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    library.cache = usual


@pytest.mark.usefixtures("_memory_cache")
def test_samples_of_a_given_lm_are_independent_though_dspys_cache_is_on() -> None:
    count = iter(range(3))
    lm = given_lm(lambda _: str(next(count)), cache=True, temperature=0.7)
    program = MixtureOfAgents(
        TEXT, "a*3 > vote", pool=Pool.from_lms({"a": lm}), adapter=PlainChat()
    )
    first = [r.text for r in program(question="q").mixture.layers[0]]
    assert sorted(first) == ["0", "1", "2"]
    assert [r.text for r in program(question="q").mixture.layers[0]] == first


def test_a_mixture_with_another_architecture_is_alike_in_everything_else() -> None:
    pool = scripted_pool(dict.fromkeys("ab", "x"))
    first = MixtureOfAgents(TEXT, "a", pool=pool, adapter=PlainChat(), normalise="answer", quorum=2)
    other = first.with_architecture(Architecture.parse("a + b > vote"))
    assert str(other.architecture) == "a + b > vote"
    for option in ("signature", "pool", "adapter", "normalise", "quorum"):
        assert getattr(other, option) is getattr(first, option)


@pytest.mark.parametrize(
    ("signature", "architecture", "options", "message"),
    [
        (TEXT, "a > vote(b)", {}, "`aggregator` decides the ties of a vote: .* but got 'b'"),
        (TEXT, None, {}, "`architecture`, or `layers` and `aggregator`, must be given"),
        (TEXT, None, {"layers": [["a"]]}, "`layers` and `aggregator`, must be given"),
        (TEXT, "a", {"layers": [["a"]]}, "Give `architecture`, or `layers` and `aggregator`, not"),
        (TEXT, "a", {"aggregator": "a"}, "Give `architecture`, or `layers` and `aggregator`, not"),
        (
            TEXT,
            None,
            {"layers": [["a", given_lm("x")]], "aggregator": "a"},
            "all agent names or all LMs",
        ),
        (TEXT, "a", {"normalise": "texts"}, "Unknown `normalise` 'texts'; .* answer, text"),
        (TEXT, "a", {"quorum": 0}, "`quorum` must be at least 1, but got 0"),
        ("references -> answer", "a", {}, "own field 'references' must be renamed"),
        ("question -> references", "a", {}, "own field 'references' must be renamed"),
        ("question -> mixture", "a", {}, "own field 'mixture' must be renamed"),
        ("question -> an wer", "a", {}, "`signature` must read like .* got 'question -> an wer'"),
        ("question", "a", {}, "`signature` must read like .* got 'question'"),
        (dspy.Signature("lm: int, q -> a"), "a", {}, "input 'lm' must be renamed"),
        *(
            (f"question, {name} -> answer", "a", {}, f"input '{name}' must be renamed: DSPy takes")
            for name in (
                *("completions", "config", "demos", "instance", "lm", "new_signature", "self"),
                "signature",
            )
        ),
        *(
            (f"question -> {name}: str", "a", {}, f"output '{name}' must be renamed: a dspy.Pred")
            for name in ("base", "self")
        ),
        *(
            (text, "a", {}, "every dspy.Signature has an attribute of that name")
            for text in ("question, instructions -> answer", "fields -> x", "q -> signature")
        ),
    ],
)
def test_a_mixture_that_cannot_be_built_is_refused(
    signature: str, architecture: str | None, options: dict[str, Any], message: str
) -> None:
    pool = scripted_pool(dict.fromkeys("ab", "x"))
    with pytest.raises(ArchitectureError, match=message):
        MixtureOfAgents(signature, architecture, pool=pool, **options)


def test_names_need_a_pool_that_has_them() -> None:
    without: list[dict[str, Any]] = [
        {"architecture": "a"},
        {"layers": [["a"]], "aggregator": "a"},
    ]
    for options in without:
        with pytest.raises(ArchitectureError, match="`pool` must be given"):
            MixtureOfAgents(TEXT, **options)
    with pytest.raises(PoolError, match="Unknown agent 'z'; the pool has a"):
        MixtureOfAgents(TEXT, "a > synthesize(z)", pool=scripted_pool({"a": "x"}))


def test_tasks_on_their_way_are_waited_for_and_kept_when_the_budget_ends_beside_them() -> None:
    class Slow:
        async def complete(self, request: Any) -> Any:
            await asyncio.sleep(0.05)
            return ScriptedEngine("x").complete(request)

    calls = Calls(ledger=Ledger(Budget(calls=1)))
    pool = scripted_pool({"a": "x", "b": "y"}, calls=calls)
    for name in "ab":  # whichever comes first gets the one call
        lm: Any = pool.lm(name)
        lm._async_engine_spec._build = Slow
    program = MixtureOfAgents(TEXT, "a + b > select", pool=pool, adapter=PlainChat())

    async def ask() -> int:
        with pytest.raises(BudgetReachedError, match="1 calls"):
            await program.acall(question="q")
        return len(calls.store._calls)  # type: ignore[attr-defined]  # the memory

    assert asyncio.run(ask()) == 1

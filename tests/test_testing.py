from __future__ import annotations

import asyncio

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Budget, Calls, Ledger
from moa_dspy.errors import BudgetReachedError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool


def mixture(pool: object, architecture: str) -> MixtureOfAgents:
    return MixtureOfAgents("question -> answer", architecture, pool=pool, adapter=PlainChat())  # type: ignore[arg-type]  # a Pool


def test_scripts_are_texts_functions_and_errors() -> None:
    pool = scripted_pool({"text": "Rome", "function": str.upper, "error": OSError("down")})
    answer = mixture(pool, "text + function + error > vote(text)")(question="Italy?").mixture
    assert [r.text for r in answer.responses] == ["Rome", "ITALY?", ""]
    assert "down" in str(answer.responses[2].failure)


def test_calls_are_counted_priced_and_reused() -> None:
    pool = scripted_pool({"a": "one two"}, usd_per_million_tokens={"a": 2.0})
    program = mixture(pool, "a")
    # 3 words asked and 2 answered at 2 usd per million
    assert program(question="say two words").mixture.usd == pytest.approx(10e-6)
    asyncio.run(program.acall(question="say two words"))
    assert (pool.calls.ledger.spending.made, pool.calls.ledger.spending.reused) == (1, 1)


def test_samples_are_independent_above_temperature_0_and_one_at_0() -> None:
    for temperature, made in ((0.0, 1), (0.7, 3)):
        pool = scripted_pool({"a": "x"}, temperature=temperature)
        mixture(pool, "a*3 > select")(question="?")
        assert pool.calls.ledger.spending.made == made


def test_a_raising_script_is_a_failure_and_a_budget_holds() -> None:
    def refuse(prompt: str) -> str:
        raise ValueError(prompt)

    with pytest.raises(LayerFailedError, match="a: "):
        mixture(scripted_pool({"a": refuse}), "a")(question="?")
    calls = Calls(ledger=Ledger(Budget(calls=1)))
    program = mixture(scripted_pool({"a": "x"}, calls=calls), "a")
    program(question="1")
    with pytest.raises(BudgetReachedError, match="1 calls"):
        program(question="2")


def test_scripts_read_the_last_user_message_or_all_messages() -> None:
    for reads_all, expected in (
        (False, "Italy?"),
        (True, "Be brief.\n\nFrance?\n\nParis\n\nItaly?"),
    ):
        pool = scripted_pool({"a": lambda prompt: prompt}, reads_all=reads_all)
        program = mixture(pool, "a")
        seat = program.aggregator
        seat.signature = seat.signature.with_instructions("Be brief.")
        seat.demos = [{"question": "France?", "answer": "Paris"}]
        assert program(question="Italy?").answer == expected
        assert asyncio.run(program.acall(question="Italy?")).answer == expected

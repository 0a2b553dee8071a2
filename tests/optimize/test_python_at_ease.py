"""Objects as a person at a prompt gives them, and results as a notebook shows them."""

from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.data import answer_match
from moa_dspy.errors import PoolError
from moa_dspy.optimize import SearchSpace
from moa_dspy.testing import scripted_pool
from tests.servers.chat import Reply, serving


def rows(n: int, split: str) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{split} {i}", answer="Paris").with_inputs("question")
        for i in range(n)
    ]


def test_inputs_of_rows_keep_their_types() -> None:
    def reads(prompt: str) -> str:
        # As an earlier turn of the conversation, not as a text that describes it.
        told = "Lima" if "[[ ## question ## ]]\nWhich country? Peru" in prompt else "?"
        return f"[[ ## answer ## ]]\n{told}\n\n[[ ## completed ## ]]"

    pool = scripted_pool({"a": reads, "b": "[[ ## answer ## ]]\nRome"}, reads_all=True)
    earlier = {"question": "Which country? Peru", "answer": "I see."}
    talks = [
        dspy.Example(
            question=f"Capital? {i}", history=dspy.History(messages=[earlier]), answer="Lima"
        ).with_inputs("question", "history")
        for i in range(8)
    ]
    student = MixtureOfAgents("question, history: dspy.History -> answer", "a", pool=pool)
    search = ModelSearch(answer_match, pool, space=SearchSpace(("a", "b"), max_depth=0), n_trials=2)
    search.compile(student, trainset=[], valset=talks[:4], testset=talks[4:])
    assert search.result.test["pick"].score == 1
    assert pool.calls.ledger.spending.made > 0


def test_a_result_is_shown_as_a_table() -> None:
    pool = scripted_pool({"right": lambda prompt: "Paris", "wrong": lambda prompt: "Rome"})
    search = ModelSearch(
        answer_match, pool, space=SearchSpace(tuple(pool), ("vote",), max_depth=1), n_trials=3
    )
    search.compile(
        MixtureOfAgents("question -> answer", "right", pool=pool, adapter=PlainChat()),
        trainset=[],
        valset=rows(6, "val"),
        testset=rows(8, "test"),
    )
    text = str(search.result)
    assert text.splitlines()[0].split() == (
        ["system", "architecture", "test", "score", "pick", "minus", "row", "calls"]
    )
    assert text.endswith(search.result.verdict.text)
    assert "best_single" in text
    assert "100.0 % [" in text
    html = search.result._repr_html_()
    assert html.startswith("<table>")
    frame = search.result.to_pandas()
    assert frame.loc["best_single", "score"] == 1.0
    assert {"pick_minus", "usd", "calls"} <= set(frame.columns)


def test_a_list_of_lms_is_a_pool() -> None:
    with serving(Reply("Paris")) as server:
        lms = [
            dspy.LM("openai/mini", api_base=server.url, api_key="none", temperature=t)
            for t in (0.0, 0.7)
        ]
        search = ModelSearch(answer_match, lms, budget=0.5)
        assert list(search.options.pool) == ["mini", "mini-2"]
        assert search.options.budget is not None
        assert (search.options.budget.usd, search.options.budget.calls) == (0.5, None)
        with pytest.raises(PoolError, match=r"for LMs, use `Pool\.from_lms\(\[lm, lm\]\)`"):
            Pool(lms)


def test_a_pool_is_read_from_a_text_path(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('[[agents]]\nname = "a"\nmodel = "openai/a"\n', "utf-8")
    assert list(Pool.read(str(path))) == ["a"]

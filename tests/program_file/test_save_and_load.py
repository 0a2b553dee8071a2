from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.references import ReferenceLimits
from moa_dspy.testing import scripted_pool

OLD: dict[str, Any] = {  # as version 0.1.0 wrote it
    "format": 1,
    "moa_dspy": "0.1.0",
    "architecture": {"layers": [["a", "b"]], "aggregator": "c", "combine": "synthesize"},
    "signature": {
        "instructions": "Name the capital.",
        "inputs": {"question": "str"},
        "outputs": {"answer": "str"},
        "descriptions": {"question": "${question}", "answer": "${answer}"},
    },
    "adapter": "plain",
    "normalise": "text",
    "quorum": 1,
    "module": "predict",
    "agents": {name: {"model": "m/m", "temperature": 0.0, "max_tokens": 9} for name in "abc"},
    "state": {
        name: {
            "instructions": "Old words.",
            "fields": [{"prefix": "P:", "description": "d"}] * n_fields,
            "demos": [],
        }
        for name, n_fields in (
            ("layers[0].proposers[0]", 2),
            ("layers[0].proposers[1]", 2),
            ("aggregator", 3),
        )
    },
    "scores": None,
}


@pytest.fixture
def pool() -> Pool:
    return scripted_pool({"a": "1", "b": "2", "c": lambda prompt: prompt})


def mixture(pool: Pool, **options: Any) -> MixtureOfAgents:
    options.setdefault("adapter", PlainChat())
    text = options.pop("text", "a + b > synthesize(c)")
    return MixtureOfAgents("question -> answer", text, pool=pool, **options)


def test_one_call_builds_what_save_wrote(tmp_path: Path, pool: Pool) -> None:
    limits = ReferenceLimits(per_reference=90, total=200)
    first = mixture(pool, deadline_seconds=2.5, reference_limits=limits, quorum=2)
    first.aggregator.demos = [dspy.Example(question="Italy?", references=["Rome"], answer="Rome")]
    first.save(tmp_path / "p.json")
    loaded = MixtureOfAgents.load(tmp_path / "p.json", pool=pool)
    assert isinstance(loaded, MixtureOfAgents)
    rules = (loaded.rules.deadline_seconds, loaded.rules.reference_limits, loaded.rules.quorum)
    assert rules == (2.5, limits, 2)
    assert loaded(question="q").answer == first(question="q").answer
    assert pool.calls.ledger.spending.made == 3


def test_a_program_takes_prompts_and_architecture_of_a_file(tmp_path: Path, pool: Pool) -> None:
    first, second = mixture(pool), mixture(pool)
    first.aggregator.signature = first.aggregator.signature.with_instructions("New words.")
    first.save(tmp_path / "p.json")
    second.load(tmp_path / "p.json")
    assert second.aggregator.signature.instructions == "New words."
    other = mixture(pool, text="a > vote")
    other.load(tmp_path / "p.json")
    assert str(other.architecture) == "a + b > synthesize(c)"
    assert other.aggregator.signature.instructions == "New words."
    assert other(question="q").answer == second(question="q").answer
    lacking = mixture(scripted_pool({"a": "1"}), text="a")
    with pytest.raises(PoolError, match="agents that the pool lacks: b, c; it has a"):
        lacking.load(tmp_path / "p.json")
    assert str(lacking.architecture) == "a"


def test_a_state_that_dspy_wrote_of_a_program_around_it_brings_prompts_and_no_lm(
    tmp_path: Path, pool: Pool
) -> None:
    class Around(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mixture(pool)

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    first, second = Around(), Around()
    aggregator: Any = first.inner.aggregator
    aggregator.signature = aggregator.signature.with_instructions("New words.")
    expected = first(question="q").answer
    first.save(tmp_path / "around.json")
    assert '"lm": null' in (tmp_path / "around.json").read_text("utf-8")
    second.load(tmp_path / "around.json")
    assert second(question="q").answer == expected
    assert pool.calls.ledger.spending.made == 3
    # The inner mixture alone, as DSPy's own `save` would write it.
    dspy.Module.save(first.inner, tmp_path / "inner.json")
    third = mixture(pool)
    third.load(tmp_path / "inner.json")
    assert third.aggregator.signature.instructions == "New words."


def test_the_order_of_the_seats_survives(tmp_path: Path) -> None:
    pool = scripted_pool({"z": "1", "a": "2", "m": lambda prompt: prompt})
    first = mixture(pool, text="z + a > m + z > synthesize(m; order=z)")
    first.save(tmp_path / "p.json")
    loaded = MixtureOfAgents.load(tmp_path / "p.json", pool=pool)
    assert str(loaded.architecture) == str(first.architecture)
    assert loaded(question="q").answer == first(question="q").answer


def test_a_file_of_the_first_format_loads(tmp_path: Path, pool: Pool) -> None:
    (tmp_path / "old.json").write_text(json.dumps(OLD), "utf-8")
    loaded = MixtureOfAgents.load(tmp_path / "old.json", pool=pool)
    assert loaded.rules.deadline_seconds is None
    assert loaded.rules.reference_limits == ReferenceLimits()
    assert {seat.signature.instructions for seat in loaded.predictors()} == {"Old words."}
    assert loaded(question="q").answer.startswith("q")


def test_agents_that_the_pool_lacks_are_named(tmp_path: Path, pool: Pool) -> None:
    mixture(pool).save(tmp_path / "p.json")
    with pytest.raises(PoolError, match="agents that the pool lacks: a, c; it has b, d"):
        MixtureOfAgents.load(tmp_path / "p.json", pool=scripted_pool({"b": "x", "d": "y"}))


def test_another_kind_of_file_is_refused_and_nothing_is_written(tmp_path: Path, pool: Pool) -> None:
    with pytest.raises(ArchitectureError, match=r"must end with \.json or \.pkl, .* got .*p\.txt"):
        mixture(pool).save(tmp_path / "p.txt")
    assert list(tmp_path.iterdir()) == []


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content", ["{}", "[]", "x", '{"format": 9}', NESTED, f'{{"a": {NESTED}}}']
)
def test_a_file_that_is_no_program_is_an_error_that_says_so(
    tmp_path: Path, pool: Pool, content: str
) -> None:
    (tmp_path / "p.json").write_text(content, "utf-8")
    with pytest.raises(
        ArchitectureError, match=r"not JSON|not a saved program|format 9|nested too deeply"
    ):
        mixture(pool).load(tmp_path / "p.json")

from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from moa_dspy.adapters import ADAPTERS, PlainChat
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.program_file import save_program
from moa_dspy.testing import scripted_pool

N_CALLS = {"chat": 2, "chat_strict": 1, "json": 1, "xml": 2, "xml_strict": 1}
"""Requests that a reply in no format costs: with a fallback it is asked for again as JSON."""


@pytest.mark.parametrize("name", N_CALLS)
def test_only_the_adapters_that_say_so_ask_a_second_time(name: str) -> None:
    pool = scripted_pool({"a": "in no format", "b": "in no format"})
    program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=ADAPTERS[name]())
    with pytest.raises(LayerFailedError, match="did not answer"):
        program(question="France?")
    assert pool.calls.ledger.spending.made == N_CALLS[name]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_program_is_saved_and_loaded_with_its_adapter(name: str, tmp_path: Path) -> None:
    pool = scripted_pool({"a": "x"})
    made = ADAPTERS[name]()
    path = tmp_path / "program.json"
    save_program(MixtureOfAgents("question -> answer", "a", pool=pool, adapter=made), path)
    assert f'"adapter": "{name}"' in path.read_text("utf-8")
    loaded = MixtureOfAgents.load(path, pool=pool).adapter
    assert type(loaded) is type(made)
    assert vars(loaded) == vars(made)


def test_the_names_differ_in_what_they_make() -> None:
    assert not ADAPTERS["chat_strict"]().use_json_adapter_fallback
    assert not ADAPTERS["xml_strict"]().use_json_adapter_fallback
    assert ADAPTERS["chat"]().use_json_adapter_fallback
    assert isinstance(ADAPTERS["xml_strict"](), dspy.XMLAdapter)
    plain, paper = ADAPTERS["plain"](), ADAPTERS["paper"]()
    assert isinstance(plain, PlainChat)
    assert isinstance(paper, PlainChat)
    assert (plain.layout, paper.layout) == ("guarded", "paper")

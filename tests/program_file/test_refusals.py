from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.errors import ArchitectureError, MoaError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.program_file import save_program
from moa_dspy.testing import scripted_pool
from tests.program_file.world import ANSWERS, program


def saved(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a good program file, then let ``change`` spoil it."""
    save_program(program(scripted_pool(ANSWERS)), path)
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return path


SPOILED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "lm": (lambda c: c.update(lm={"api_base": "http://evil"}), r"\.lm: unknown key"),
    "api_base at the top": (lambda c: c.update(api_base="http://evil"), "api_base: unknown key"),
    "api_base of an agent": (
        lambda c: c["agents"]["a"].update(api_base="http://evil"),
        r"agents\['a'\]\.api_base: unknown key",
    ),
    "lm of a seat": (lambda c: c["state"]["aggregator"].update(lm=None), r"\.lm: unknown key"),
    "missing key": (lambda c: c.pop("quorum"), r"\.quorum: this key is missing"),
    "newer format": (
        lambda c: c.update(format=9),
        "has format 9, but this version of moa-dspy reads 1 and 2",
    ),
    "of an unknown version": (
        lambda c: c.update(format=9, moa_dspy=None),
        r"it was written by moa-dspy \(unknown version\)",
    ),
    "no format": (lambda c: c.pop("format"), "not a saved program"),
    "class path as agent": (lambda c: c.update(module="os:system"), "unknown module 'os:system'"),
    "class path as adapter": (lambda c: c.update(adapter="os.system"), "unknown adapter"),
    "class path as type": (
        lambda c: c["signature"]["inputs"].update(question="os.PathLike"),
        "field 'question' has type 'os.PathLike'",
    ),
    "unknown normalise": (lambda c: c.update(normalise="eval"), "Unknown `normalise` 'eval'"),
    "number as name": (lambda c: c["architecture"].update(layers=[[1]]), r"layers\[0\]\[0\]"),
    "bad field name": (
        lambda c: c["signature"]["inputs"].update({"_x": "str"}),
        "the signature cannot be built",
    ),
    "missing seat": (lambda c: c["state"].pop("aggregator"), "has the seats aggregator"),
    "missing field text": (lambda c: c["state"]["aggregator"]["fields"].pop(), "a text for each"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path: Path, name: str) -> None:
    change, message = SPOILED[name]
    path = saved(tmp_path / "p.json", change)
    with pytest.raises(ArchitectureError, match=message):
        MixtureOfAgents.load(path, pool=scripted_pool(ANSWERS))


@pytest.mark.parametrize("text", ["", "{", "\x00", "[]", "3", '{"format": "1"}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text, "utf-8")
    with pytest.raises(ArchitectureError, match=r"p\.json is not"):
        MixtureOfAgents.load(tmp_path / "p.json", pool=scripted_pool(ANSWERS))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"p\.json cannot be read: No such file"):
        MixtureOfAgents.load(tmp_path / "p.json", pool=scripted_pool(ANSWERS))


def test_every_absent_agent_is_named(tmp_path: Path) -> None:
    save_program(program(scripted_pool(ANSWERS)), tmp_path / "p.json")
    with pytest.raises(PoolError, match=r"lacks: b, c; it has a, z\."):
        MixtureOfAgents.load(tmp_path / "p.json", pool=scripted_pool({"a": "", "z": ""}))


class OwnAdapter(dspy.ChatAdapter):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": OwnAdapter()}, "OwnAdapter cannot be saved"),
        ({"adapter": dspy.ChatAdapter(use_native_function_calling=True)}, "with its settings"),
        (
            {"module": lambda s: dspy.ReAct(s, tools=[])},
            "mixture of the module ReAct cannot be saved",
        ),
        ({"module": lambda s: dspy.Predict(s, temperature=0.1)}, "settings of its own"),
    ],
)
def test_what_a_file_cannot_hold_is_not_dropped_silently(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        save_program(program(scripted_pool(ANSWERS), **options), tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoaError, match="cannot be written as JSON"):
        save_program(
            program(scripted_pool(ANSWERS)), tmp_path / "p.json", scores={"x": float("nan")}
        )

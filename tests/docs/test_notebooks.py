"""The notebooks are those of their script, and running them prints what they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.docs.blocks import ROOT
from tests.test_docs import load

MAKE = load(ROOT / "docs/make_notebooks.py")


def written(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "docs/notebooks" / f"{name}.ipynb", as_version=4)


def test_every_notebook_has_a_script() -> None:
    found = {path.stem for path in Path(ROOT / "docs/notebooks").glob("*.ipynb")}
    assert found == set(MAKE.NOTEBOOKS) == {"layers", "aggregator_prompts", "pipeline"}


@pytest.mark.parametrize("name", MAKE.NOTEBOOKS)
def test_a_notebook_is_that_of_its_script(name: str) -> None:
    made = MAKE.made(MAKE.NOTEBOOKS[name])
    assert [c.source for c in written(name).cells] == [c.source for c in made.cells]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE.NOTEBOOKS)
def test_a_notebook_prints_what_it_shows(name: str) -> None:
    made = MAKE.run(MAKE.made(MAKE.NOTEBOOKS[name]))
    for shown, new in zip(written(name).cells, made.cells, strict=True):
        if new.cell_type == "code":
            assert shown.outputs == new.outputs

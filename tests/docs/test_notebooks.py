"""The notebooks are those of their script, and running them prints what they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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


SEARCH = """
import dspy
from moa_dspy import MixtureOfAgents, ModelSearch
from moa_dspy.adapters import PlainChat
from moa_dspy.testing import scripted_pool

def rows(start, n):
    return [dspy.Example(id=str(i), question=f"{i}?", answer=str(i % 2)).with_inputs("question")
            for i in range(start, start + n)]

def right(example, prediction, trace=None):
    return float(prediction.answer == example.answer)

pool = scripted_pool({"a": "1", "b": "0", "c": lambda p: str(int(p.split("?")[0].split()[-1]) % 2)})
student = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
search = ModelSearch(right, pool, n_trials=8, display_progress=True)
program = search.compile(student, trainset=[], valset=rows(0, 20), testset=rows(20, 20))
"""


@pytest.mark.slow
def test_a_search_in_a_notebook_has_one_display_that_changes() -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in (SEARCH, "search.result")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook,
        timeout=300,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    ran, shown = notebook.cells
    displays = [output for output in ran.outputs if output.output_type == "display_data"]
    streams = "".join(output.text for output in ran.outputs if output.output_type == "stream")
    # An update replaces the display's content: the cell's output does not grow with the trials.
    assert len(displays) == 1
    assert "test" in displays[0].data["text/html"]
    assert streams.count("\\n") < 10, streams
    (result,) = shown.outputs
    assert "<table" in result.data["text/html"]

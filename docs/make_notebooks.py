"""Writes the notebooks of ``docs/notebooks``: texts and code from here, outputs from running them.

    uv run python docs/make_notebooks.py [NAME ...]

Each runs offline, with agents that reply by script or from the quickstart's recording, in the
root of the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / "docs" / "notebooks"
METADATA: Final = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

LAYERS: Final = """
# Which model sits in which layer

Five small models answered the 600 questions of the quickstart; the answers are recorded. The
search replays them, so this notebook
needs no key and no network. Here it looks at a part of the questions, to be quick.
---
from pathlib import Path

import dspy

from moa_dspy import MixtureOfAgents, ModelSearch, Pool
from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Calls, Recording
from moa_dspy.data import answer_match, read_rows, split_rows
from moa_dspy.optimize import SearchSpace

calls = Calls(recording=Recording.read(Path("data/quickstart/calls.parquet")), replay_only=True)
pool = Pool.read("optimize/pools/quickstart.toml", calls=calls)
tasks = read_rows(Path("data/quickstart/tasks.jsonl"), inputs=["question"])
rows = split_rows(tasks, column="split")
print(list(pool))
---
The student is the program that the search fills with agents. The space says what may be tried:
votes among at most three agents.
---
task = "Answer the question. Reply with the answer only, in one word or number."
student = MixtureOfAgents(
    dspy.make_signature("question -> answer", task),
    "qwen-1.5b",
    pool=pool,
    adapter=PlainChat(),
    normalise="answer",
)
space = SearchSpace(tuple(pool), combines=("vote",), max_depth=1, max_width=3)
search = ModelSearch(answer_match, pool, space=space, n_trials=12, seed=0)
program = search.compile(
    student, trainset=rows.train[:20], valset=rows.val[:60], testset=rows.test[:100]
)
---
The verdict, and every system beside the pick. Sixty questions are few, so the intervals are wide.
---
print(search.result.verdict.text)
for name, row in search.result.test.items():
    if row.score is not None:
        print(f"{name:12} {100 * row.score:5.1f} %  {row.architecture}")
---
The result as a table, and the Optuna study behind it:
---
table = search.result.to_pandas()
print(table[["architecture", "score"]].head(5).to_string(index=False))
print(len(search.study.trials), "trials in Optuna's study")
"""

PROMPTS: Final = """
# A better prompt for the aggregator

Two agents answer, a third reads both answers. It believes whatever it reads first, unless its
prompt tells it to check. The agents
reply by script, so it is known which prompt is better.
---
import dspy

from moa_dspy import MixtureOfAgents, optimize_aggregator
from moa_dspy.adapters import PlainChat
from moa_dspy.data import answer_match
from moa_dspy.optimize import PromptReport, TryPrompts
from moa_dspy.testing import scripted_pool


def number(prompt):
    return int(prompt.rpartition("Say number ")[2].split()[0])


def knows_odd(prompt):
    return str(number(prompt)) if number(prompt) % 2 else "wrong"


def reads(prompt):
    n = number(prompt)
    return str(n) if "check each" in prompt or n % 2 else "wrong"


def rows(start, n):
    return [
        dspy.Example(question=f"Say number {i} please", answer=str(i)).with_inputs("question")
        for i in range(start, start + n)
    ]


pool = scripted_pool({"a": knows_odd, "b": "wrong", "c": reads}, reads_all=True)
program = MixtureOfAgents(
    "question -> answer", "a + b > synthesize(c)", pool=pool, adapter=PlainChat()
)
---
`TryPrompts` tries prompts that you wrote. `dspy.GEPA` or another optimizer would write them. The
proposers' answers are computed
once per row; after that only the aggregator is asked.
---
prompts = ["Repeat the first answer.", "The answers may be wrong: check each before you use it."]
result = optimize_aggregator(
    program,
    TryPrompts(prompts),
    rows(0, 10),
    rows(10, 30),
    testset=rows(40, 30),
    metric=answer_match,
)
print(PromptReport(result))
---
A new prompt is used only if it is better on rows that the optimizer did not see.
---
print(result.accepted)
print(result.program(question="Say number 8 please").answer)
"""

PIPELINE: Final = """
# A mixture inside a program

A program looks up a passage and answers from it. The answering step is a mixture, and the search
measures the whole program.
---
import dspy

from moa_dspy import MixtureOfAgents, ModelSearch
from moa_dspy.adapters import PlainChat
from moa_dspy.data import answer_match
from moa_dspy.optimize import SearchSpace
from moa_dspy.testing import scripted_pool

RIVERS = {"Arlen": "Mira", "Bresk": "Tolva", "Corvin": "Ansa", "Dalmar": "Pell"}


class Pipeline(dspy.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, town, number):
        context = f"{town} lies on the river {RIVERS[town]}."
        return self.answer(context=context, question=f"Which river? ({number})")


def reader(errs):
    def reply(prompt):
        number = int(prompt.split("(")[1].split(")")[0])
        return "unknown" if number % 3 == errs else prompt.split("river ")[1].split(".")[0]

    return reply


def rows(start, n):
    return [
        dspy.Example(town=town, number=i, answer=river).with_inputs("town", "number")
        for i in range(start, start + n)
        for town, river in RIVERS.items()
    ]


pool = scripted_pool({f"reader-{n}": reader(n) for n in range(3)})
step = MixtureOfAgents("context, question -> answer", "reader-0", pool=pool, adapter=PlainChat())
---
Each reader errs on every third question, and no two on the same one.
---
space = SearchSpace(tuple(pool), max_depth=1)
search = ModelSearch(answer_match, pool, space=space, n_trials=8, seed=0)
program = search.compile(
    Pipeline(step), trainset=rows(0, 3), valset=rows(3, 15), testset=rows(18, 15)
)
print(search.result.verdict.text)
---
The result is a `Pipeline`. Its mixture can be saved, looked at, and tuned by any DSPy optimizer.
---
print(type(program).__name__, "with", program.answer.architecture)
print(program(town="Corvin", number=1).mixture.summary.partition(",")[0])
"""

NOTEBOOKS: Final = {"layers": LAYERS, "aggregator_prompts": PROMPTS, "pipeline": PIPELINE}


def made(text: str) -> nbformat.NotebookNode:
    """Return a notebook of cells that a line of dashes parts, text and code in turn."""
    parts = [part.strip() for part in text.split("\n---\n")]
    cells = [
        (new_code_cell if n % 2 else new_markdown_cell)(part, id=f"cell-{n}")
        for n, part in enumerate(parts)
    ]
    return new_notebook(cells=cells, metadata=METADATA)


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with what its cells print; lines of progress are left out."""
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.execution_count = None
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type == "stream" and output.name == "stdout"
            ]
    return notebook


def main() -> None:
    """Write the notebooks."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or NOTEBOOKS:
        nbformat.write(run(made(NOTEBOOKS[name])), FOLDER / f"{name}.ipynb")
        print(f"wrote docs/notebooks/{name}.ipynb")


if __name__ == "__main__":
    main()

"""``task.program``: a predictor of a program of the user's own is searched by a study file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moa_dspy import MixtureOfAgents, Pool
from moa_dspy.errors import StudyError
from moa_dspy.optimize.preflight import check_before
from moa_dspy.optimize.run import run_study
from moa_dspy.optimize.study import PreparedStudy
from tests.servers.chat import Reply, serving

RAG = """
import dspy

class Rag(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict(dspy.Signature("context, question -> answer", "Read."))

    def forward(self, question):
        found = self.answer(context="Remember " + question.split()[-1], question=question)
        return dspy.Prediction(final=found.answer.strip("<>"))

class Needs(Rag):
    def __init__(self, retriever):
        super().__init__()

class Other(Rag):
    def forward(self, text):
        return self.answer(context="", question=text)

class Async(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = Rag().answer

    async def aforward(self, question):
        context = "Remember " + question.split()[-1]
        found = await self.answer.acall(context=context, question=question)
        return dspy.Prediction(final=found.answer.strip("<>"))

made = Rag()
number = 3

def with_a_mixture():
    from moa_dspy import Agent, MixtureOfAgents, Pool
    program, pool = Rag(), Pool([Agent(name="own", model="openai/own")])
    program.checks = {"last": MixtureOfAgents("question -> answer", "own", pool=pool)}
    return program

def score(row, prediction, trace=None):
    return float(prediction.final == row.final)
"""
STUDY = """
name = "rag"
pool = "pool.toml"
[task]
signature = "question -> final"
program = "my_rag_program:Rag"
predictor = "answer"
adapter = "json"
metric = "my_rag_program:score"
[data]
path = "rows.jsonl"
inputs = ["question"]
outputs = ["final"]
split_column = "split"
[space]
combines = ["synthesize"]
max_depth = 1
[search]
n_trials = 3
"""


def by_context(body: dict[str, object]) -> Reply:
    """Answer the number of the context; `bad` one too many. Both write it in brackets."""
    said = json.dumps(body["messages"])
    assert "Remember" in said
    number = int(said.split("Remember ")[1].split("\\n")[0].strip('" ')) + (body["model"] == "bad")
    usage = {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32}
    return Reply(json.dumps({"answer": f"<{number}>"}), usage=usage)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    rows = [
        {"question": f"{split} {n}", "final": str(n), "split": split}
        for split in ("train", "val", "test")
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "my_rag_program.py").write_text(RAG, "utf-8")
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    with serving(by_context) as server:
        url = server.url
        agents = (
            f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{url}"\n'
            for name in ("good", "bad")
        )
        (tmp_path / "pool.toml").write_text("".join(agents), "utf-8")
        yield tmp_path
    sys.modules.pop("my_rag_program", None)


def change(folder: Path, old: str, new: str) -> Path:
    path = folder / "study.toml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    return path


@pytest.mark.slow
def test_the_predictor_is_searched_and_the_whole_program_is_scored(folder: Path) -> None:
    result = run_study(folder / "study.toml", out=folder / "out")
    # The metric reads what the program returns: brackets that are left would score 0.
    assert result.test["best_single"].architecture == "good"
    assert result.test["best_single"].score == 1.0
    saved = folder / "out" / "program.json"
    assert "my_rag_program" not in saved.read_text("utf-8")
    program = __import__("my_rag_program").Rag()
    program.answer = MixtureOfAgents.load(saved, pool=Pool.read(str(folder / "pool.toml")))
    assert program(question="new 41").final == "41"


def test_a_check_says_which_other_predictors_have_no_model(folder: Path) -> None:
    module = folder / "my_rag_program.py"
    own = 'self.rewrite = self.other = dspy.Predict("question -> query")'
    module.write_text(RAG.replace("        self.answer", f"        {own}\n        self.answer", 1))
    found = check_before(PreparedStudy.read(folder / "study.toml"))
    assert [note for note in found.notes if "No LM is configured for rewrite: " in note]


@pytest.mark.parametrize("name", ["Rag", "made", "Async"])
def test_a_check_is_free_and_a_probe_counts_the_predictor_s_own_prompt(
    folder: Path, name: str
) -> None:
    path = change(folder, ":Rag", f":{name}")
    found = check_before(PreparedStudy.read(path))
    assert any("not known before" in note for note in found.notes)
    assert not any("No LM" in note for note in found.notes)
    probed = check_before(PreparedStudy.read(path), asks=True)
    assert [agent.prompt_tokens["likely"] for agent in probed.agents] == [30, 30]
    assert [agent.failure for agent in probed.agents] == [None, None]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('predictor = "answer"', "", r"`task.program` needs `task.predictor`"),
        ('program = "my_rag_program:Rag"', "", r"`task.predictor` needs `task.program`"),
        ('= "answer"', '= "anwser"', r"`task.predictor`: .*of Rag \(answer\), but got 'anwser'"),
        (":Rag", ":Nothing", r"`task.program`: 'my_rag_program:Nothing' cannot be imported"),
        (":Rag", "", r"`task.program`: unknown 'my_rag_program'"),
        (":Rag", ":Needs", r"`task.program`: 'my_rag_program:Needs'\(\) raised TypeError"),
        (":Rag", ":number", r"`task.program`: 'my_rag_program:number'"),
        (
            ":Rag",
            ":Other",
            r"Other.forward takes \(self, text\), but a row has the inputs question",
        ),
        (":Rag", ":with_a_mixture", r"holds a mixture of its own, at checks\['last'\]\. Search"),
        (
            "[data]",
            'module = "predict"\n[data]',
            r"`task.module` cannot be set with `task.program`",
        ),
        ("[data]", 'turns = "turns"\n[data]', r"`task.turns` cannot be set with `task.program`"),
    ],
)
def test_a_program_that_does_not_fit_is_refused_before_anything_is_asked(
    folder: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        PreparedStudy.read(change(folder, old, new))


def test_another_text_of_the_program_is_another_study(folder: Path) -> None:
    first = PreparedStudy.read(folder / "study.toml").digests
    (folder / "my_rag_program.py").write_text(RAG + "\n# changed\n", "utf-8")
    second = PreparedStudy.read(folder / "study.toml").digests
    assert {name for name in first if first[name] != second[name]} == {"code"}

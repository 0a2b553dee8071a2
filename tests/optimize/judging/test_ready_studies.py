"""The ready studies of the paper's benchmarks fit together; nothing is asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import read_agents
from moa_dspy.data import Splits
from moa_dspy.errors import PoolError
from moa_dspy.judges import GradeJudge, PairJudge, SkillJudge
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.metric import JudgeOptions
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Pool
from moa_dspy.presets import PAPER_AGENTS, moa, moa_lite

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared"
KINDS: dict[str, tuple[type[Any], str]] = {
    "alpaca_eval": (PairJudge, "openai/gpt-4-1106-preview"),
    "mt_bench": (GradeJudge, "openai/gpt-4"),
    "flask": (SkillJudge, "openai/gpt-4"),
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "none")
    monkeypatch.setenv("OPENAI_API_KEY", "none")


def study(name: str) -> StudyFile:
    return read_study(ROOT / "optimize" / f"{name}.toml")


def test_the_papers_pool_as_a_file_is_the_one_of_the_presets() -> None:
    assert tuple(read_agents(ROOT / "optimize" / "pools" / "paper.toml")) == PAPER_AGENTS


@pytest.mark.parametrize("name", KINDS)
def test_the_papers_architectures_are_listed_as_the_presets_make_them(name: str) -> None:
    read = study(name)
    agents, _ = read.make_agents()
    listed = read.make_space(agents).listed
    assert listed == (moa(pool=None).architecture, moa_lite(pool=None).architecture)


@pytest.mark.parametrize("name", KINDS)
def test_the_judge_is_the_benchmarks(name: str) -> None:
    read = study(name)
    agents, _ = read.make_agents()
    options: JudgeOptions | None = read.make_search(Pool(agents), None).options.judge
    kind, model = KINDS[name]
    assert options is not None
    assert type(options.judge) is kind
    assert options.judge.pool[options.judge.agent].model == model
    assert options.length_controlled == (name == "alpaca_eval")
    assert options.reference == ("reference" if name == "alpaca_eval" else "best_single")


@pytest.mark.parametrize("name", KINDS)
def test_a_ready_study_is_whole_up_to_the_keys(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"NOT RUN: the files of {name} are not at ../shared/{name}.")
    text = (ROOT / "optimize" / f"{name}.toml").read_text("utf-8")
    text = text.replace("[data]\n", f'[data]\npath = "{folder}"\n')
    text = text.replace('"pools/paper.toml"', f'"{ROOT}/optimize/pools/paper.toml"')
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    prepared = PreparedStudy.read(path)
    assert isinstance(prepared.splits, Splits)
    student = Student.of(prepared.study.make_student(prepared.make_pool(None, _ledger()))).mixture
    assert isinstance(student, MixtureOfAgents)
    assert isinstance(student.rules.adapter, PlainChat)
    monkeypatch.delenv("TOGETHER_API_KEY")
    with pytest.raises(PoolError, match="has no variable TOGETHER_API_KEY"):
        PreparedStudy.read(path)


def _ledger() -> Any:
    from moa_dspy.calls.budget import Ledger

    return Ledger()


def test_the_open_ended_prompts_are_those_of_their_card() -> None:
    folder = ROOT / "data" / "open_ended"
    content = (folder / "prompts.jsonl").read_bytes()
    card = (folder / "README.md").read_text("utf-8")
    assert hashlib.sha256(content).hexdigest() in card
    rows = [json.loads(line) for line in content.splitlines()]
    assert len({row["instruction"] for row in rows}) == 30
    for split, n in (("val", 13), ("test", 17)):
        assert f"`{split}` {n}" in card
        assert sum(row["split"] == split for row in rows) == n
    assert {kind for row in rows if (kind := row["kind"]) and f"`{kind}`" not in card} == set()


def test_the_open_ended_study_fits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_QWEN_05B", "/weights.gguf")
    prepared = PreparedStudy.read(ROOT / "optimize" / "open_ended.toml")
    assert [len(prepared.splits.val), len(prepared.splits.test)] == [5, 8]
    judge = prepared.study.make_search(prepared.make_pool(None, _ledger()), None).options.judge
    assert judge is not None
    assert judge.label == "PairJudge judge"

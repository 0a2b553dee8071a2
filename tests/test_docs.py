"""The pages say what is true: their code runs, their commands are the gate's, their keys exist."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from moa_dspy.agent import Agent
from moa_dspy.architecture import COMBINES
from moa_dspy.optimize import study_file
from moa_dspy.optimize import study_file as study_tables
from moa_dspy.optimize.judge_table import JudgeTable
from moa_dspy.optimize.options import DataTable, TaskTable
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.optimize.study_file import PromptsTable

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/README.md",
    "docs/combiners.md",
    "docs/design.md",
    "docs/results/README.md",
    "docs/results/collaboration.md",
    "docs/results/layers.md",
    "docs/results/limits.md",
    "docs/results/where_it_does_not.md",
    "docs/results/where_it_pays.md",
    "data/pools/README.md",
    "optimize/README.md",
    "data/quickstart/README.md",
]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, kind in vars(study_file).items():
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel:
            yield name, kind


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", text_of(page))
    missing = [
        link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_python_of_the_readme_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    blocks = re.findall(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert len(blocks) == 3
    exec(compile(blocks[number], f"README.md block {number}", "exec"), {})


def test_every_combiner_has_an_example() -> None:
    page = text_of("docs/combiners.md")
    assert [
        combine for combine in COMBINES if not re.search(rf"ask\(\"[^\"]* > {combine}", page)
    ] == []


def test_the_study_file_of_the_combiners_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", text_of("docs/combiners.md"), re.DOTALL)
    head = 'name = "s"\n' + "".join(
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\n' for name in "abcd"
    )
    task = '[task]\nsignature = "question -> answer"\nmetric = "answer_match"\n'
    data = '[data]\npath = "rows.jsonl"\ninputs = ["question"]\n'
    path = tmp_path / "study.toml"
    path.write_text(head + text.replace("[task]\n", task) + data)
    study = study_file.read_study(path)
    assert set(study.make_space(study.agents).combines) <= set(COMBINES)


def test_every_key_of_a_study_is_documented() -> None:
    page = text_of("optimize/README.md")
    keys = {key for _, kind in tables() for key in kind.model_fields}
    assert len(keys) > 30
    assert [key for key in sorted(keys) if not re.search(rf"[`.[]{key}[`\]]", page)] == []


def test_every_key_of_an_agent_is_documented() -> None:
    page = text_of("optimize/README.md")
    assert [f.name for f in fields(Agent) if f"`{f.name}`" not in page] == []


SECTIONS: dict[str, type[Any]] = {
    "Top level": study_file.StudyTables,
    "`[task]`": TaskTable,
    "`[data]`": DataTable,
    "`[calls]`": study_tables.CallsTable,
    "`[space]`": study_tables.SpaceTable,
    "`[search]`": study_tables.SearchTable,
    "`[prompts]`": PromptsTable,
    "`[judge]`": JudgeTable,
    "A pool": Agent,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_in_brackets_are_those_of_the_code(section: str) -> None:
    documented = keys_of(section)
    defaults = defaults_of(SECTIONS[section])
    tables = {"task", "data", "calls", "space", "search", "limits", "budget", "prompts", "judge"}
    assert set(documented) == set(defaults) - (tables if section == "Top level" else set())
    plain = {
        key: shown(value)
        for key, value in defaults.items()
        if key in documented and isinstance(value, bool | int | float | str)
        # Not a number: the default depends on the model.
        if value == value
    }
    wrong = {k: documented[k] for k, value in plain.items() if value not in documented[k]}
    assert wrong == {}, plain


def keys_of(section: str) -> dict[str, list[str]]:
    """Return the keys of a section's table, each with the defaults its row has in brackets."""
    body = re.split(r"^#+ ", text_of("optimize/README.md"), flags=re.MULTILINE)
    rows = next(part for part in body if part.startswith(f"{section}\n")).splitlines()
    found: dict[str, list[str]] = {}
    for row in rows:
        if cells := re.match(r"\| (`.*?`) \| (.*) \|$", row):
            brackets = re.findall(r"\[([^]]*)\]", cells[2])
            values = [v.strip("` ") for text in brackets for v in text.split(",")]
            found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[1]), values)
    return found


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.default for name, field in kind.model_fields.items()}
    return {field.name: field.default for field in fields(kind)}


def shown(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def test_the_gate_runs_the_commands_of_the_readme() -> None:
    readme, gate = text_of("README.md"), text_of(".ci/run")
    main = ".venv/bin/uv run moa-dspy optimize optimize/quickstart.toml"
    opening = "python3 -m venv .venv && .venv/bin/pip install -q uv && "
    assert opening + main in readme
    assert "\n   .venv/bin/uv run pytest\n" in readme
    assert "README.md | head -n 1" in gate, "the gate reads its commands from the README"


def test_the_tree_shows_every_room() -> None:
    rooms = [p.parent.name for p in (ROOT / "moa_dspy").glob("*/__init__.py")]
    tree = text_of("README.md").partition("## The tree")[2]
    assert [room for room in sorted(rooms) if f" {room}/ " not in tree] == []


def test_tables_are_written_from_the_results() -> None:
    for file, text in load(ROOT / "docs/make_tables.py").written().items():
        assert file.read_text("utf-8") == text, file


def test_the_own_data_of_the_readme_is_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = text_of("README.md").partition("## Your models, your data")[2]
    study = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)[0]
    assert len(study.splitlines()) == 10
    rows = "".join(f"what is {n} and 1,{n + 1}\n" for n in range(300))
    (tmp_path / "questions.csv").write_text(f"question,answer\n{rows}", "utf-8")
    (tmp_path / "mine.toml").write_text(study, "utf-8")
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, "none")
    prepared = PreparedStudy.read(tmp_path / "mine.toml")
    assert [len(prepared.splits.val), len(prepared.splits.test)] == [100, 200]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""The arrows between rooms, and the shape of the library. A new arrow is a decision, made here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moa_dspy
from tests.bench.house import House, measure

PACKAGE = Path(moa_dspy.__file__).parent  # the wheel's, where the tests run on a wheel
ALLOWED: dict[str, set[str]] = {
    "adapters": {"calls", "errors", "signatures"},
    "agent": {"errors", "files", "local", "vendors"},
    "aggregators": {"data", "prediction", "references", "signatures"},
    "architecture": {"errors"},
    "calls": {"dspy_internals", "errors", "files", "vendors"},
    "cli": {
        "adapters",
        "agent",
        "architecture",
        "calls",
        "data",
        "dspy_internals",
        "errors",
        "files",
        "local",
        "mixture",
        "optimize",
        "pool",
        "program_file",
        "serve",
        "telemetry",
        "vendors",
        "winrate",
    },
    "data": {"errors"},
    "diversity": {"errors"},
    "dspy_internals": set(),
    "errors": set(),
    "files": {"errors"},
    "judges": {"adapters", "calls", "errors", "pool", "prediction", "winrate"},
    "layers": {"architecture", "errors", "files"},
    "local": {"dspy_internals", "errors"},
    "mixture": {
        "adapters",
        "architecture",
        "errors",
        "layers",
        "plan",
        "pool",
        "prediction",
        "program_file",
        "references",
        "seats",
        "signatures",
        "telemetry",
    },
    "optimize": {
        "adapters",
        "agent",
        "aggregators",
        "architecture",
        "calls",
        "data",
        "diversity",
        "errors",
        "files",
        "judges",
        "layers",
        "mixture",
        "plan",
        "pool",
        "prediction",
        "presets",
        "program_file",
        "references",
        "seats",
        "signatures",
        "telemetry",
        "testing",
        "vendors",
        "waves",
        "winrate",
    },
    "plan": {
        "adapters",
        "agent",
        "aggregators",
        "architecture",
        "dspy_internals",
        "errors",
        "files",
        "prediction",
        "references",
        "signatures",
        "waves",
    },
    "pool": {"agent", "calls", "errors", "local", "vendors"},
    "prediction": {"calls", "references"},
    "presets": {
        "adapters",
        "agent",
        "aggregators",
        "architecture",
        "errors",
        "mixture",
        "plan",
        "pool",
        "prediction",
        "signatures",
    },
    "program_file": {
        "adapters",
        "agent",
        "architecture",
        "errors",
        "files",
        "layers",
        "references",
    },
    "references": {"errors"},
    "seats": {
        "adapters",
        "agent",
        "calls",
        "errors",
        "prediction",
        "telemetry",
        "waves",
    },
    "serve": {
        "adapters",
        "architecture",
        "calls",
        "dspy_internals",
        "errors",
        "files",
        "mixture",
        "plan",
        "pool",
        "prediction",
        "seats",
        "signatures",
    },
    "signatures": {"errors"},
    "streaming": {"adapters", "calls", "errors", "mixture", "prediction"},
    "telemetry": {"errors", "prediction"},
    "testing": {"agent", "calls", "data", "dspy_internals", "errors", "pool", "vendors"},
    "vendors": set(),
    "waves": {"aggregators", "architecture", "prediction"},
    "winrate": {"errors"},
}
PURE = [
    "architecture",
    "diversity",
    "winrate",
    "optimize/objectives",
    "optimize/votes",
]


def modules_of(room: str) -> set[str]:
    """Return the absolute modules that any file of ``room`` imports."""
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    nodes = [n for f in files for n in ast.walk(ast.parse(f.read_text(encoding="utf-8")))]
    plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_inwards(room: str) -> None:
    modules = modules_of(room)
    rooms = {m.split(".")[1] for m in modules if m.startswith("moa_dspy.")} - {room}
    assert rooms <= ALLOWED[room]
    assert "moa_dspy" not in modules, "import from the room, not from the front door"


def test_every_room_is_listed() -> None:
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(ALLOWED)


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_neither_dspy_nor_optuna(room: str) -> None:
    assert not {m.split(".")[0] for m in modules_of(room)} & {"dspy", "optuna"}


def test_only_optimize_imports_optuna() -> None:
    rooms = [r for r in ALLOWED if "optuna" in {m.split(".")[0] for m in modules_of(r)}]
    assert rooms == ["optimize"]


@pytest.mark.slow
def test_importing_the_library_stays_light() -> None:
    heavy = (
        "{'optuna', 'litellm', 'pandas', 'plotly', 'datasets', 'pyarrow', 'uvicorn', 'xllamacpp'}"
    )
    code = (
        f"import sys, moa_dspy; moa_dspy.MixtureOfAgents; print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def house() -> House:
    return measure(PACKAGE)


def test_a_file_is_a_concept_of_a_readable_size(house: House) -> None:
    assert house.files <= 150
    assert house.median_lines >= 150
    assert house.max_lines <= 450, house.longest_file
    assert house.max_function_lines <= 60, house.longest_function


def test_imports_are_few_floors_and_no_circle(house: House) -> None:
    assert house.circles == ()
    assert len(house.longest_chain) <= 20, " > ".join(house.longest_chain)


def test_one_name_is_one_thing(house: House) -> None:
    assert house.duplicate_names == {}


def test_docstrings_say_what_is_there(house: House) -> None:
    assert house.riddles == ()

"""Which room may import which; a new arrow is a decision, so it is made here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "moa_dspy"
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "notation": {"errors"},
    "architecture": {"errors", "notation"},
    "signatures": set(),
    "diversity": {"errors"},
    "winrate": {"errors"},
    # Judges ask models; winrate only counts what they said.
    "judges": {"errors", "calls", "adapters", "data", "pool", "winrate", "response"},
    "data": {"errors"},
    "local": {"errors"},
    "calls": {"errors", "threads"},
    "toml_file": {"errors"},
    "agent": {"errors", "toml_file", "local"},
    "agent_lm": {"errors", "agent", "calls", "local"},
    "adoption": {"agent", "agent_lm", "calls"},
    "pool": {"errors", "adoption", "agent", "agent_lm", "calls"},
    "adapters": {"errors", "signatures"},
    "references": {"errors"},
    "response": {"references"},
    "prediction": {"response"},
    "threads": set(),
    "aggregators": {"errors", "references", "response", "signatures", "data"},
    "seats": {"errors", "aggregators", "calls", "pool", "response", "threads"},
    "reader": {"adapters", "pool", "references", "response", "signatures"},
    "plan": {
        "errors",
        "architecture",
        "aggregators",
        "pool",
        "reader",
        "references",
        "response",
    },
    "given": {"errors", "architecture", "pool"},
    "layer": set(),
    "mixture": {
        "errors",
        "architecture",
        "given",
        "layer",
        "pool",
        "plan",
        "prediction",
        "references",
        "response",
        "saving",
        "seats",
        "signatures",
        "aggregators",
    },
    # A mixture can be asked to load: the only arrow upwards, taken when it is asked.
    "saving": {"errors", "pool", "program_file"},
    "listener": {"adapters", "errors", "mixture"},
    "sequence": {
        "aggregators",
        "errors",
        "plan",
        "pool",
        "prediction",
        "reader",
        "response",
        "seats",
        "signatures",
    },
    "presets": {"adapters", "architecture", "errors", "mixture", "pool", "sequence"},
    "optimize": {
        "errors",
        "architecture",
        "calls",
        "pool",
        "adapters",
        "aggregators",
        "mixture",
        "plan",
        "prediction",
        "references",
        "seats",
        "signatures",
        "winrate",
        "judges",
        "diversity",
        "data",
        "toml_file",
        "response",
        "program_file",
    },
    "testing": {"calls", "pool"},
    "replay": {"errors", "data", "calls", "pool"},
    "version": set(),
    "program_file": {
        "errors",
        "architecture",
        "pool",
        "adapters",
        "layer",
        "mixture",
        "references",
        "toml_file",
        "version",
    },
    "progress_view": {"optimize"},
    "cli": {
        "errors",
        "architecture",
        "pool",
        "mixture",
        "calls",
        "local",
        "optimize",
        "program_file",
        "progress_view",
        "version",
    },
}
PURE = [
    "architecture",
    "notation",
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


def test_importing_the_library_stays_light() -> None:
    heavy = (
        "{'optuna', 'litellm', 'pandas', 'plotly', 'datasets', 'pyarrow', 'uvicorn', 'xllamacpp'}"
    )
    code = (
        f"import sys, moa_dspy; moa_dspy.MixtureOfAgents; print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import moa_dspy

ROOT = Path(moa_dspy.__file__).parent
INTERNALS = ("dspy._vendor", "dspy.clients", "dspy.lm15")
DOOR = "dspy_internals.py"


def imported(source: str) -> Iterator[str]:
    """Yield every module that ``source`` imports, or imports a name of, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def internals(source: str) -> list[str]:
    return [
        name
        for name in imported(source)
        if f"{name}.".startswith(tuple(f"{i}." for i in INTERNALS))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "from dspy import lm15",
        "import dspy._vendor.lm15",
        "def f():\n  from dspy.clients.errors import x",
    ],
)
def test_an_import_of_an_internal_module_is_seen(source: str) -> None:
    assert len(internals(source)) == 1


def test_one_module_alone_imports_what_is_internal_to_dspy() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): internals(path.read_text())
        for path in ROOT.rglob("*.py")
    }
    assert [name for name, imports in found.items() if imports] == [DOOR]


def test_every_import_of_an_internal_says_why_it_is_needed() -> None:
    lines = (ROOT / DOOR).read_text().splitlines()
    places = [n for n, line in enumerate(lines) if line.startswith(("from dspy", "import dspy"))]
    assert len(places) > 10
    for n in places:
        assert lines[n - 1].startswith("# "), lines[n]

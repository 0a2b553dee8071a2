"""No message shows "None" for what is missing: what may be absent has another text beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import moa_dspy

PACKAGE = Path(moa_dspy.__file__).parent


def shown() -> Iterator[tuple[str, ast.expr]]:
    """Yield what the texts of the library fill in, each with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FormattedValue):
                yield f"{path.relative_to(PACKAGE)}:{node.value.lineno}", node.value


def may_be_none(value: ast.expr) -> bool:
    """Return whether a value is None where a key is absent, or an error has no number."""
    if isinstance(value, ast.Attribute):
        return value.attr == "strerror"
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return value.func.attr == "get" and len(value.args) == 1
    return False


def test_what_may_be_absent_is_not_shown_as_none() -> None:
    found = list(shown())
    assert len(found) > 1000
    assert [place for place, value in found if may_be_none(value)] == []


def test_the_check_sees_what_it_looks_for() -> None:
    for text in ('f"{error.strerror}"', "f\"{row.get('id')!r}\""):
        (node,) = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FormattedValue)]
        assert may_be_none(node.value)

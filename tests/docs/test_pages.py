"""Quoted errors exist, the report's words are explained, and public names lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import moa_dspy
from moa_dspy.optimize.page import LABELS
from moa_dspy.optimize.report import ORDER, TABLE_COLUMNS
from tests.docs.blocks import ROOT

PACKAGE = Path(moa_dspy.__file__).parent
ANY = "\x00"


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts in a module's code; what is filled in is ``ANY``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


KNOWN = sorted(
    {text for path in PACKAGE.rglob("*.py") for text in texts_of(path) if len(text) > 15}
)


def quoted() -> list[str]:
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    return [" ".join(text.split()) for text in re.findall(r"^> (.*)$", page, re.MULTILINE)]


def patterns_of(text: str) -> Iterator[re.Pattern[str]]:
    """Yield what a text of the code looks like where it is quoted, whole or without its end."""
    parts = [" ".join(part.split()) for part in text.split(ANY)]
    for n in range(1, len(parts) + 1):
        if sum(map(len, parts[:n])) > 15:
            shown = r"\s*\S.*?\s*".join(map(re.escape, parts[:n])).strip()
            yield re.compile(shown if n == len(parts) else rf"{shown}(?:\s*\S.*)?")


PATTERNS = [pattern for text in KNOWN for pattern in patterns_of(text)]


@pytest.mark.parametrize("message", quoted())
def test_an_error_that_is_quoted_is_in_the_code(message: str) -> None:
    assert any(pattern.fullmatch(message) for pattern in PATTERNS)


def test_many_errors_are_explained() -> None:
    assert len(quoted()) == len(set(quoted())) >= 30


STOP = re.findall(
    r"\w+",
    """
a all alone and anew are as at before best by each else everything found from in is it its many
of on one other per several that the this to tried was what whatever which with row run repeat
after together minus costs matter money paid none whole
""",
)
"""Words of headings that are plain English here."""


def headings() -> str:
    folder = PACKAGE / "optimize" / "templates"
    markdown = (folder / "report.md.j2").read_text("utf-8")
    html = (folder / "report.html.j2").read_text("utf-8")
    found = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    found += re.findall(r"^\| ([a-z].*)\|$", markdown, re.MULTILINE)
    found += re.findall(r"<(?:h[1-3]|th|dt|summary)[^>]*>(.*?)</", html)
    columns = [column.head for column in TABLE_COLUMNS.values()]
    text = " ".join([*found, *columns, *LABELS.values(), *ORDER, *LABELS])
    return re.sub(r"\{[{%].*?[%}]\}|<[^>]*>?", " ", text)


def test_every_word_of_the_reports_headings_is_in_the_glossary() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text("utf-8").lower()
    words = {word.lower() for word in re.findall(r"[A-Za-z_][\w-]*", headings())}.difference(STOP)
    assert {"verdict", "optimism", "oracle"} & set(re.findall(r"\w+", glossary))
    unknown = [
        word
        for word in sorted(words)
        if len(word) > 1 and not re.search(rf"\b{re.escape(word.rstrip('s'))}", glossary)
    ]
    assert unknown == []


def test_every_public_name_of_a_room_is_there() -> None:
    for path in sorted(PACKAGE.rglob("__init__.py")):
        name = ".".join(["moa_dspy", *path.parent.relative_to(PACKAGE).parts])
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.{public}"

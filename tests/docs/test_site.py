"""The site is built without a warning: its links, anchors and references lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.docs.blocks import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Strict: a warning of a link, an anchor, a page or a docstring ends the build.
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def test_pages_of_code_are_generated(site: Path) -> None:
    assert "--usd-per-day" in text_of(site / "reference/cli.html")
    python = text_of(site / "reference/python.html")
    assert 'id="moa_dspy.mixture.MixtureOfAgents"' in python
    assert "deadline_seconds" in python
    assert "must_include" in text_of(site / "reference/study_files.html")
    assert "Keep the single model" in text_of(site / "notebooks/layers.html")


def test_no_page_asks_another_server(site: Path) -> None:
    asked = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["'](https?://[^"']+)""")
    found = {url for page in site.rglob("*.html") for url in asked.findall(text_of(page))}
    assert found == set()


def test_no_list_or_table_is_swallowed_by_a_paragraph(site: Path) -> None:
    swallowed = re.compile(r"<p>(?:(?!</p>).)*\n(?:- |\* |\| ---|\d+\. )", re.DOTALL)
    pages = [page for page in site.rglob("*.html") if swallowed.search(text_of(page))]
    assert [page.relative_to(site).as_posix() for page in pages] == []


def test_no_path_of_this_machine_is_shown(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if str(ROOT) in text_of(page)]
    assert pages == []

"""The blocks of code of a page, in their order, and what is to be done with each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<attributes>[^\n]*)\n(?P<text>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"<!-- (not run|beside|fails): ?(.*?) -->\s*$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path of the page in the repository.
        line: Where the block begins.
        language: What stands behind the fence.
        text: What is in the block.
        title: The file that the block is; None is no file.
        mark: ``not run``, ``beside`` (a server that goes on while the rest runs) or ``fails``.
        said: Why it is not run, or the address that answers when the server is up.
    """

    page: str
    line: int
    language: str
    text: str
    title: str | None = None
    mark: str | None = None
    said: str = ""

    @property
    def runs(self) -> bool:
        """Whether the block is code that the tests run."""
        return self.language in ("python", "sh") and self.mark != "not run"


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = (ROOT / page).read_text("utf-8")
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        title = _TITLE.search(match["attributes"])
        lines = match["text"].splitlines(keepends=True)
        yield Block(
            page=page,
            line=text[: match.start()].count("\n") + 1,
            language=match["language"],
            text="".join(line.removeprefix(match["indent"]) for line in lines),
            title=title[1] if title else None,
            mark=mark[1] if mark else None,
            said=mark[2] if mark else "",
        )


def pages() -> list[str]:
    """Return the pages with code of the documentation, results apart."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    own = [path.relative_to(ROOT).as_posix() for path in found]
    more = ["README.md", "CONTRIBUTING.md", "optimize/README.md", "tests/bench/README.md"]
    cards = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("data/*/README.md"))]
    return [*own, *more, *cards]

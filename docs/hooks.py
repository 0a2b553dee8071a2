"""The pages of the site that are no files of ``docs/``, and links that leave ``docs/``.

MkDocs calls the functions ``on_*``. Pages of other folders are shown as they are; the references
of the command line and of Python are generated from the code, the pages of notebooks from the
notebooks. A link to a file of the repository leads to a copy of that file in the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parent.parent
SHOWN: Final = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "data/checkable/README.md": "data/checkable.md",
    "data/open_ended/README.md": "data/open_ended.md",
    "data/pools/README.md": "data/pools.md",
    "data/quickstart/README.md": "data/quickstart.md",
    "data/recorded/README.md": "data/recorded.md",
    "optimize/README.md": "reference/study_files.md",
    "tests/bench/README.md": "benchmarks.md",
}
"""Pages of other folders, and where the site has them."""
ROOMS: Final = {
    "adapters": "Messages from a question and its references.",
    "calls": "The call store, budgets, recordings.",
    "data": "Rows, splits, metrics, the paper's benchmarks, recorded answers.",
    "diversity": "How different responses are.",
    "judges": "Programs that say who answered better, or how well.",
    "optimize": "The search and what it returns.",
    "serve": "A mixture as the language model of a DSPy program.",
    "testing": "Agents that reply by script, for tests and examples.",
    "winrate": "Intervals, tests and verdicts.",
}
"""Rooms with public names beside those of ``moa_dspy`` itself."""
_LINK: Final = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of ``docs/``, and the files that pages link to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    generated = {
        **{path: (ROOT / source).read_text("utf-8") for source, path in SHOWN.items()},
        "reference/cli.md": cli_page(),
        **dict(python_pages()),
        **dict(notebook_pages()),
    }
    for path, text in generated.items():
        files.append(File.generated(config, path, content=text))
    texts |= {source: generated[path] for source, path in SHOWN.items()}
    for target in sorted({file for page in texts.items() for file in _files_linked(*page)}):
        content = (ROOT / target).read_bytes()
        files.append(File.generated(config, f"files/{target}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages and files of the site."""
    path = page.file.src_uri
    sources = {place: source for source, place in SHOWN.items()}
    return linked(markdown, source=sources.get(path, f"docs/{path}"), path=path)


def linked(markdown: str, *, source: str, path: str) -> str:
    """Return a page's text with its links made for the site.

    Args:
        markdown: The text.
        source: The file of the repository that it is in.
        path: Its place in the site.
    """

    def to_site(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if not target or "://" in match[2]:
            return match[0]
        file = _in_repository(source, target)
        if (ROOT / file).is_dir():
            return match[1].strip("![]")  # a folder without a page: its name stays
        place = _place(file)
        return f"{match[1]}({posixpath.relpath(place, posixpath.dirname(path))}{mark}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if n % 2 else _LINK.sub(to_site, part) for n, part in enumerate(parts))


def _in_repository(source: str, target: str) -> str:
    """Return the path in the repository of a link's target; of a folder, its page."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def _place(target: str) -> str:
    if target in SHOWN:
        return SHOWN[target]
    inside = target.removeprefix("docs/")
    return inside if inside != target and not target.endswith(".py") else f"files/{target}"


def _files_linked(source: str, text: str) -> Iterator[str]:
    for part in _FENCE.split(text)[::2]:
        for match in _LINK.finditer(part):
            target = match[2].partition("#")[0]
            if target and "://" not in target:
                file = _in_repository(source, target)
                if _place(file).startswith("files/") and (ROOT / file).is_file():
                    yield file


def cli_page() -> str:
    """Return the reference of the command line, as the commands themselves print it."""
    import typer.main
    from typer.cli import get_docs_for_click

    from moa_dspy.cli import app

    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="moa-dspy")
    text = get_docs_for_click(obj=command, ctx=context, name="moa-dspy", title="The command line")
    # The list repeats the headings below it, cut short.
    text = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n", "", text)
    return (
        text.replace("`moa-dspy ", "`")
        .replace("```console\n$ ", "```text\nmoa-dspy ")
        .replace("moa-dspy moa-dspy ", "moa-dspy ")
    )


def python_pages() -> Iterator[tuple[str, str]]:
    """Yield the pages of public names: path and text."""
    top = import_module("moa_dspy")
    yield "reference/python.md", _names_page("moa_dspy", "What `moa_dspy` has", "", top.__all__)
    for room, about in ROOMS.items():
        module = import_module(f"moa_dspy.{room}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        ]
        own = [name for name in names if name not in top.__all__]
        yield f"reference/{room}.md", _names_page(module.__name__, f"`moa_dspy.{room}`", about, own)


def _names_page(module: str, title: str, about: str, names: list[str]) -> str:
    room, parts = import_module(module), [f"# {title}", about]
    for name in sorted(names, key=str.lower):
        value = getattr(room, name)
        home = getattr(value, "__module__", "")
        # Constants and names of types have no page: the code that uses them explains them.
        if home.startswith("moa_dspy") and isinstance(getattr(value, "__qualname__", None), str):
            parts.append(f"::: {home}.{name}")
    return "\n\n".join(part for part in parts if part) + "\n"


def notebook_pages() -> Iterator[tuple[str, str]]:
    """Yield the pages of the notebooks: path and text."""
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        yield (
            f"notebooks/{path.stem}.md",
            notebook_text(nbformat.read(path, as_version=4), path.name),
        )


def notebook_text(notebook: Mapping[str, Any], name: str) -> str:
    """Return a notebook as a page: its texts, its code, and what the code printed."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(f"```python\n{cell['source']}\n```")
        printed = "".join(output.get("text", "") for output in cell["outputs"]).rstrip()
        if printed:
            parts.append(f"```text\n{printed}\n```")
    first, *rest = parts
    return "\n\n".join([first, f"[The notebook]({name})", *rest]) + "\n"

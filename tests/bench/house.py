"""The shape of the library: files, lines, functions, imports, names and docstrings.

    uv run python tests/bench/house.py [--json] [--package DIR] [--walks]

With ``--walks`` it also counts the files that run when a mixture is asked and in a study, see
``walks.py``; that takes a minute.
Imports are counted as they are written: those inside functions and under ``TYPE_CHECKING`` too.
``tests/test_rooms.py`` holds the library to the limits.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import moa_dspy

PACKAGE = Path(moa_dspy.__file__).parent
RIDDLE = re.compile(r"(What|Who|How|Whether|Whose|Where|When|Why)\b")


@dataclass(frozen=True, slots=True)
class House:
    """The measurements; lines are those of files, blank ones and comments included."""

    files: int
    lines: int
    median_lines: float
    p90_lines: float
    max_lines: int
    longest_file: str
    max_function_lines: int
    longest_function: str
    longest_chain: tuple[str, ...]
    circles: tuple[tuple[str, ...], ...]
    duplicate_names: Mapping[str, tuple[str, ...]]
    riddles: tuple[str, ...]


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


def modules_of(package: Path) -> dict[str, Path]:
    """Return every module of a package by its dotted name."""
    files = sorted(package.rglob("*.py"))
    named = {".".join(f.relative_to(package.parent).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the absolute names that a file imports, ``module`` and ``module.name`` alike."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: Path) -> dict[str, set[str]]:
    """Return which module imports which; the package's own front door is left out."""
    modules = modules_of(package)
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        named = {module for module in imports_of(path) if module in modules}
        # `from room import file` names both; the arrow is to the file.
        rooms = {
            module for module in named if any(other.startswith(f"{module}.") for other in named)
        }
        used = {module for module in rooms if _takes_names_of(path, module, modules)}
        found[name] = named - (rooms - used) - {package.name}
    found.pop(package.name, None)
    return found


def _takes_names_of(path: Path, room: str, modules: Mapping[str, Path]) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == room
        and any(f"{room}.{alias.name}" not in modules for alias in node.names)
        for node in ast.walk(parsed(path))
    )


def circles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Return every set of modules that import each other, or one that imports itself (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_ones: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        open_ones.append(module)
        for other in graph.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in open_ones:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = open_ones.index(module)
            if len(open_ones) - place > 1 or module in graph.get(module, ()):
                found.append(tuple(sorted(open_ones[place:])))
            del open_ones[place:]

    for start in graph:
        if start not in index:
            visit(start)
    return found


def longest_chain(graph: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Return the longest path of imports, from the outermost module to the innermost.

    Modules of a circle are counted once each, so the answer is exact without circles.
    """
    known: dict[str, tuple[str, ...]] = {}

    def below(module: str, above: frozenset[str]) -> tuple[str, ...]:
        if module not in known:
            fresh = (other for other in sorted(graph.get(module, ())) if other not in above)
            chains = [below(other, above | {module}) for other in fresh]
            known[module] = (module, *max(chains, key=len, default=()))
        return known[module]

    return max((below(module, frozenset({module})) for module in graph), key=len, default=())


def duplicate_names(package: Path) -> dict[str, tuple[str, ...]]:
    """Return the public top-level names that more than one module defines."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, path in modules_of(package).items():
        for name in _defined(parsed(path)):
            places[name].append(module)
    public = {name: where for name, where in places.items() if not name.startswith("_")}
    return {name: tuple(where) for name, where in public.items() if len(where) > 1}


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def riddles(package: Path) -> list[str]:
    """Return the modules and classes whose docstring opens with a question word."""
    found = []
    for module, path in modules_of(package).items():
        tree = parsed(path)
        named = {f"{module}.{n.name}": n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
        texts = {
            module: ast.get_docstring(tree),
            **{k: ast.get_docstring(n) for k, n in named.items()},
        }
        found += [name for name, text in texts.items() if RIDDLE.match(text or "")]
    return found


def functions(package: Path) -> Iterator[tuple[int, str]]:
    """Yield every function's lines and name."""
    for module, path in modules_of(package).items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module}.{node.name}"


def measure(package: Path = PACKAGE) -> House:
    """Measure a package."""
    sizes = {
        name: len(f.read_text("utf-8").splitlines()) for name, f in modules_of(package).items()
    }
    lines = sorted(sizes.values())
    graph = arrows(package)
    longest, function = max(functions(package))
    return House(
        files=len(lines),
        lines=sum(lines),
        median_lines=median(lines),
        p90_lines=quantiles(lines, n=10)[-1],
        max_lines=lines[-1],
        longest_file=max(sizes, key=lambda name: sizes[name]),
        max_function_lines=longest,
        longest_function=function,
        longest_chain=longest_chain(graph),
        circles=tuple(circles(graph)),
        duplicate_names=duplicate_names(package),
        riddles=tuple(riddles(package)),
    )


def _lines(house: House) -> Iterator[str]:
    shown: dict[str, Any] = asdict(house)
    chain = shown.pop("longest_chain")
    yield from (f"{name:>20}: {value}" for name, value in shown.items())
    yield f"{'longest_chain':>20}: {len(chain)}: {' > '.join(chain)}"


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--package", type=Path, default=PACKAGE)
    parser.add_argument("--walks", action="store_true")
    asked = parser.parse_args()
    house = measure(asked.package.resolve())
    walked: dict[str, dict[str, Any]] = {}
    if asked.walks:
        # A script's own folder is on the path, this checkout is not.
        sys.path.insert(0, str(Path(__file__).parent.parent.parent))
        from tests.bench.walks import walks

        walked = walks()
    if asked.json:
        print(json.dumps({**asdict(house), **({"walks": walked} if walked else {})}, indent=1))
        return
    print("\n".join(_lines(house)))
    for name, row in walked.items():
        print(
            f"{name:>20}: {row['n_files']} files, {row['n_hops']} hops: {', '.join(row['files'])}"
        )


if __name__ == "__main__":
    main()

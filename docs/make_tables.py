"""Writes the tables and the picture of the pages from what runs stored in `docs/results`.

    uv run python docs/make_tables.py          # rewrites what stands between the markers
    uv run python docs/make_tables.py --check  # exit code 1 if a page would change

A page marks a table with `<!-- result:NAME -->` and `<!-- /result -->`, where NAME is a file of
`docs/results`, or with `<!-- table:NAME -->` and `<!-- /table -->`, where NAME is one of
`evidence_tables.TABLES`. So no number in these tables is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BENCH: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bench_tables.py")))
EVIDENCE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("evidence_tables.py")))
CARD = ROOT / "data/quickstart/README.md"
EVIDENCE_PAGES = ("where_it_pays", "where_it_does_not", "collaboration", "layers", "limits")
PAGES = (
    ROOT / "README.md",
    ROOT / "docs/results/README.md",
    ROOT / "docs/selection.md",
    ROOT / "docs/concepts.md",
    *(ROOT / "docs/results" / f"{name}.md" for name in EVIDENCE_PAGES),
    ROOT / "docs/combiners.md",
    ROOT / "docs/statistics.md",
    CARD,
)
_BLOCK = re.compile(r"(<!-- result:([\w-]+) -->\n).*?(<!-- /result -->)", re.DOTALL)
_TABLE = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
_DIFFICULTY = re.compile(r"(<!-- difficulty -->\n).*?(<!-- /difficulty -->)", re.DOTALL)
_TITLES = {
    "pick": "the search's pick",
    "best_single": "best single agent",
    "self_moa": "Self-MoA",
    "top_k": "top-k",
    "random": "random search, equal trials",
    "oracle": "oracle (ceiling)",
}


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table of one result, and its verdict."""
    lines = [
        "| system | who | test score | pick minus row | calls per question |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_line(row, result["differences"].get(name)) for name, row in result["test"].items()]
    facts = (
        f"Optimism of the val score: {100 * result['optimism']:.1f} points. "
        f"{len(result['trials'])} architectures measured; the space has {result['space_size']:,}. "
        "In brackets: intervals, 95 % of scores; "
        f"of differences {_level(result)} %, "
        "that of the best single agent as the verdict tests it, those of other rows all at once."
    )
    verdicts = [result.get("cost_verdict"), result["verdict"]]
    quotes = [f"> {verdict['text']}" for verdict in verdicts if verdict is not None]
    return "\n".join([*lines, "", facts, "", "\n>\n".join(quotes), ""])


def _level(result: dict[str, Any]) -> str:
    return f"{100 * result['verdict']['interval']['confidence']:.3g}"


def _line(row: dict[str, Any], gap: dict[str, float] | None) -> str:
    system = f"`{row['architecture']}`" if row["architecture"] else row["note"]
    if row["score"] is None:
        return f"| {_TITLES[row['name']]} | {system} | not run: {row['note']} | | |"
    score = f"{100 * row['score']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    calls = "" if row["calls"] is None else f"{row['calls']:.1f}"
    shown = "" if gap is None else BENCH["interval"](gap)
    return f"| {_TITLES[row['name']]} | {system} | {score} | {shown} | {calls} |"


def rendered(page: str) -> str:
    """Return the text of a page with every marked table written anew."""

    def fill(match: re.Match[str]) -> str:
        path = ROOT / "docs/results" / f"{match[2]}.json"
        if not path.is_file():  # not run yet: the page keeps what it has
            return match[0]
        printed = json.loads(path.read_text("utf-8"))
        kinds = (write for key, write in BENCH["KINDS"].items() if key in printed)
        return match[1] + next(kinds, table)(printed) + match[3]

    page = _TABLE.sub(lambda match: match[1] + EVIDENCE["TABLES"][match[2]]() + match[3], page)
    return _DIFFICULTY.sub(lambda match: match[1] + difficulty() + match[2], _BLOCK.sub(fill, page))


def written() -> dict[Path, str]:
    """Return every page, and the picture, as it should stand in its file."""
    pages = {page: rendered(page.read_text("utf-8")) for page in PAGES}
    return pages | {EVIDENCE["FIGURE"]: EVIDENCE["figure"]()}


def difficulty() -> str:
    """Return how often each agent alone was right on the quickstart's val rows, by family."""
    recording = json.loads((CARD.parent / "recording.json").read_text("utf-8"))
    families = recording["right_on_val"]
    names = list(families["all"])
    lines = [f"| family | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for family in sorted(families, key=lambda family: (family == "all", family)):
        shares = " | ".join(f"{families[family][name]:.2f}" for name in names)
        lines.append(f"| {family} | {shares} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    pages = written()
    stale = [file for file in pages if not file.is_file() or file.read_text("utf-8") != pages[file]]
    for file in stale:
        print(f"{file.relative_to(ROOT)}: {'stale' if options.check else 'written'}")
        if not options.check:
            file.write_text(pages[file], "utf-8")
    sys.exit(int(bool(stale) and options.check))


if __name__ == "__main__":
    main()

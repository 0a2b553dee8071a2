"""Tables of what small models made of others' answers, live or recorded; see `make_tables.py`."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"


def stored(name: str) -> Any:
    """Return what a run stored under a name."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def read_by_weak() -> str:
    """Return what the weak aggregator makes of answers that are better than its own."""
    run = stored("weak_aggregator")
    heads = ["architecture", "score on val", "rows until it was stopped"]
    trials = sorted(run["trials"], key=lambda trial: -trial["score"])
    lines = [
        [
            f"`{trial['architecture']}`",
            f"{100 * trial['score']:.1f} %",
            f"{trial['rows']}" + (", stopped" if trial["is_stopped_early"] else ", all"),
        ]
        for trial in trials
    ]
    return _table(heads, lines)


def syntheses() -> str:
    """Return each recorded synthesis beside a vote of the same answers."""
    runs = stored("layers")["syntheses"]
    heads = ["architecture", "layers", "score", "minus its aggregator alone"]
    heads += ["minus the vote of the same answers", "minus the best single", "calls"]
    lines = [
        [
            f"`{run['architecture']}`",
            str(run["depth"]),
            _triple(run["score"]),
            *(_gap(run["minus"][name]) for name in ("aggregator", "vote", "best")),
            f"{run['calls']:.1f}",
        ]
        for run in sorted(runs, key=lambda run: -run["score"][0])
    ]
    note = f"{runs[0]['rows']} questions, paired intervals of 95 %, in points."
    return f"{_table(heads, lines)}\n{note}\n"


def sets() -> str:
    """Return what each aggregator makes of every set, by the strongest model that it reads."""
    runs = stored("layers")["sets"]
    groups = dict.fromkeys((run["aggregator"], run["reads"]) for run in runs)
    heads = ["aggregator", "the strongest it reads is", "sets"]
    for rival in ("itself alone", "the vote"):
        heads += [f"better than {rival}", "worse", "mean difference", "largest"]
    lines = []
    for aggregator, reads in groups:
        group = [r for r in runs if (r["aggregator"], r["reads"]) == (aggregator, reads)]
        cells = [f"`{aggregator}`", reads, str(len(group))]
        for rival in ("aggregator", "vote"):
            cells += _difference_cells([run["minus"][rival] for run in group])
        lines.append(cells)
    above = sum(run["minus"]["best"]["low"] > 0 for run in runs)
    note = (
        f"{len(runs)} syntheses, each on the same {runs[0]['rows']} questions; better and worse: "
        "the 95 % interval of the paired difference is above or below 0, differences in points. "
        f"Better than the best single agent: {above} of {len(runs)}."
    )
    return f"{_table(heads, lines)}\n{note}\n"


def _difference_cells(gaps: Sequence[Run]) -> list[str]:
    """Return how many differences are shown to be above and below 0, their mean, the largest."""
    above = sum(gap["low"] > 0 for gap in gaps)
    below = sum(gap["high"] < 0 for gap in gaps)
    estimates = [100 * gap["estimate"] for gap in gaps]
    mean = sum(estimates) / len(estimates)
    return [str(above), str(below), f"{mean:+.1f}", f"{max(estimates):+.1f}"]


def published() -> str:
    """Return the published win rates of the paper's mixtures and of models they are made of."""
    rows = stored("layers").get("published", [])
    heads = ["system", "win rate", "length-controlled win rate", "standard error of the win rate"]
    lines = [
        [
            f"**{row['model']}**" if "MoA" in row["model"] else row["model"],
            f"{float(row['win_rate']):.1f} %",
            f"{float(row['length_controlled_winrate']):.1f} %",
            f"{float(row['standard_error']):.1f}",
        ]
        for row in rows
    ]
    return _table(heads, lines)


def judge() -> str:
    """Return the diagnostics of the live judge, and its warnings as the report words them."""
    run = stored("open_ended")
    diagnostics, costs = run["judge"]["diagnostics"], run["judge"]["costs"]
    calls = sum(cost["calls"] for cost in costs.values())
    mixtures = [trial for trial in run["trials"] if " > " in trial["architecture"]]
    facts = [
        ("mixtures that it judged on val", str(len(mixtures))),
        ("pairs judged, in both orders", str(diagnostics["judged"])),
        ("verdicts that it could not be read from", str(diagnostics["unparsable"])),
        ("same verdict with the places swapped", _spread(diagnostics["consistency"])),
        ("preference for what it is shown first, points", _gap(diagnostics["first_advantage"])),
        ("rank correlation with length", _plain(diagnostics["length"])),
        ("calls of the judge, of all", f"{calls} of {run['calls']['made']}"),
        ("seconds of the study", f"{run['seconds']:,.0f}"),
    ]
    warnings = "\n".join(f"> - {text}" for text in run["judge"]["warnings"])
    return f"{_table(['judge', 'found'], facts)}\n{warnings}\n"


def collaborating() -> str:
    """Return how often reading helps and hurts, by the prompt and by whose answers are read."""
    conditions: list[Run] = stored("collaboration")["conditions"]
    rows = [row for row in conditions if row["n"]]
    heads = ["prompt", "reads", "conditions", "better than alone", "worse", "not shown"]
    lines = []
    for layout, kind in sorted({(row["layout"], row["references"]) for row in rows}):
        like = [row for row in rows if (row["layout"], row["references"]) == (layout, kind)]
        gains = [row["gain"] for row in like]
        above = sum(low > 0 for _, low, _ in gains)
        below = sum(high < 0 for _, _, high in gains)
        mean = sum(estimate for estimate, _, _ in gains) / len(gains)
        counts = (len(gains), above, below, len(gains) - above - below)
        lines.append([layout, kind, *map(str, counts), f"{100 * mean:+.1f} points"])
    note = "Better and worse: the 95 % interval of the paired difference is above or below 0."
    notes = f"{note}\n{_prompts(rows)}\n{_below_the_stronger(conditions)}"
    return f"{_table([*heads, 'mean difference'], lines)}\n{notes}\n"


def _prompts(rows: Sequence[Run]) -> str:
    """Return how the two prompts compare where both were measured, by whose answers are read."""
    scores: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for row in rows:
        like = scores.setdefault(row["references"], {})
        condition = row["tasks"], row["architecture"]
        like.setdefault(condition, {})[row["layout"]] = row["score"][0]
    parts = []
    for kind in sorted(scores):
        both = [found for found in scores[kind].values() if len(found) == 2]
        gaps = [found["paper"] - found["guarded"] for found in both]
        if gaps:
            parts.append(f"{kind} {100 * sum(gaps) / len(gaps):+.1f} points ({len(gaps)})")
    said = ", ".join(parts) or "none"
    return f"The paper's prompt minus the default one, in conditions measured with both: {said}."


@cache
def _program() -> dict[str, Any]:
    """Return the names of the program that measures collaborativeness."""
    return runpy.run_path(str(ROOT / "optimize/collaboration.py"))


def _below_the_stronger(rows: Sequence[Run]) -> str:
    """Return how often a reader of a stronger model scores below that model alone."""
    alone = {(row["tasks"], row["reader"]): row["score"][0] for row in rows if not row["n"]}
    ladder = _program()["LADDER"]
    pairs = [
        (row["score"][0], alone[row["tasks"], ladder[ladder.index(row["reader"]) + 1]])
        for row in rows
        if row["references"] == "stronger"
    ]
    below = sum(score < best for score, best in pairs)
    return f"{below} of {len(pairs)} readers of a stronger model score below that model alone."


def cut() -> str:
    """Return how many of the planned conditions were measured, by task set, prompt and reader."""
    plan = _program()
    done = {
        (row["tasks"], row["layout"], row["architecture"])
        for row in stored("collaboration")["conditions"]
    }
    heads = ["tasks", "prompt", *(f"`{reader}`" for reader in plan["LADDER"])]
    lines = []
    for layout in plan["LAYOUTS"]:
        for tasks in plan["TASKS"]:
            cells = []
            for reader in plan["LADDER"]:
                planned = [p for group in plan["conditions"](reader, plan["COUNTS"]) for p in group]
                had = sum((tasks, layout, point.architecture) in done for point in planned)
                cells.append(f"{had} of {len(planned)}")
            lines.append([tasks, layout, *cells])
    return _table(heads, lines)


def _spread(interval: Run | None) -> str:
    if interval is None:
        return "unknown"
    low, high = 100 * interval["low"], 100 * interval["high"]
    return f"{100 * interval['estimate']:.0f} % [{low:.0f}, {high:.0f}]"


def _plain(interval: Run | None) -> str:
    if interval is None:
        return "unknown"
    return f"{interval['estimate']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"


def _triple(bounds: Sequence[float]) -> str:
    middle, low, high = (f"{100 * value:.1f}" for value in bounds)
    return f"{middle} % [{low}, {high}]"


def _gap(interval: Run | None) -> str:
    if interval is None:
        return ""
    low, high = 100 * interval["low"], 100 * interval["high"]
    return f"{100 * interval['estimate']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    shown = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "collaborating": collaborating,
    "cut": cut,
    "judge": judge,
    "published": published,
    "read_by_weak": read_by_weak,
    "syntheses": syntheses,
    "sets": sets,
}
"""By the name between a page's markers."""

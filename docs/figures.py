"""The picture of accuracy against price, drawn from the stored runs; see `make_tables.py`.

It is an SVG with a background of its own, which follows the reader's light or dark setting: text
and ground change together, so that it is readable on either page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from textwrap import wrap
from typing import Any

Run = Mapping[str, Any]
WIDTH, HEIGHT = 820, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 74, 54
LEAST = 0.40
"""Lowest accuracy that is drawn; the weaker models are counted in the title's second line."""
STYLE = """
    .ground { fill: #ffffff; } .axis { stroke: #c4cad3; } .grid { stroke: #e8ebef; }
    text { fill: #24292f; font: 13px Helvetica, Arial, sans-serif; }
    .small { font-size: 11px; fill: #57606a; } .head { font-size: 15px; font-weight: bold; }
    .dear { fill: #8a94a3; } .cheap { fill: #2f6fbf; } .vote { fill: #1a7f37; }
    .label { font-size: 11px; } .bold { font-weight: bold; font-size: 12px; }
    .bar { stroke: #1a7f37; stroke-width: 1.5; }
    .equal { fill: #ffffff; stroke: #1a7f37; stroke-width: 1.5; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; } .axis { stroke: #4b535d; } .grid { stroke: #23292f; }
      text { fill: #e6edf3; } .small { fill: #9da7b1; }
      .dear { fill: #8b949e; } .cheap { fill: #6cb0ff; } .vote { fill: #56d364; }
      .bar { stroke: #56d364; } .equal { fill: #0d1117; stroke: #56d364; }
    }"""
HEAD, SMALL, BOLD = 8.3, 6.0, 7.2
"""Width of a letter by style, in the widest of the usual fonts (DejaVu Sans)."""
LEGEND = {
    "dear": "single model",
    "cheap": "of at most 1 usd per million completion tokens",
    "equal": "equal vote of the best",
    "vote": "chosen vote",
}
VOTES = ("equal", "vote")
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of what is drawn."""


@dataclass(frozen=True, slots=True)
class Point:
    """One system: usd per 1,000 questions, accuracy with its interval, and how it is drawn."""

    usd: float
    score: float
    low: float
    high: float
    kind: str
    label: str = ""


def prices(
    runs: Sequence[Run],
    *,
    title: str,
    cheap: Collection[str],
    labels: Mapping[str, str],
    named: Mapping[str, str],
) -> str:
    """Return the picture: every model of a table alone, and the votes that searches chose of them.

    Args:
        runs: Stored runs on the same test questions.
        title: What the picture shows, in one sentence.
        cheap: The models that are drawn as cheap ones.
        labels: Study -> the label of its pick.
        named: Model -> the name that stands beside its point, of some.
    """
    points = [
        Point(
            1000 * single["usd"],
            single["score"],
            single["low"],
            single["high"],
            "cheap" if single["agent"] in cheap else "dear",
            named.get(single["agent"], ""),
        )
        for single in runs[0]["singles"]
    ]
    for run in runs:
        points.append(_system(run["test"]["pick"], "vote", labels[run["study"]]))
        points.append(_system(run["test"]["top_k"], "equal"))
    shown = [point for point in points if point.score >= LEAST]
    under = (
        f"MATH level 5, {runs[0]['test_rows']} questions that no choice looked at; "
        f"{len(points) - len(shown)} models below {100 * LEAST:.0f} % are not drawn; "
        "bars: 95 % intervals"
    )
    return _svg(shown, title, under)


def _system(row: Run, kind: str, label: str = "") -> Point:
    return Point(1000 * row["usd"], row["score"], row["low"], row["high"], kind, label)


def _svg(points: Sequence[Point], title: str, under: str) -> str:
    least, most = log10(min(p.usd for p in points)), log10(max(p.usd for p in points))
    low, high = least - 0.08, most + 0.12
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(usd: float) -> float:
        return LEFT + across * (log10(usd) - low) / (high - low)

    def y(score: float) -> float:
        return TOP + down * (0.95 - score) / (0.95 - LEAST)

    ticks = [usd for usd in (0.1, 0.3, 1, 3, 10, 30, 100) if low <= log10(usd) <= high]
    grid = [
        *(_across(y(share / 100), f"{share} %") for share in range(40, 100, 10)),
        *(_tick(x(usd), f"{usd:g}") for usd in ticks),
    ]
    order = list(LEGEND)
    points = sorted(points, key=lambda p: order.index(p.kind))
    taken = [_box(p, x(p.usd), y) for p in points]
    drawn = [_mark(p, x(p.usd), y, taken) for p in points]
    titles = wrap(title, int((WIDTH - LEFT - RIGHT) / HEAD))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"  <title>{escape(title)}</title>",
        f"  <style>{STYLE}\n  </style>",
        f'  <rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        *(_head(line, 46 - 18 * (len(titles) - i)) for i, line in enumerate(titles)),
        f'  <text class="small" x="{LEFT}" y="46">{escape(under)}</text>',
        *_legend(),
        *grid,
        f'  <text class="small" x="{LEFT + across / 2:.0f}" y="{HEIGHT - 12}" '
        'text-anchor="middle">usd per 1,000 questions, nominal list prices (log scale)</text>',
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _head(line: str, height: int) -> str:
    return f'  <text class="head" x="{LEFT}" y="{height}">{escape(line)}</text>'


def _legend() -> Iterable[str]:
    place = float(LEFT)
    for kind, text in LEGEND.items():
        yield f"  {_sign(kind, place + 5, 60)}"
        yield f'  <text class="small" x="{place + 15:.0f}" y="64">{escape(text)}</text>'
        place += 32 + SMALL * len(text)


def _sign(kind: str, across: float, down: float) -> str:
    if kind in VOTES:
        corner = f'x="{across - 5:.1f}" y="{down - 5:.1f}"'
        return f'<rect class="{kind}" {corner} width="10" height="10"/>'
    return f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="4"/>'


def _across(height: float, text: str) -> str:
    line = f'<path class="grid" d="M{LEFT} {height:.1f} H{WIDTH - RIGHT}"/>'
    return (
        f'  {line}<text class="small" x="{LEFT - 8}" y="{height + 4:.1f}" '
        f'text-anchor="end">{text}</text>'
    )


def _tick(place: float, text: str) -> str:
    foot = HEIGHT - BOTTOM
    line = f'<path class="grid" d="M{place:.1f} {TOP} V{foot}"/>'
    return (
        f'  {line}<text class="small" x="{place:.1f}" y="{foot + 18}" '
        f'text-anchor="middle">{text}</text>'
    )


def _box(point: Point, across: float, y: Callable[[float], float]) -> Box:
    down, is_vote = y(point.score), point.kind in VOTES
    top, foot = (y(point.high), y(point.low)) if is_vote else (down - 4, down + 4)
    return across - 5, top, across + 5, foot


def _mark(point: Point, across: float, y: Callable[[float], float], taken: list[Box]) -> str:
    down, is_vote = y(point.score), point.kind in VOTES
    bar = f'<path class="bar" d="M{across:.1f} {y(point.low):.1f} V{y(point.high):.1f}"/>'
    sign = f"  {bar if is_vote else ''}{_sign(point.kind, across, down)}"
    if not point.label:
        return sign
    style, letter = ("bold", BOLD) if is_vote else ("label", SMALL)
    start, foot, anchor = _place_of(letter * len(point.label), across, down, taken)
    place = f'x="{start:.1f}" y="{foot:.1f}" text-anchor="{anchor}"'
    return f'{sign}<text class="{style}" {place}>{escape(point.label)}</text>'


def _place_of(
    width: float, across: float, down: float, taken: list[Box]
) -> tuple[float, float, str]:
    """Return where a label stands: beside its point, over no other if there is such a place."""
    places = []
    for lift in (0, -8, 8, -16, 16):
        for anchor, left in (("start", across + 9), ("end", across - 9 - width)):
            box = left, down + lift - 6, left + width, down + lift + 6
            start = left if anchor == "start" else across - 9
            is_inside = left >= LEFT and left + width <= WIDTH - RIGHT
            n_over = sum(_meet(box, other) for other in taken)
            places.append(((not is_inside, n_over), box, (start, down + lift + 4, anchor)))
    _, box, place = min(places, key=lambda entry: entry[0])
    taken.append(box)
    return place


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

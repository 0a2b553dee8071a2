"""Numbers of a report as text."""

from __future__ import annotations

from math import floor, log10


def points(share: float, *, sign: str = "") -> str:
    """Return a share in percent with one decimal; ``sign="+"`` shows it always, 0 has none."""
    value = round(100 * share, 1)
    return f"{value:{sign}.1f}" if value else "0.0"


def amount(value: float) -> str:
    """Return an amount with two digits that count at least, never in powers of ten."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 0.1:
        return f"{value:.2f}"
    decimals = max(5, 1 - floor(log10(value)))
    return f"{value:.{decimals}f}".rstrip("0")


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

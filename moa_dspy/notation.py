"""The text notation of an architecture: read into its parts, and written from them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from moa_dspy.errors import ArchitectureError

_LAST = re.compile(r"(synthesize|select|vote)(?:\(([^>+*()]+)\))?")
_BETWEEN_OPTIONS = re.compile(r";\s+")
"""A name may hold a semicolon, but no space."""


@dataclass(frozen=True, slots=True)
class LastStep:
    """The part after the last ``>``."""

    combine: str
    aggregator: str | None
    order: tuple[str, ...] = ()
    prompt: str | None = None


def read_parts(text: str) -> tuple[tuple[tuple[str, ...], ...], LastStep | None]:
    """Return the layers and the last step; None for a single agent, which has none.

    Raises:
        ArchitectureError: If a part cannot be read, naming it.
    """
    *heads, last = [part.strip() for part in text.split(">")]
    if not heads:
        return (), None
    match = _LAST.fullmatch(last)
    if match is None:
        raise ArchitectureError(
            f"The last part of {text!r} must be synthesize(NAME), select, select(NAME), vote "
            f"or vote(NAME), but got {last!r}."
        )
    return tuple(_read_layer(part) for part in heads), _read_last(match[1], match[2])


def _read_last(combine: str, inside: str | None) -> LastStep:
    if inside is None:
        return LastStep(combine, None)
    who, *rest = _BETWEEN_OPTIONS.split(inside.strip())
    options: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition("=")
        options[key] = value
    if unknown := [key for key in options if key not in ("order", "prompt")]:
        raise ArchitectureError(
            f"The last step knows order=NAME NAME and prompt=NAME, but got {unknown[0]!r}."
        )
    order = tuple(options.get("order", "").split())
    return LastStep(combine, who.strip() or None, order, options.get("prompt"))


def _read_layer(text: str) -> tuple[str, ...]:
    names: list[str] = []
    for part in text.split("+"):
        name, star, count = part.strip().partition("*")
        if star and not (count.strip().isdecimal() and int(count) > 0):
            raise ArchitectureError(f"{part.strip()!r} must read NAME or NAME*COUNT.")
        names += [name.strip()] * (int(count) if star else 1)
    return tuple(names)


def format_layer(layer: tuple[str, ...]) -> str:
    """Write ``a + b*2``."""
    counts = Counter(layer)
    return " + ".join(name if n == 1 else f"{name}*{n}" for name, n in counts.items())


def format_last(
    combine: str, aggregator: str | None, order: tuple[str, ...], prompt: str | None
) -> str:
    """Write ``synthesize(c; order=b a; prompt=brief)``; what is not given is left out."""
    parts = [aggregator or ""]
    parts += [f"order={' '.join(order)}"] if order else []
    parts += [f"prompt={prompt}"] if prompt is not None else []
    return f"{combine}({'; '.join(parts)})" if any(parts) else combine

"""What a program file holds; a key that is not listed here is refused, never obeyed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from moa_dspy.errors import ArchitectureError
from moa_dspy.toml_file import check

FORMAT: Final = 2
"""Of the files that are written."""

READABLE: Final = (1, 2)
"""Formats that are read; 1 had no deadline and no limits."""


class _Strict:
    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Seating(_Strict):
    """An ``Architecture``."""

    layers: list[list[str]]
    aggregator: str | None
    combine: str
    order: list[str] = field(default_factory=list[str])
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class SignatureText(_Strict):
    """A signature whose types are names, or lists of the allowed texts."""

    instructions: str
    inputs: dict[str, str | list[str]]
    outputs: dict[str, str | list[str]]
    descriptions: dict[str, str]


@dataclass(frozen=True, slots=True)
class AgentText(_Strict):
    """What people may want to know of an agent; the pool says what is asked."""

    model: str
    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class FieldText(_Strict):
    """How a prompt names a field."""

    prefix: str
    description: str


@dataclass(frozen=True, slots=True)
class SeatState(_Strict):
    """What an optimizer may have changed in one seat; fields in the signature's order."""

    instructions: str
    fields: list[FieldText]
    demos: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Limits(_Strict):
    """A ``ReferenceLimits``."""

    per_reference: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Content(_Strict):
    """The whole file."""

    format: int
    moa_dspy: str
    architecture: Seating
    signature: SignatureText
    adapter: str | None
    normalise: str
    quorum: int
    agent: str
    agents: dict[str, AgentText]
    state: dict[str, SeatState]
    scores: dict[str, Any] | None
    deadline_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)


def read_content(path: Path) -> Content:
    """Return what the file holds.

    Raises:
        ArchitectureError: If it cannot be read, is not JSON, is of another format, or has
            an unknown, missing or badly typed key.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ArchitectureError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise ArchitectureError(f"{path} is not a saved program: it has no `format` number.")
    if value["format"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ArchitectureError(
            f"{path} has format {value['format']}, but this version reads {known}; it was "
            f"written by moa-dspy {value.get('moa_dspy')}."
        )
    _check_entries(AgentText, value.get("agents"), where=f"{path}.agents")
    _check_entries(SeatState, value.get("state"), where=f"{path}.state")
    return check(Content, value, where=str(path), error=ArchitectureError)


def _check_entries(kind: type[object], table: object, *, where: str) -> None:
    # Entry by entry, so that an error names the entry; a table that is none is the caller's case.
    for name, entry in table.items() if isinstance(table, dict) else ():
        check(kind, entry, where=f"{where}[{name!r}]", error=ArchitectureError)

"""TOML files as checked data; what is wrong is said in one line: field, value and choices."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from moa_dspy.errors import MoaError

_T = TypeVar("_T")


def read_toml(path: Path, *, error: type[MoaError]) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        error: If the file is absent, unreadable, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}.") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8: byte {cause.start} cannot be decoded.") from cause
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{path} is not TOML: {cause}.") from cause


def check_table(kind: type[_T], value: object, *, where: str, error: type[MoaError]) -> _T:
    """Return ``value`` as ``kind``.

    Raises:
        error: If it does not fit; only the first thing that is wrong is named.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as cause:
        # Not `from cause`: pydantic's text quotes every input, which may be a key put there.
        raise error(f"{where}{_explain(cause, adapter)}") from None


def _explain(cause: ValidationError, adapter: TypeAdapter[Any]) -> str:
    first = cause.errors(include_url=False)[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
    kind = first["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _siblings(adapter.json_schema(), first["loc"])
        near = get_close_matches(str(first["loc"][-1]), known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{place}: unknown key; known ones are {', '.join(known)}.{guess}"
    if kind in ("missing", "missing_argument"):
        return f"{place}: missing."
    if isinstance(inner := first.get("ctx", {}).get("error"), MoaError):
        return f"{place}: {inner}"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, but got {first['input']!r}."


def _siblings(schema: dict[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the table around ``loc`` may have."""
    definitions, node = schema.get("$defs", {}), schema
    for part in loc[:-1]:
        node = _resolve(node, definitions)
        named = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
        node = node.get("items", {}) if isinstance(part, int) else named
    return sorted(_resolve(node, definitions).get("properties", {}))


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
    name = node.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = definitions.get(name, node)
    return found

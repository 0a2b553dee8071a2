"""What an option names: one of the known, or an object as ``package.module:name``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from moa_dspy.errors import StudyError

MODULE_AND_NAME = "package.module:name"


def unknown(field: str, name: str, known: Iterable[str]) -> StudyError:
    """Return the error of an option that names what nobody knows: option, value, choices."""
    return StudyError(f"`{field}`: unknown {name!r}; known ones are {', '.join(sorted(known))}.")


def imported(field: str, name: str, known: Iterable[str]) -> Any:
    """Return what ``package.module:name`` is.

    Args:
        field: Of the study file.
        name: What it says.
        known: Names that it could have said instead.

    Raises:
        StudyError: If there is no such object; it names the field, the value and the choices.
    """
    choices = ", ".join([*sorted(known), MODULE_AND_NAME])
    module, colon, attribute = name.partition(":")
    if not colon:
        raise StudyError(f"`{field}`: unknown {name!r}; known ones are {choices}.")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(
            f"`{field}`: {name!r} cannot be imported: {error}; known ones are {choices}."
        ) from error


def made(field: str, name: str, known: Iterable[str], *, has: str) -> Any:
    """Return an object of the user's own, or what its class or function makes without arguments.

    Args:
        field: Of the study file.
        name: What it says.
        known: Names that it could have said instead.
        has: A method by which such an object is known.

    Raises:
        StudyError: If it cannot be imported, or making it fails.
    """
    found = imported(field, name, known)
    if hasattr(found, has) and not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:
        kind = type(error).__name__
        raise StudyError(f"`{field}`: {name!r}() raised {kind}: {error}") from error

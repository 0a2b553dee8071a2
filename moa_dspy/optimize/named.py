"""Objects that an option names: one of the known, or the user's own as ``package.module:name``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from moa_dspy.errors import StudyError

MODULE_AND_NAME: Final = "package.module:name"


def unknown(field: str, name: str, known: Iterable[str]) -> StudyError:
    """Return the error of an option with an unknown name: option, value, choices."""
    return StudyError(f"`{field}`: unknown {name!r}; known ones are {', '.join(sorted(known))}.")


def imported(field: str, name: str, known: Iterable[str]) -> Any:
    """Return the object ``package.module:name``.

    Args:
        field: Of the study file.
        name: Its value.
        known: Names that could stand there instead.

    Raises:
        StudyError: If there is no such object; it names the field, the value and the choices.
    """
    choices = ", ".join([*sorted(known), MODULE_AND_NAME])
    module, colon, attribute = name.partition(":")
    if not colon:
        raise StudyError(f"`{field}`: unknown {name!r}; known ones are {choices}.")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        # The module is the user's: its code may raise anything.
        raise StudyError(
            f"`{field}`: {name!r} cannot be imported: {error}; known ones are {choices}."
        ) from error


def made(field: str, name: str, known: Iterable[str], *, has: str) -> Any:
    """Return an object of the user's own, or what its class or function makes without arguments.

    Args:
        field: Of the study file.
        name: Its value.
        known: Names that could stand there instead.
        has: A method that such an object has.

    Raises:
        StudyError: If it cannot be imported, making it fails, or it lacks the method.
    """
    found = imported(field, name, known)
    if not hasattr(found, has) or isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            kind = type(error).__name__
            raise StudyError(f"`{field}`: {name!r}() raised {kind}: {error}") from error
    if not hasattr(found, has):
        raise StudyError(f"`{field}`: {name!r} is a {type(found).__name__} without `{has}`.")
    return found


def code_digest(value: object) -> str:
    """Return 16 hexadecimal digits of the file that defines ``value``; "" if there is none."""
    try:
        path = inspect.getsourcefile(value if callable(value) else type(value))
        return sha256(Path(path or "").read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""

"""Files that people write or read: checked TOML, objects by name, atomic replacement of files.

An error is one line with the place, the value and the choices.
"""

from __future__ import annotations

import inspect
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module, metadata
from io import StringIO
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias, TypeVar, get_type_hints
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from moa_dspy.errors import MoaError, StudyError

_T = TypeVar("_T")

LONGEST_SHOWN: Final = 24
"""Most characters of a text that an error shows; a longer text may be a misplaced key."""


def read_toml(path: Path, *, error: type[MoaError]) -> dict[str, Any]:
    """Return the content of a TOML file; a byte order mark is ignored.

    Raises:
        error: If the file is absent, unreadable, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}.") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8: byte {cause.start} cannot be decoded.") from cause
    except ValueError as cause:
        raise error(f"{path} is not TOML: {cause}.") from cause
    except RecursionError:
        raise error(f"{path} is not TOML: its values are nested too deeply.") from None


def options_table(
    kind: Callable[..., Any], *, without: tuple[str, ...] = (), **changes: Any
) -> type[BaseModel]:
    """Return a table with the names, types and defaults of the keyword options of ``kind``.

    Args:
        kind: A dataclass, or a class or function with annotated arguments.
        without: Options that a table cannot have.
        changes: Type and default of options that have another form in a table.
    """
    init: Any = kind.__init__ if isinstance(kind, type) else kind  # type: ignore[misc]
    hints = get_type_hints(init)
    listed = fields(kind) if is_dataclass(kind) else ()
    factories: dict[str, Any] = {
        f.name: f.default_factory for f in listed if f.default_factory is not MISSING
    }
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(init).parameters.items():
        if name == "self" or name in without:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        if name in factories:
            default = factories[name]()
        options[name] = changes.get(name, (hints[name], default))
    config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    name = getattr(kind, "__name__", "Options")
    model: type[BaseModel] = create_model(name, __config__=config, **options)
    return model


def check_table(
    kind: type[_T],
    value: object,
    *,
    where: str,
    error: type[MoaError],
    renamed: Mapping[str, str] | None = None,
    may_hold_keys: bool = False,
) -> _T:
    """Return ``value`` as ``kind``, after validation.

    Args:
        kind: A pydantic model, or a dataclass that pydantic can check.
        value: Plain data.
        where: Beginning of every error.
        error: Class of the errors.
        renamed: New names of renamed keys by their old names, as ``table.key``.
        may_hold_keys: Whether errors hide all texts in ``value``, as they may be API keys.

    Raises:
        error: If the value is not valid; only the first fault is named.
    """
    adapter = TypeAdapter(kind)
    try:
        table = adapter.validate_python(value)
    except ValidationError as cause:
        # Not `from cause`: pydantic's message quotes every input, which may be a misplaced key.
        explained = _explain(cause, adapter, renamed or {}, may_hold_keys=may_hold_keys)
        raise error(f"{where}{explained}") from None
    for place, kind_of_it, given in _converted(value, table):
        shown = shown_value(given, longest=0 if may_hold_keys else LONGEST_SHOWN)
        raise error(f"{where}{place}: must be {kind_of_it}, but got {shown}.")
    return table


def _converted(given: object, made: Any, place: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield place, kind and value of each text or bool that pydantic took as a number, or reverse.

    Pydantic's strict mode also refuses lists for tuples and texts for paths, which TOML needs.
    """
    if isinstance(given, Mapping):
        for key, value in given.items():
            field = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _converted(value, field, f"{place}.{key}")
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for number, (value, item) in enumerate(zip(given, made, strict=False)):
            yield from _converted(value, item, f"{place}[{number}]")
    elif isinstance(made, bool) and not isinstance(given, bool):
        yield place, "true or false", given
    elif isinstance(made, int | float) and isinstance(given, str | bool) and given is not made:
        yield place, "a number", given


def _explain(
    cause: ValidationError,
    adapter: TypeAdapter[Any],
    renamed: Mapping[str, str],
    *,
    may_hold_keys: bool,
) -> str:
    problems = cause.errors(include_url=False)
    first = next((problem for problem in problems if _unknown(problem)), problems[0])
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
    if _unknown(first):
        name = str(first["loc"][-1])
        if (new := renamed.get(".".join(map(str, first["loc"])))) is not None:
            return f"{place}: this key is now called `{new}`."
        keys = _siblings(adapter.json_schema(), first["loc"])
        near = get_close_matches(name, keys, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{place}: unknown key; known ones are {', '.join(keys)}.{guess}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{place}: this key is missing."
    if isinstance(inner := first.get("ctx", {}).get("error"), MoaError):
        return f"{place}: {inner}"
    longest = 0 if may_hold_keys else LONGEST_SHOWN
    value = shown_value(first["input"], longest=longest)
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, but got {value}."


def _unknown(error: Any) -> bool:
    return error["type"] in ("extra_forbidden", "unexpected_keyword_argument")


def shown_value(value: object, *, longest: int = LONGEST_SHOWN) -> str:
    """Return a value for an error; for a longer text or a table, only its kind."""
    if isinstance(value, str):
        return repr(value) if len(value) <= longest else f"a text of {len(value)} characters"
    if isinstance(value, bool | int | float) or value is None:
        # Python refuses to print an int of thousands of digits.
        is_long = isinstance(value, int) and value.bit_length() > 64
        return "a number beyond 64 bits" if is_long else repr(value)
    if isinstance(value, list | tuple):
        return "an empty list" if not value else f"a list of {len(value)}"
    return "a table" if isinstance(value, dict) else f"a {type(value).__name__}"


Kinds: TypeAlias = Mapping[str, tuple[Any, str]]
"""By option: its allowed types, and their description in an error."""
WHOLE: Final = (Integral, "a whole number")
NUMBER: Final = (Real, "a number")
NUMBER_OR_NONE: Final = (Real | None, "a number or None")


def check_kinds(
    options: object, kinds: Kinds, *, before: str = "`", error: type[MoaError], shows: bool = True
) -> None:
    """Refuse attributes of a wrong type; True and False do not count as numbers.

    Args:
        options: The object with the attributes.
        kinds: Allowed types of each.
        before: Text of the error before the name, including the quote.
        error: Class of the error.
        shows: Whether a text is shown; False for texts that may be misplaced keys.

    Raises:
        error: Naming the option, its allowed kind and its value.
    """
    for name, (kind, expected) in kinds.items():
        value = getattr(options, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            shown = shown_value(value, longest=LONGEST_SHOWN if shows else 0)
            raise error(f"{before}{name}` must be {expected}, but got {shown}.")


def check_limits(options: object, names: Iterable[str], *, table: str) -> None:
    """Refuse upper limits that are not positive, finite numbers; None means no limit.

    Raises:
        StudyError: Naming the limit in its table, and its value.
    """
    before = f"`{table}."
    check_kinds(options, dict.fromkeys(names, NUMBER_OR_NONE), before=before, error=StudyError)
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise StudyError(f"{before}{name}` must be positive and finite, but got {value}.")


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
    definition: dict[str, Any] = definitions.get(name, node)
    return definition


def version() -> str:
    """Return the installed version; ``unknown`` in a checkout that was never installed."""
    try:
        return metadata.version("moa-dspy")
    except metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def replacing(path: Path, *, error: type[MoaError]) -> Iterator[Path]:
    """Yield a temporary path whose file then replaces ``path`` in one step.

    The folder is made if it is missing. If several processes replace the same file at once, the
    last one wins. After an error there is no new file.

    Raises:
        error: If the folder or the file cannot be written.
    """
    # A unique name, so that no other process writes to the file or moves it.
    partial = path.with_name(f".{path.name[:100]}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as cause:
        raise error(f"{path} cannot be written: {cause.strerror or cause}.") from cause


def replace_file(path: Path, text: str, *, error: type[MoaError]) -> None:
    """Write ``text`` to ``path`` in one step; see ``replacing``.

    Raises:
        error: If it cannot be written; then there is no new file.
    """
    with replacing(path, error=error) as partial:
        partial.write_text(text, "utf-8")


class _AppendedText(StringIO):
    """A text file whose first error is kept; nothing is written after it."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def write(self, text: str, /) -> int:
        if self.error is None:
            try:
                self._file.write(text)
            except OSError as error:
                self.error = error
        return len(text)


@contextmanager
def appending(path: Path, *, error: type[MoaError], hint: str = "") -> Iterator[TextIO]:
    """Yield a text file that is appended to ``path``; its folder is made if it is missing.

    Writing raises nothing, as a program that prints into the file may suppress errors.

    Args:
        path: The file.
        error: Class of the error.
        hint: End of its message.

    Raises:
        error: If the file cannot be opened, or at the end, if a text could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # By lines, so that an error of the last one is known before the file is closed.
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as cause:
        raise error(f"{path} cannot be written: {cause.strerror or cause}.{hint}") from cause
    appended = _AppendedText(file)
    try:
        yield appended
    finally:
        try:
            file.close()
        except OSError as cause:
            appended.error = appended.error or cause
    if (failed := appended.error) is not None:
        raise error(f"{path} cannot be written: {failed.strerror or failed}.{hint}") from failed


MODULE_AND_NAME: Final = "package.module:name"


def unknown(field: str, name: str, names: Iterable[str]) -> StudyError:
    """Return the error of an option with an unknown name: option, value, choices."""
    choices = ", ".join(sorted(names))
    return StudyError(f"`{field}`: unknown {shown_value(name)}; known ones are {choices}.")


_BESIDE: Final[dict[str, tuple[Path, frozenset[str]]]] = {}
"""Modules imported from the folder of a file: that folder, and all modules imported with each."""


def imported(field: str, name: str, names: Iterable[str], *, beside: Path | None = None) -> Any:
    """Return the object ``package.module:name``.

    Args:
        field: Field of the study file.
        name: Value of the field.
        names: Names that the field may have instead.
        beside: Folder of the study file; a module in it has precedence over an installed module.

    Raises:
        StudyError: If there is no such object; the message names the field, the value and the
            choices.
    """
    choices = ", ".join([*sorted(names), MODULE_AND_NAME])
    module, colon, attribute = name.partition(":")
    if not colon:
        raise StudyError(f"`{field}`: unknown {shown_value(name)}; known ones are {choices}.")
    try:
        _import_from(beside, module.partition(".")[0])
        return getattr(import_module(module), attribute)
    except Exception as error:
        # The module is user code, which may raise anything.
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        is_missing |= isinstance(error, AttributeError) and error.obj is sys.modules.get(module)
        known = f"; known ones are {choices}." if is_missing else ""
        raise StudyError(f"`{field}`: {name!r} cannot be imported: {error}{known}") from error


def _import_from(folder: Path | None, top: str) -> None:
    """Import a module from the folder of a file, if it exists and is not imported yet."""
    here = folder.resolve() if folder is not None else None
    if here is None or not (
        (here / f"{top}.py").is_file() or (here / top / "__init__.py").is_file()
    ):
        return
    cached = _BESIDE.get(top)
    if cached is not None and cached[0] != here:
        # Another study's module of the same name, with the modules it imported from its folder.
        for name in cached[1] & set(sys.modules):
            del sys.modules[name]
    elif top in sys.modules:
        return
    before = set(sys.modules)
    sys.path.insert(0, str(here))
    try:
        import_module(top)
    finally:
        sys.path.remove(str(here))
        if str(here) not in sys.path:
            # At the end, where it hides no other module, for later imports of the module.
            sys.path.append(str(here))
    new = (name for name in set(sys.modules) - before if _is_in(here, sys.modules[name]))
    _BESIDE[top] = here, frozenset(new)


def _is_in(folder: Path, module: object) -> bool:
    path = Path(getattr(module, "__file__", None) or "")
    return folder in path.parents and "site-packages" not in path.parts


def imported_instance(
    field: str, name: str, names: Iterable[str], *, has: str, beside: Path | None = None
) -> Any:
    """Return the user's object, or the result of the user's class or function without arguments.

    Args:
        field: Field of the study file.
        name: Value of the field.
        names: Names that the field may have instead.
        has: Name of a method that the object must have.
        beside: As for ``imported``.

    Raises:
        StudyError: If it cannot be imported, making it fails, or it lacks the method.
    """
    value = imported(field, name, names, beside=beside)
    if not hasattr(value, has) or isinstance(value, type):
        try:
            value = value()
        except Exception as error:
            kind = type(error).__name__
            raise StudyError(f"`{field}`: {name!r}() raised {kind}: {error}") from error
    if not hasattr(value, has):
        raise StudyError(f"`{field}`: {name!r} is a {type(value).__name__} without `{has}`.")
    return value


def code_digest(value: object) -> str:
    """Return a digest of 16 hexadecimal digits of the file that defines ``value``, or ""."""
    try:
        path = inspect.getsourcefile(value if callable(value) else type(value))
        return sha256(Path(path or "").read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""

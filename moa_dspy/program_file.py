"""Programs as JSON files, with architecture, prompts and demos; without keys, endpoints or code.

Unknown keys in a file are refused. Types of a signature are looked up in a fixed table, and nothing
is imported by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args, get_origin

import dspy

from moa_dspy.adapters import ADAPTERS
from moa_dspy.agent import Agent
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.files import check_table, replace_file, version
from moa_dspy.layers import SEAT_MODULES, all_predictors, json_data
from moa_dspy.references import ReferenceLimits

FORMAT: Final = 2
"""Format version of written files."""

READABLE: Final = (1, 2)
"""Format versions that can be read; version 1 had no deadline and no limits."""


class _Strict:
    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ArchitectureText(_Strict):
    """An ``Architecture`` as text."""

    layers: list[list[str]]
    aggregator: str | None
    combine: str
    order: list[str] = field(default_factory=list[str])
    prompt: str | None = None
    weights: dict[str, float] = field(default_factory=dict[str, float])
    agree: int | None = None
    analyst: str | None = None
    lead: float | None = None


@dataclass(frozen=True, slots=True)
class SignatureText(_Strict):
    """A signature, with types as names or as lists of the allowed texts."""

    instructions: str
    inputs: dict[str, str | list[str]]
    outputs: dict[str, str | list[str]]
    descriptions: dict[str, str]


@dataclass(frozen=True, slots=True)
class AgentText(_Strict):
    """Facts about an agent, for readers; a loaded program takes its settings from the pool."""

    model: str
    temperature: float | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class FieldText(_Strict):
    """Name and description of a field in a prompt."""

    prefix: str
    description: str


@dataclass(frozen=True, slots=True)
class SeatState(_Strict):
    """Instructions, field texts and demos of one seat; fields in the signature's order."""

    instructions: str
    fields: list[FieldText]
    demos: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ReferenceLimitsText(_Strict):
    """A ``ReferenceLimits`` as data."""

    per_reference: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class ProgramContent(_Strict):
    """The content of a file."""

    format: int
    moa_dspy: str
    architecture: ArchitectureText
    signature: SignatureText
    adapter: str | None
    normalise: str
    quorum: int
    module: str
    agents: dict[str, AgentText]
    state: dict[str, SeatState]
    scores: dict[str, Any] | None
    deadline_seconds: float | None = None
    reference_limits: ReferenceLimitsText = field(default_factory=ReferenceLimitsText)
    stop_early: bool = True


def read_content(path: Path) -> ProgramContent:
    """Return the content of the file.

    Raises:
        ArchitectureError: If it cannot be read, is not JSON, has another format, or has an unknown,
            missing or badly typed key.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ArchitectureError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise ArchitectureError(f"{path} is nested too deeply to be a saved program.") from error
    except ValueError as error:
        raise ArchitectureError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise ArchitectureError(f"{path} is not a saved program: it has no `format` number.")
    if value["format"] not in READABLE:
        formats = " and ".join(map(str, READABLE))
        raise ArchitectureError(
            f"{path} has format {value['format']}, but this version of moa-dspy reads {formats}; "
            f"it was written by moa-dspy {value.get('moa_dspy') or '(unknown version)'}."
        )
    _check_entries(AgentText, value.get("agents"), where=f"{path}.agents")
    _check_entries(SeatState, value.get("state"), where=f"{path}.state")
    return check_table(ProgramContent, value, where=str(path), error=ArchitectureError)


def _check_entries(kind: type[object], table: object, *, where: str) -> None:
    # Entry by entry, so that an error names the entry; the caller handles a value that is no table.
    for name, entry in table.items() if isinstance(table, dict) else ():
        check_table(kind, entry, where=f"{where}[{name!r}]", error=ArchitectureError)


def module_name(program: Any) -> str:
    """Return the name of the module in the program's seats.

    Raises:
        ArchitectureError: If the module is not in ``SEAT_MODULES``.
    """
    seats = [seat for layer in program.layers for seat in layer.proposers] or [program.aggregator]
    kinds = {type(seat) for seat in seats}
    for name, module in SEAT_MODULES.items():
        if kinds == {module}:
            return name
    shown = ", ".join(sorted(kind.__name__ for kind in kinds))
    choices = ", ".join(sorted(SEAT_MODULES))
    raise ArchitectureError(
        f"A mixture of the module {shown} cannot be saved; modules that can be saved are {choices}."
    )


def seat_state(name: str, seat: Any) -> SeatState:
    """Return the part of one predictor that a file stores.

    Raises:
        ArchitectureError: If the seat has settings, or a demo, that a file cannot store.
    """
    if seat.config or getattr(seat, "fields", None):
        raise ArchitectureError(
            f"{name} has settings of its own ({seat.config or seat.fields}), which cannot be "
            "saved; sampling settings belong to the pool's agents."
        )
    state = seat.dump_state()
    fields = [FieldText(**field) for field in state["signature"]["fields"]]
    where = f"{name}, a demo"
    demos = [json_data(demo, where=where) for demo in state["demos"]]
    return SeatState(state["signature"]["instructions"], fields, demos)


def restore(program: Any, states: Mapping[str, SeatState], *, where: str) -> None:
    """Restore instructions, field texts and demos of the seats.

    Raises:
        ArchitectureError: If the seats of file and program differ.
    """
    seats: dict[str, Any] = dict(all_predictors(program))
    if set(seats) != set(states):
        raise ArchitectureError(
            f"{where}: `state` has {', '.join(sorted(states))}, but the architecture has the "
            f"seats {', '.join(sorted(seats))}."
        )
    for name, seat in seats.items():
        state = states[name]
        if len(state.fields) != len(seat.signature.fields):
            names = ", ".join(seat.signature.fields)
            raise ArchitectureError(f"{where}: {name} must have a text for each of {names}.")
        texts = [{"prefix": f.prefix, "description": f.description} for f in state.fields]
        plain = {"instructions": state.instructions, "fields": texts}
        seat.signature = seat.signature.load_state(plain)
        seat.demos = [dict(demo) for demo in state.demos]


TYPES: dict[str, Any] = {
    "bool": bool,
    "dict[str, str]": dict[str, str],
    "float": float,
    "int": int,
    "list[float]": list[float],
    "list[int]": list[int],
    "list[str]": list[str],
    "str": str,
}
"""Types that a file may name, besides a list of the allowed texts (``Literal``)."""


def describe(signature: Any) -> SignatureText:
    """Return ``signature`` as text; types that are not in ``TYPES`` are only for readers."""
    return SignatureText(
        instructions=signature.instructions,
        inputs={name: _type_text(field) for name, field in signature.input_fields.items()},
        outputs={name: _type_text(field) for name, field in signature.output_fields.items()},
        descriptions={n: str(f.json_schema_extra["desc"]) for n, f in signature.fields.items()},
    )


def rebuild(text: SignatureText, *, where: str) -> type[dspy.Signature]:
    """Return the signature that ``describe`` wrote.

    Raises:
        ArchitectureError: If a type is not in ``TYPES`` or a field is not valid.
    """
    fields: dict[str, Any] = {}
    for kinds, make in ((text.inputs, dspy.InputField), (text.outputs, dspy.OutputField)):
        for name, kind in kinds.items():
            description = text.descriptions.get(name, f"${{{name}}}")
            fields[name] = (_type(name, kind, where), make(desc=description))
    try:
        built: type[dspy.Signature] = dspy.make_signature(fields, text.instructions)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArchitectureError(f"{where}: the signature cannot be built: {reason}") from error
    return built


def check_fields(text: SignatureText, signature: Any, *, where: str) -> None:
    """Raise unless ``signature`` has the fields of the file, in its order.

    Raises:
        ArchitectureError: If they differ; the message names both lists of fields.
    """
    saved = (list(text.inputs), list(text.outputs))
    current = (list(signature.input_fields), list(signature.output_fields))
    if saved != current:
        shown = [
            f"{', '.join(inputs)} -> {', '.join(outputs)}" for inputs, outputs in (current, saved)
        ]
        raise ArchitectureError(
            f"`signature` is {shown[0]}, but {where} was saved with {shown[1]}."
        )


def _type_text(field: Any) -> str | list[str]:
    kind = field.annotation
    if field.metadata or not field.is_required():
        return f"{kind} with a constraint or a default"
    if get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)):
        return list(get_args(kind))
    return next((name for name, type_ in TYPES.items() if type_ == kind), str(kind))


def _type(name: str, kind: str | list[str], where: str) -> Any:
    if isinstance(kind, list) and kind:
        return Literal[tuple(kind)]
    if isinstance(kind, str) and kind in TYPES:
        return TYPES[kind]
    raise ArchitectureError(
        f"{where}: field {name!r} has type {kind!r}; a file can name {', '.join(sorted(TYPES))}. "
        "Give `signature=` for other types."
    )


_T = TypeVar("_T")


def load_program(
    path: Path,
    make: Callable[..., Any],
    *,
    pool: Mapping[str, Agent],
    signature: type[dspy.Signature] | None = None,
) -> Any:
    """Rebuild a program from a file of ``save_program``, without importing or running code of it.

    Args:
        path: Path of the file.
        make: ``MixtureOfAgents``.
        pool: The agents by name; their settings are those of the pool, not of the file.
        signature: Replaces that of the file, with the same fields; needed for your own types.

    Raises:
        ArchitectureError: If the file is not such a file, has another format, has an unknown or
            missing key, or does not fit ``signature``.
        PoolError: If the pool lacks agents; the message names all of them.
    """
    content = read_content(path)
    architecture = _architecture(content, pool, path)
    if signature is None:
        signature = rebuild(content.signature, where=str(path))
    else:
        check_fields(content.signature, signature, where=str(path))
    adapter = content.adapter
    program = make(
        signature,
        architecture,
        pool=pool,
        module=_named(SEAT_MODULES, content.module, f"{path}: unknown module"),
        adapter=None
        if adapter is None
        else _named(ADAPTERS, adapter, f"{path}: unknown adapter")(),
        normalise=content.normalise,
        quorum=content.quorum,
        deadline_seconds=content.deadline_seconds,
        reference_limits=ReferenceLimits(**asdict(content.reference_limits)),
        stop_early=content.stop_early,
    )
    restore(program, content.state, where=str(path))
    return program


def restore_program(program: Any, path: Path) -> None:
    """Give ``program`` the architecture of a file, with its instructions, field texts and demos.

    Raises:
        ArchitectureError: As ``load_program``.
        PoolError: If the program's pool lacks agents; the message names all of them.
    """
    content = read_content(path)
    check_fields(content.signature, program.signature, where=str(path))
    mixture = program.with_architecture(_architecture(content, program.pool, path))
    restore(mixture, content.state, where=str(path))
    program.replace_seats(mixture)


def _architecture(content: ProgramContent, pool: Mapping[str, Agent], path: Path) -> Architecture:
    architecture = Architecture.from_json(asdict(content.architecture))
    if absent := [name for name in architecture.agents if name not in pool]:
        raise PoolError(
            f"{path} needs agents that the pool lacks: {', '.join(absent)}; it has "
            f"{', '.join(sorted(pool))}."
        )
    return architecture


def _named(table: Mapping[str, _T], name: str, label: str) -> _T:
    if name not in table:
        raise ArchitectureError(f"{label} {name!r}; known ones are {', '.join(sorted(table))}.")
    return table[name]


def save_program(program: Any, path: Path, *, scores: Mapping[str, Any] | None = None) -> None:
    """Write ``program`` to a JSON file that ``load_program`` reads; an older file is replaced.

    The file has the model name, temperature and ``max_tokens`` of each agent, for readers.
    Endpoints, weights, prices and keys belong to the pool and are not written.

    Args:
        program: The program, with any instructions and demos from an optimizer.
        path: Path of the file; its folder is made if it is missing.
        scores: JSON data to store with the program.

    Raises:
        ArchitectureError: If a part has no name that a file could hold (another adapter,
            another kind of seat), has settings of its own, or is not JSON; or if the file
            cannot be written.
    """
    replace_file(path, program_text(program, scores=scores), error=ArchitectureError)


def program_text(program: Any, *, scores: Mapping[str, Any] | None = None) -> str:
    """Return the content of the file that ``save_program`` writes.

    Raises:
        ArchitectureError: As ``save_program``.
    """
    content = ProgramContent(
        format=FORMAT,
        moa_dspy=version(),
        architecture=ArchitectureText(**program.architecture.to_json()),
        signature=describe(program.signature),
        adapter=_adapter_name(program.adapter),
        normalise=program.normalise,
        quorum=program.quorum,
        module=module_name(program),
        agents={name: _agent(program, name) for name in program.architecture.agents},
        state={name: seat_state(name, seat) for name, seat in all_predictors(program)},
        scores=None if scores is None else dict(scores),
        deadline_seconds=program.rules.deadline_seconds,
        reference_limits=ReferenceLimitsText(**asdict(program.rules.reference_limits)),
        stop_early=program.rules.stop_early,
    )
    try:
        text = json.dumps(asdict(content), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArchitectureError(f"The program cannot be written as JSON: {error}.") from error
    return text + "\n"


def _agent(program: Any, name: str) -> AgentText:
    agent = program.pool[name]
    return AgentText(agent.model, agent.temperature, agent.max_tokens)


def _adapter_name(adapter: Any) -> str | None:
    if adapter is None:
        return None
    for name, make in ADAPTERS.items():
        default = make()
        if type(adapter) is type(default) and _settings(adapter) == _settings(default):
            return name
    choices = ", ".join(sorted(ADAPTERS))
    raise ArchitectureError(
        f"The adapter {type(adapter).__name__} cannot be saved with its settings; adapters that "
        f"can be saved, with their default settings, are {choices}."
    )


def _settings(adapter: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(adapter).items() if name != "callbacks"}


def is_dspy_state(path: Path) -> bool:
    """Return whether DSPy wrote the file as a state; DSPy itself reports what it refuses."""
    if path.suffix == ".pkl":
        return True
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" not in content and "metadata" in content

"""Signatures as text and back; types are looked up in a closed table and never imported."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import dspy

from moa_dspy.errors import ArchitectureError
from moa_dspy.program_file._content import SignatureText

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
"""Types that a file may name, beside a list of the allowed texts (``Literal``)."""


def describe(signature: Any) -> SignatureText:
    """Return ``signature`` as text; a type that is not in ``TYPES`` is written for people only."""
    return SignatureText(
        instructions=signature.instructions,
        inputs={name: _type_text(field) for name, field in signature.input_fields.items()},
        outputs={name: _type_text(field) for name, field in signature.output_fields.items()},
        descriptions={n: str(f.json_schema_extra["desc"]) for n, f in signature.fields.items()},
    )


def rebuild(text: SignatureText, *, where: str) -> type[dspy.Signature]:
    """Return the signature that ``describe`` wrote.

    Raises:
        ArchitectureError: If a type is not in ``TYPES`` or a field cannot be one.
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
        ArchitectureError: Naming both lists of fields.
    """
    wanted = (list(text.inputs), list(text.outputs))
    given = (list(signature.input_fields), list(signature.output_fields))
    if wanted != given:
        shown = [
            f"{', '.join(inputs)} -> {', '.join(outputs)}" for inputs, outputs in (given, wanted)
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
    return next((name for name, known in TYPES.items() if known == kind), str(kind))


def _type(name: str, kind: str | list[str], where: str) -> Any:
    if isinstance(kind, list) and kind:
        return Literal[tuple(kind)]
    if isinstance(kind, str) and kind in TYPES:
        return TYPES[kind]
    raise ArchitectureError(
        f"{where}: field {name!r} has type {kind!r}; a file can name {', '.join(sorted(TYPES))}. "
        "Give `signature=` for other types."
    )

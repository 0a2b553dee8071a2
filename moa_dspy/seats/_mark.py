"""Tells the predictors of a mixture apart by a mark that no prompt shows."""

from __future__ import annotations

from copy import copy
from typing import Any, Final

import dspy

MARK: Final = "moa_dspy_seat"
"""Under which the first input field of a seat's signature knows the seat."""


def mark_seats(program: Any) -> None:
    """Give every predictor of ``program`` a signature of its own, which knows its name.

    Proposers have the same fields and instructions, and optimizers tell predictors apart by
    their signatures: GEPA by ``equals``, Refine by the class. Without a mark, what one agent
    did is taken for what another one did. Copies, new instructions and loaded states keep
    the mark; adapters do not write it. The same seat of another program has the same mark,
    as a teacher's signatures must equal a student's.
    """
    for name, predictor in program.named_predictors():
        predictor.signature = _marked(predictor.signature, name)


def _marked(signature: Any, seat: str) -> Any:
    fields = dict(signature.fields)
    for name, field in signature.input_fields.items():
        # Fields may be shared with the caller's signature, so the marked one is a copy.
        fields[name] = copy(field)
        fields[name].json_schema_extra = {**field.json_schema_extra, MARK: seat}
        break
    return dspy.make_signature(fields, signature.instructions)

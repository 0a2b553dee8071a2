"""The tie between predictors and their seat: a mark on each, and no LM from outside.

Optimizers and wrappers of DSPy set LMs on predictors (``set_lm``, a teacher's settings) and find
predictors by their signatures. A mixture's agents are its pool's, so a seat is asked without such
an LM; of it only the ``rollout_id`` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Final, TypeAlias

import dspy

SEAT_MARK: Final = "moa_dspy_seat"
"""Key of the seat's name in the first input field of its signature."""


def mark_seats(program: Any) -> None:
    """Give every predictor of ``program`` a signature of its own, marked with the seat's name.

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
        fields[name].json_schema_extra = {**field.json_schema_extra, SEAT_MARK: seat}
        break
    return dspy.make_signature(fields, signature.instructions)


Trace: TypeAlias = list[tuple[Any, Any, Any]]
"""DSPy's trace: predictor, inputs, prediction."""


def outside_lms(module: Any) -> list[Any]:
    """Return the LMs that ``set_lm`` or an optimizer left on the module's predictors."""
    leaves = [module] if isinstance(module, dspy.Predict) else _leaves(module)
    return [leaf.lm for leaf in leaves if getattr(leaf, "lm", None) is not None]


def rollout(lms: Sequence[Any]) -> int | None:
    """Return the ``rollout_id`` that DSPy asks for: of these LMs, else of the one in settings."""
    for lm in [*lms, dspy.settings.lm]:
        number: int | None = getattr(lm, "kwargs", {}).get("rollout_id")
        if number is not None:
            return number
    return None


def without_lms(module: Any, lms: Sequence[Any]) -> Any:
    """Return a copy of ``module`` whose predictors have no LM of their own."""
    # An object that is in the memo is not copied but replaced, here by no LM.
    memo: dict[int, Any] = {id(lm): None for lm in lms}
    return deepcopy(module, memo)


def renamed(trace: Trace, made_by: Any, stands_for: Any) -> Trace:
    """Return the trace of a copy as the trace of its original, which optimizers look for."""
    if made_by is stands_for:
        return trace
    originals = {id(c): o for c, o in zip(_leaves(made_by), _leaves(stands_for), strict=True)}
    return [(originals.get(id(who), who), inputs, output) for who, inputs, output in trace]


def _leaves(module: Any) -> list[Any]:
    return [module] if isinstance(module, dspy.Predict) else list(module.predictors())

"""The modules in a program's seats: what kind they are, and what an optimizer changed in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moa_dspy.errors import ArchitectureError
from moa_dspy.layer import all_predictors
from moa_dspy.mixture import AGENT_MODULES, MixtureOfAgents
from moa_dspy.program_file._content import FieldText, SeatState


def agent_name(program: MixtureOfAgents) -> str:
    """Return the name of the module in the program's seats.

    Raises:
        ArchitectureError: If it has none in ``AGENT_MODULES``.
    """
    seats = [seat for layer in program.layers for seat in layer.proposers] or [program.aggregator]
    kinds = {type(seat) for seat in seats}
    for name, module in AGENT_MODULES.items():
        if kinds == {module}:
            return name
    shown = ", ".join(sorted(kind.__name__ for kind in kinds))
    known = ", ".join(sorted(AGENT_MODULES))
    raise ArchitectureError(f"Seats of {shown} cannot be saved; those that can are {known}.")


def seat_state(name: str, seat: Any) -> SeatState:
    """Return what a file keeps of one predictor.

    Raises:
        ArchitectureError: If the seat has settings that a file does not keep.
    """
    if seat.config or getattr(seat, "fields", None):
        raise ArchitectureError(
            f"{name} has settings of its own ({seat.config or seat.fields}), which cannot be "
            "saved; sampling settings belong to the pool's agents."
        )
    state = seat.dump_state()
    fields = [FieldText(**field) for field in state["signature"]["fields"]]
    return SeatState(state["signature"]["instructions"], fields, state["demos"])


def restore(program: MixtureOfAgents, states: Mapping[str, SeatState], *, where: str) -> None:
    """Put instructions, field texts and demos back into the seats they came from.

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

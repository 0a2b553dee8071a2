from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moa_dspy.adapters import ADAPTERS
from moa_dspy.errors import ArchitectureError
from moa_dspy.layer import all_predictors
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.program_file._content import FORMAT, AgentText, Content, Limits, Seating
from moa_dspy.program_file._seats import agent_name, seat_state
from moa_dspy.program_file._types import describe
from moa_dspy.version import version


def save_program(
    program: MixtureOfAgents, path: Path, *, scores: Mapping[str, Any] | None = None
) -> None:
    """Write ``program`` to a JSON file that ``load_program`` reads; an older file is replaced.

    Of agents the file has model name, temperature and longest answer, for people:
    endpoints, weights, prices and keys are the pool's and stay out.

    Args:
        program: With whatever instructions and demos an optimizer gave it.
        path: Of the file; its folder is made if it is absent.
        scores: JSON data to keep beside the program.

    Raises:
        ArchitectureError: If a part has no name that a file could hold (another adapter,
            another kind of seat), has settings of its own, or is not JSON.
    """
    content = Content(
        format=FORMAT,
        moa_dspy=version(),
        architecture=Seating(**program.architecture.to_json()),
        signature=describe(program.signature),
        adapter=_adapter_name(program.adapter),
        normalise=program.normalise,
        quorum=program.quorum,
        agent=agent_name(program),
        agents={name: _agent(program, name) for name in program.architecture.agents},
        state={name: seat_state(name, seat) for name, seat in all_predictors(program)},
        scores=None if scores is None else dict(scores),
        deadline_seconds=program.rules.deadline_seconds,
        limits=Limits(**asdict(program.rules.limits)),
    )
    try:
        text = json.dumps(asdict(content), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArchitectureError(f"The program cannot be written as JSON: {error}.") from error
    _replace(path, text + "\n")


def _agent(program: MixtureOfAgents, name: str) -> AgentText:
    agent = program.pool[name]
    return AgentText(agent.model, agent.temperature, agent.max_tokens)


def _adapter_name(adapter: Any) -> str | None:
    if adapter is None:
        return None
    for name, make in ADAPTERS.items():
        made = make()
        if type(adapter) is type(made) and _settings(adapter) == _settings(made):
            return name
    known = ", ".join(sorted(ADAPTERS))
    raise ArchitectureError(
        f"The adapter {type(adapter).__name__} cannot be saved with its settings; "
        f"those that can, as they are by default, are {known}."
    )


def _settings(adapter: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(adapter).items() if name != "callbacks"}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise ArchitectureError(f"{path} cannot be written: {error.strerror}.") from error

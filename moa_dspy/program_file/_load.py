from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import dspy

from moa_dspy.adapters import ADAPTERS
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.mixture import AGENT_MODULES, MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.program_file._content import read_content
from moa_dspy.program_file._seats import restore
from moa_dspy.program_file._types import check_fields, rebuild
from moa_dspy.references import ReferenceLimits

T = TypeVar("T")


def load_program(
    path: Path, *, pool: Pool, signature: type[dspy.Signature] | None = None
) -> MixtureOfAgents:
    """Rebuild a program from a file that ``save_program`` wrote; nothing in it is imported or run.

    Args:
        path: Of the file.
        pool: Where the agents' names become LMs; their settings are the pool's, not the file's.
        signature: Instead of the file's, with the same fields; needed for types of your own.

    Raises:
        ArchitectureError: If the file is not such a file, is of another format, has an
            unknown or missing key, or does not fit ``signature``.
        PoolError: If the pool lacks agents; names all of them.
    """
    content = read_content(path)
    architecture = Architecture.from_json(asdict(content.architecture))
    if absent := [name for name in architecture.agents if name not in pool]:
        known = ", ".join(sorted(pool))
        raise PoolError(
            f"{path} needs agents that the pool lacks: {', '.join(absent)}; it has {known}."
        )
    if signature is None:
        signature = rebuild(content.signature, where=str(path))
    else:
        check_fields(content.signature, signature, where=str(path))
    adapter = content.adapter
    program = MixtureOfAgents(
        signature,
        architecture,
        pool=pool,
        agent=_named(AGENT_MODULES, content.agent, f"{path}: unknown agent"),
        adapter=None
        if adapter is None
        else _named(ADAPTERS, adapter, f"{path}: unknown adapter")(),
        normalise=content.normalise,
        quorum=content.quorum,
        deadline_seconds=content.deadline_seconds,
        limits=ReferenceLimits(**asdict(content.limits)),
    )
    restore(program, content.state, where=str(path))
    return program


def restore_program(program: MixtureOfAgents, path: Path) -> None:
    """Put the instructions, field texts and demos of a file into ``program``.

    Raises:
        ArchitectureError: As ``load_program``, and if the file is of another architecture.
    """
    content = read_content(path)
    architecture = Architecture.from_json(asdict(content.architecture))
    if architecture != program.architecture:
        raise ArchitectureError(
            f"{path} holds {architecture}, but this program is {program.architecture}; "
            "`MixtureOfAgents.load(path, pool=...)` builds the file's."
        )
    check_fields(content.signature, program.signature, where=str(path))
    restore(program, content.state, where=str(path))


def _named(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise ArchitectureError(f"{what} {name!r}; known ones are {', '.join(sorted(table))}.")
    return table[name]

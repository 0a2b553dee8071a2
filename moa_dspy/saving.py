"""``save`` and ``load`` of a mixture, as DSPy's programs have them, on files that are safe."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from moa_dspy.errors import ArchitectureError

if TYPE_CHECKING:
    from moa_dspy.pool import Pool


class Load:
    """``MixtureOfAgents.load(path, pool=...)`` builds; ``program.load(path)`` restores.

    Of the class it returns the program of a file that ``save`` wrote. Of a program it puts
    the prompts and demos of such a file, or of one of DSPy's own state files, into this
    program, which must have the same seats.
    """

    def __get__(self, program: Any, owner: type) -> Any:
        return _build if program is None else partial(_restore, program)


def _build(path: Path | str, *, pool: Pool, signature: type[dspy.Signature] | None = None) -> Any:
    from moa_dspy.program_file import load_program

    return load_program(Path(path), pool=pool, signature=signature)


def _restore(program: Any, path: Path | str, **options: Any) -> None:
    from moa_dspy.program_file import restore_program

    if _is_of_dspy(Path(path)):
        dspy.Module.load(program, path, **options)
    else:
        restore_program(program, Path(path))


def _is_of_dspy(path: Path) -> bool:
    """Whether the file is a state that DSPy wrote; DSPy says itself what it refuses."""
    if path.suffix == ".pkl":
        return True
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format" not in content and "metadata" in content


def save(
    program: Any, path: Path | str, save_program: bool = False, modules_to_serialize: Any = None
) -> None:
    """Write ``program`` to a JSON file that ``load`` reads: no endpoint, no key, no code.

    Raises:
        ArchitectureError: If a pickle is asked for, which would hold keys and whatever was
            said, or the program cannot be written.
    """
    from moa_dspy.program_file import save_program as write

    if save_program or modules_to_serialize or Path(path).suffix != ".json":
        raise ArchitectureError(
            f"A mixture is saved as a .json file, not as a pickle (keys would be in it), but "
            f"`path` is {str(path)!r} and `save_program` is {save_program}."
        )
    write(program, Path(path))

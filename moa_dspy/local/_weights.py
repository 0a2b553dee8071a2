"""The weights folder of this machine: find and check GGUF files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moa_dspy.errors import LocalModelError
from moa_dspy.local._catalogue import CATALOGUE, Weights
from moa_dspy.local._checksums import remembered_sha256, verify

MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What this machine has of one catalogue entry."""

    name: str
    licence: str
    n_bytes: int
    path: Path
    """Where the file is, or would be."""
    present: bool
    """A file of the right size is there."""
    checked: bool
    """Its sha256 is known to be the catalogue's; False also where nobody has looked yet."""


def weights_folder() -> Path:
    """Return the folder of weights: ``MOA_DSPY_WEIGHTS``, or one in the user's cache folder."""
    chosen = os.environ.get("MOA_DSPY_WEIGHTS")
    if chosen:
        return Path(chosen).expanduser()
    # The specification says that a relative XDG_CACHE_HOME is to be ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "moa-dspy" / "weights"


def find(
    name_or_path: str | os.PathLike[str],
    *,
    folder: Path | None = None,
    catalogue: Mapping[str, Weights] = CATALOGUE,
) -> Path:
    """Return the GGUF file behind a catalogue name or a path; downloads and hashes nothing.

    Raises:
        LocalModelError: the name is unknown, the file is absent, has another size than the
            catalogue says, or is no GGUF; the message says what to run.
    """
    weights = catalogue.get(os.fspath(name_or_path))
    if weights is None:
        return _find_path(Path(name_or_path).expanduser(), known=catalogue)
    path = folder_or_default(folder) / weights.filename
    remedy = f"run `moa-dspy models pull {weights.name}`"
    if not path.is_file():
        raise LocalModelError(f"{weights.name} is not on this machine ({path}); {remedy}.")
    size = path.stat().st_size
    if size != weights.bytes:
        raise LocalModelError(f"{path} has {size} bytes instead of {weights.bytes}; {remedy}.")
    return path


def check(
    name: str, *, folder: Path | None = None, catalogue: Mapping[str, Weights] = CATALOGUE
) -> Path:
    """Return the file of a catalogue entry once its sha256 is known to be right.

    Raises:
        ChecksumError: the file is another one.
        LocalModelError: unknown name, or absent.
    """
    weights = entry_of(name, catalogue)
    path = find(name, folder=folder, catalogue=catalogue)
    verify(path, weights.sha256)
    return path


def models_table(
    *, folder: Path | None = None, catalogue: Mapping[str, Weights] = CATALOGUE
) -> tuple[ModelStatus, ...]:
    """Return the status of every catalogue entry, in its order; reads no weights."""
    return tuple(_status(weights, folder_or_default(folder)) for weights in catalogue.values())


def _status(weights: Weights, folder: Path) -> ModelStatus:
    path = folder / weights.filename
    present = path.is_file() and path.stat().st_size == weights.bytes
    return ModelStatus(
        name=weights.name,
        licence=weights.licence,
        n_bytes=weights.bytes,
        path=path,
        present=present,
        checked=present and remembered_sha256(path) == weights.sha256,
    )


def require_gguf(path: Path) -> None:
    """Raise unless the file starts as a GGUF does.

    Raises:
        LocalModelError: absent, unreadable, or another kind of file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise LocalModelError(f"{path} cannot be read: {error.strerror}.") from error
    if start != MAGIC:
        raise LocalModelError(f"{path} is not a GGUF file (it starts with {start!r}).")


def _find_path(path: Path, *, known: Mapping[str, Weights]) -> Path:
    if not path.exists():
        names = ", ".join(sorted(known))
        raise LocalModelError(f"{path} is neither a file nor a known model; known: {names}.")
    require_gguf(path)
    return path


def entry_of(name: str, catalogue: Mapping[str, Weights]) -> Weights:
    """Return the entry under ``name``, or raise LocalModelError with the known names."""
    if name not in catalogue:
        names = ", ".join(sorted(catalogue))
        raise LocalModelError(f"Unknown model {name!r}; known ones are {names}.")
    return catalogue[name]


def folder_or_default(folder: Path | None) -> Path:
    """Return ``folder``, or the user's weights folder for None."""
    return weights_folder() if folder is None else folder

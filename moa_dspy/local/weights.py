"""The weights folder of this machine, and finding, checking and downloading of GGUF files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moa_dspy.errors import ChecksumError, LocalModelError
from moa_dspy.local.server import CATALOGUE, Source, Weights, require_gguf


def sha256_of(path: Path) -> str:
    """Return the file's sha256, hashing it only if it has changed since the last call.

    The sum is stored in ``NAME.gguf.sha256`` with the file's size and modification time; if either
    differs, or that file cannot be read or written, the whole file is hashed (about one second per
    GB).

    Raises:
        OSError: If ``path`` cannot be read.
    """
    remembered = remembered_sha256(path)
    if remembered is not None:
        return remembered
    stamp = _stamp(path)
    with path.open("rb") as file:
        sum_ = hashlib.file_digest(file, "sha256").hexdigest()
    remember(path, sum_, stamp=stamp)
    return sum_


def remembered_sha256(path: Path) -> str | None:
    """Return the sum stored for the present file, or None; never hashes."""
    try:
        sum_, *stamp = _side_file(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return sum_ if stamp == _stamp(path).split() else None


def remember(path: Path, sha256: str, *, stamp: str | None = None) -> None:
    """Store ``sha256`` for the present file, or for its state ``stamp`` when it was read."""
    try:
        _side_file(path).write_text(f"{sha256} {stamp or _stamp(path)}\n", encoding="ascii")
    except OSError:
        # In a read-only folder the file is only hashed again at the next start.
        return


def verify(path: Path, sha256: str) -> None:
    """Raise unless the file has this sha256.

    Raises:
        ChecksumError: If it differs; the message has the expected and the found sum.
        OSError: If ``path`` cannot be read.
    """
    digest = sha256_of(path)
    if digest != sha256:
        raise ChecksumError(f"{path} has sha256 {digest}, but {sha256} was expected.")


def _side_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Status of one catalogue entry on this machine."""

    name: str
    licence: str
    n_bytes: int
    path: Path
    """Path of the file, whether it exists or not."""
    present: bool
    """A file of the right size is there."""
    checked: bool
    """Its sha256 is known to be the catalogue's; False also if it was not computed yet."""


def weights_folder() -> Path:
    """Return the folder of weights: ``MOA_DSPY_WEIGHTS``, or one in the user's cache folder."""
    chosen = os.environ.get("MOA_DSPY_WEIGHTS")
    if chosen:
        return Path(chosen).expanduser()
    # By the specification, a relative XDG_CACHE_HOME is ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "moa-dspy" / "weights"


def find(
    name_or_path: str | os.PathLike[str],
    *,
    folder: Path | None = None,
    catalogue: Mapping[str, Weights] = CATALOGUE,
) -> Path:
    """Return the GGUF file of a catalogue name or path, without downloading or hashing.

    Raises:
        LocalModelError: If the name is unknown, or the file is missing, has another size than in
            the catalogue, or is not GGUF; the message says which command to run.
    """
    weights = catalogue.get(os.fspath(name_or_path))
    if weights is None:
        return _find_path(Path(name_or_path).expanduser(), catalogue=catalogue)
    path = folder_or_default(folder) / weights.filename
    remedy = f"run `moa-dspy models pull {weights.name}`"
    if not path.is_file():
        raise LocalModelError(f"{weights.name} is not on this machine ({path}); {remedy}.")
    size = path.stat().st_size
    if size != weights.bytes:
        raise LocalModelError(f"{path} has {size} bytes instead of {weights.bytes}; {remedy}.")
    return path


def weights_status(
    name: str, *, folder: Path | None = None, catalogue: Mapping[str, Weights] = CATALOGUE
) -> Path:
    """Return the file of a catalogue entry after checking its sha256.

    Raises:
        ChecksumError: If the sha256 differs.
        LocalModelError: If the name is unknown or the file missing.
    """
    weights = entry_of(name, catalogue)
    path = find(name, folder=folder, catalogue=catalogue)
    verify(path, weights.sha256)
    return path


def models_table(
    *, folder: Path | None = None, catalogue: Mapping[str, Weights] = CATALOGUE
) -> tuple[ModelStatus, ...]:
    """Return the status of every catalogue entry, in its order, without reading weights."""
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


def _find_path(path: Path, *, catalogue: Mapping[str, Weights]) -> Path:
    if not path.exists():
        names = ", ".join(sorted(catalogue))
        raise LocalModelError(f"{path} is neither a file nor a known model; known: {names}.")
    require_gguf(path)
    return path


def entry_of(name: str, catalogue: Mapping[str, Weights]) -> Weights:
    """Return the entry ``name``, or raise LocalModelError with the known names."""
    if name not in catalogue:
        names = ", ".join(sorted(catalogue))
        raise LocalModelError(f"Unknown model {name!r}; known ones are {names}.")
    return catalogue[name]


def folder_or_default(folder: Path | None) -> Path:
    """Return ``folder``, or the user's weights folder if it is None."""
    return weights_folder() if folder is None else folder


def pull(
    name: str,
    *,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
    catalogue: Mapping[str, Weights] = CATALOGUE,
    free_bytes: Callable[[Path], int] | None = None,
) -> Path:
    """Return the file of a catalogue entry, downloading it if it is missing or damaged.

    Sources are tried in the catalogue's order. The file gets its name only when it is complete and
    its sha256 is right, so a broken download is never mistaken for weights.

    Args:
        name: A key of ``catalogue``.
        offline: Whether no source is asked.
        progress: Called with one line of text per step.
        folder: Replaces ``weights_folder()``.
        catalogue: Replaces the library's own.
        free_bytes: Returns the free bytes of a folder's disk.

    Raises:
        ChecksumError: If a source returned another file, which was removed.
        LocalModelError: If the name is unknown, no source answered, there is no space, or the file
            is missing and ``offline`` is true.
    """
    weights = entry_of(name, catalogue)
    path = folder_or_default(folder) / weights.filename
    if _is_whole(path, weights):
        return path
    if offline:
        raise LocalModelError(
            f"{name} is missing or incomplete at {path}, and this run must not download it, as "
            "it is offline."
        )
    say = progress or _say_nothing
    reasons = []
    for source in weights.sources:
        say(f"{name}: {weights.bytes / 1e6:.0f} MB from {source}")
        try:
            _fetch(weights, source, path, free_bytes or _free_bytes)
        except ChecksumError:
            raise
        except LocalModelError as error:
            reasons.append(str(error))
        else:
            say(f"{name}: {path}")
            return path
    raise LocalModelError(f"{name} could not be downloaded. " + " ".join(reasons))


def _is_whole(path: Path, weights: Weights) -> bool:
    # The size first, as it is free to check and most damaged files are truncated.
    right_size = path.is_file() and path.stat().st_size == weights.bytes
    return right_size and sha256_of(path) == weights.sha256


def _fetch(weights: Weights, source: Source, path: Path, free_bytes: Callable[[Path], int]) -> None:
    """Write the complete, checked file to ``path``, or leave no file."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(weights.bytes * source.n_copies, folder, free_bytes)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{weights.name}-") as scratch:
            partial = Path(scratch) / weights.filename
            source.fetch(partial)
            _require_sum(partial, weights, source)
            partial.replace(path)
    except LocalModelError:
        raise
    except OSError as error:
        raise LocalModelError(f"{path} cannot be written: {error}.") from error
    remember(path, weights.sha256)


def _require_sum(path: Path, weights: Weights, source: Source) -> None:
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise ChecksumError(
            f"{source} gave a file with sha256 {digest}, but {weights.name} has {weights.sha256}; "
            "the file was removed."
        )


def _require_space(needed: int, folder: Path, free_bytes: Callable[[Path], int]) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise LocalModelError(
            f"The download needs {needed / 1e6:.0f} MB, but {folder} has only {free / 1e6:.0f} "
            "MB of free space."
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _say_nothing(line: str) -> None:
    del line

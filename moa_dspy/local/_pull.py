"""Fetch weights: all of a file, checked, or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from moa_dspy.errors import ChecksumError, LocalModelError
from moa_dspy.local._catalogue import CATALOGUE, Weights
from moa_dspy.local._checksums import remember, sha256_of
from moa_dspy.local._sources import Source
from moa_dspy.local._weights import entry_of, folder_or_default


def pull(
    name: str,
    *,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
    catalogue: Mapping[str, Weights] = CATALOGUE,
    free_bytes: Callable[[Path], int] | None = None,
) -> Path:
    """Return the file of a catalogue entry, fetching it first where it is absent or damaged.

    Sources are tried in the catalogue's order. The file appears under its name only once it is
    whole and its sha256 is right, so a broken download never looks like weights.

    Args:
        name: A key of ``catalogue``.
        offline: Never ask a source.
        progress: Gets one line of text per step.
        folder: Instead of ``weights_folder()``.
        catalogue: Instead of the library's own.
        free_bytes: Tells the free bytes of the disk that holds a folder.

    Raises:
        ChecksumError: a source handed over another file; it was removed.
        LocalModelError: unknown name, no source answered, no space, or absent and ``offline``.
    """
    weights = entry_of(name, catalogue)
    path = folder_or_default(folder) / weights.filename
    if _is_whole(path, weights):
        return path
    if offline:
        raise LocalModelError(f"{name} is not (or not whole) at {path}, and this run is offline.")
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
    raise LocalModelError(f"{name} could not be had. " + " ".join(reasons))


def _is_whole(path: Path, weights: Weights) -> bool:
    # The size first: it is free, and most damage is a file cut short.
    right_size = path.is_file() and path.stat().st_size == weights.bytes
    return right_size and sha256_of(path) == weights.sha256


def _fetch(weights: Weights, source: Source, path: Path, free_bytes: Callable[[Path], int]) -> None:
    """Write the whole, checked file to ``path``, or leave nothing behind."""
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
    found = sha256_of(path)
    if found != weights.sha256:
        raise ChecksumError(
            f"{source} gave a file with sha256 {found}, but {weights.name} has {weights.sha256}; "
            "the file was removed."
        )


def _require_space(needed: int, folder: Path, free_bytes: Callable[[Path], int]) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise LocalModelError(
            f"The download needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB free at {folder}."
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _say_nothing(line: str) -> None:
    del line

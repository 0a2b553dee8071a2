"""Checksums of large files, remembered beside the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from moa_dspy.errors import ChecksumError


def sha256_of(path: Path) -> str:
    """Return the file's sha256, hashing only what has changed since the last time.

    The sum is kept in ``NAME.gguf.sha256`` with the file's size and modification time; where
    either differs, or the side file cannot be read or written, the whole file is hashed (about a
    second per GB).

    Raises:
        OSError: ``path`` cannot be read.
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
    """Return the sum noted for the file as it is now, or None; never hashes."""
    try:
        sum_, *stamp = _side_file(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return sum_ if stamp == _stamp(path).split() else None


def remember(path: Path, sha256: str, *, stamp: str | None = None) -> None:
    """Note ``sha256`` for the file as it is now, or as ``stamp`` says it was when it was read."""
    try:
        _side_file(path).write_text(f"{sha256} {stamp or _stamp(path)}\n", encoding="ascii")
    except OSError:
        # A read-only folder costs time at the next start, and nothing else.
        return


def verify(path: Path, sha256: str) -> None:
    """Raise unless the file has this sha256.

    Raises:
        ChecksumError: names the expected and the found sum.
        OSError: ``path`` cannot be read.
    """
    found = sha256_of(path)
    if found != sha256:
        raise ChecksumError(f"{path} has sha256 {found}, but {sha256} was expected.")


def _side_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"

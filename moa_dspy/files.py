"""Files that are replaced as a whole, so that every reader finds the old or the new content."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; its folder is made if it is absent.

    Several processes may replace the same file at once: the last one wins, whole.

    Raises:
        OSError: If it cannot be written; then there is no new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that no other process writes to it or moves it away.
    partial = path.with_name(f".{path.name[:100]}.{uuid4().hex}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

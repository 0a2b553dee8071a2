"""The installed version of the library."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Return the installed version; ``unknown`` in a checkout that was never installed."""
    try:
        return metadata.version("moa-dspy")
    except metadata.PackageNotFoundError:
        return "unknown"

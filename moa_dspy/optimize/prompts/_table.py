"""The table ``[prompts]`` of a study file."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moa_dspy.errors import StudyError
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
        wanted = self.optimizer
        is_ours = wanted is None or ":" not in wanted
        return PromptOptions(
            **{**self.model_dump(), "optimizer": wanted if is_ours else _imported(str(wanted))}
        )


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join([*sorted(OPTIMIZERS), "package.module:name"])
        raise StudyError(
            f"`prompts.optimizer`: {name!r} cannot be imported: {error}; known ones are {known}."
        ) from error
    if hasattr(found, "compile") and not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:
        kind = type(error).__name__
        raise StudyError(f"`prompts.optimizer`: {name!r}() raised {kind}: {error}") from error

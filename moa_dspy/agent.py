"""An agent: a model with its sampling settings under a name; and files that list agents."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from moa_dspy._toml import check_table, read_toml
from moa_dspy.errors import PoolError
from moa_dspy.local import CATALOGUE

VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
"""How a path names an environment variable."""
_NAME = re.compile(r"[^\s>+*()]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A language model with its sampling settings under a name: ``A_ij`` of the paper.

    The same model at two temperatures is two agents.

    Attributes:
        name: A plain word, as architectures write it.
        model: ``local/NAME`` (llama.cpp in this process; NAME from the catalogue), or
            ``vendor/NAME`` as DSPy and LiteLLM write it.
        temperature: 0 is greedy; such an agent gives one answer however often it is asked.
        max_tokens: Longest answer, in tokens.
        context_window: Most tokens of prompt and answer together; what an agent reads of
            others is cut to keep to it. None is no limit.
        weights: ``local/`` only: path of a GGUF file, ``${VARIABLE}`` is expanded.
        sha256: ``local/`` only: checksum the weights must have, and their identity; needed
            with ``weights``, known for a name of the catalogue.
        n_slots: ``local/`` only: questions the model answers at the same time.
        n_threads: ``local/`` only: threads of the model; None takes every core.
        api_base: URL of an OpenAI-compatible endpoint; None is the vendor's own.
        api_key_env: Name of the environment variable that holds the key.
        client: ``litellm`` sends every request through LiteLLM.
        num_retries: Attempts after a first one that failed for the moment: busy, down, slow.
        timeout_seconds: How long one attempt may take in all, and each wait inside it.
        max_concurrent: Requests at a time; agents of one endpoint share the smallest number
            that one of them gives. None is no limit of ours.
        usd_per_million_prompt_tokens: Price; 0 where nobody charges.
        usd_per_million_completion_tokens: Price; 0 where nobody charges.
        optional: Whether the agent is left out, and the user told, where a variable that
            it needs is not set.

    Raises:
        PoolError: If a value is out of range, naming the agent, the field and the value.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    model: str
    temperature: float = 0.7
    max_tokens: int = 1024
    context_window: int | None = None
    weights: str | None = None
    sha256: str | None = None
    n_slots: int = 4
    n_threads: int | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    client: str = "auto"
    num_retries: int = 3
    timeout_seconds: float = 600.0
    max_concurrent: int | None = None
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0
    optional: bool = False

    def __post_init__(self) -> None:
        checks = {
            "name": _NAME.fullmatch(self.name) is not None,
            "model": "/" in self.model,
            "temperature": 0 <= self.temperature <= 2,
            "max_tokens": self.max_tokens >= 1,
            "context_window": self.context_window is None or self.context_window > self.max_tokens,
            "n_slots": self.n_slots >= 1,
            "n_threads": self.n_threads is None or self.n_threads >= 1,
            "client": self.client in ("auto", "litellm"),
            "num_retries": self.num_retries >= 0,
            "timeout_seconds": 0 < self.timeout_seconds < math.inf,
            "max_concurrent": self.max_concurrent is None or self.max_concurrent >= 1,
            "usd_per_million_prompt_tokens": self.usd_per_million_prompt_tokens >= 0,
            "usd_per_million_completion_tokens": self.usd_per_million_completion_tokens >= 0,
        }
        self._check_secrets()
        if self.is_local:
            self._check_weights()
        for name, is_fine in checks.items():
            if not is_fine:
                value = getattr(self, name)
                raise PoolError(f"Agent {self.name!r}: `{name}` cannot be {value!r}.")

    def _check_secrets(self) -> None:
        # A value refused here may be the key itself, so it is not shown.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise PoolError(
                f"Agent {self.name!r}: `api_key_env` must be the name of an environment variable, "
                "not the key."
            )
        if "@" in (self.api_base or "").partition("://")[2].partition("/")[0]:
            raise PoolError(
                f"Agent {self.name!r}: `api_base` must not hold a user or password, which would be "
                "stored; use `api_key_env`."
            )

    def _check_weights(self) -> None:
        if self.weights is not None and self.sha256 is None:
            raise PoolError(
                f"Agent {self.name!r}: `sha256` must be given with `weights`; "
                "`sha256sum FILE` prints it."
            )
        catalogue_name = self.model.removeprefix("local/")
        if self.weights is None and catalogue_name not in CATALOGUE:
            known = ", ".join(sorted(CATALOGUE))
            raise PoolError(
                f"Agent {self.name!r}: `model` {self.model!r} is not in the catalogue ({known}); "
                "give `weights` and `sha256`."
            )

    @property
    def missing_variables(self) -> tuple[str, ...]:
        """Environment variables that the agent needs and that are not set."""
        named = VARIABLE.findall(self.weights or "")
        needed = [*named, *([self.api_key_env] if self.api_key_env else [])]
        return tuple(name for name in needed if name not in os.environ)

    @property
    def is_local(self) -> bool:
        """Whether llama.cpp answers inside this process."""
        return self.model.startswith("local/")

    @property
    def endpoint(self) -> str:
        """Where requests go, whatever the model: what has one queue."""
        if self.is_local:
            return self.identity
        return (self.api_base or self.model.partition("/")[0]).rstrip("/")

    @property
    def identity(self) -> str:
        """What answers, endpoint or weights included; sampling settings are not part of it."""
        if self.is_local:
            known = self.sha256 or CATALOGUE[self.model.removeprefix("local/")].sha256
            return f"{self.model}@sha256:{known}"
        return f"{self.model}@{self.api_base or 'vendor'}"


def read_agents(path: Path) -> list[Agent]:
    """Read the agents of a pool file; a relative ``weights`` path is relative to the file.

    Raises:
        PoolError: If the file cannot be read, or names what it does not know.
    """
    content = read_toml(path, error=PoolError)
    if unknown := set(content) - {"agents"}:
        raise PoolError(f"{path}: unknown key {min(unknown)!r}; known ones are agents.")
    agents = check_table(
        list[Agent],
        content.get("agents", []),
        where=f"{path}: agents",
        error=PoolError,
        may_hold_keys=True,
    )
    return [_beside(path, agent) for agent in agents]


def available(agents: Iterable[Agent]) -> tuple[list[Agent], list[str]]:
    """Return the agents that can be asked here, and a line on each optional one that cannot."""
    kept, notes = [], []
    for agent in agents:
        if agent.optional and (missing := agent.missing_variables):
            notes.append(f"{agent.name} is left out: {', '.join(missing)} is not set.")
        else:
            kept.append(agent)
    return kept, notes


def _beside(path: Path, agent: Agent) -> Agent:
    if agent.weights is None or agent.weights.startswith("$"):
        return agent
    return replace(agent, weights=str(path.parent / agent.weights))

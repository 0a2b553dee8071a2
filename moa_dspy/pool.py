"""The agents a mixture or a search may use, by name, each with a ``dspy.LM``."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moa_dspy.agent import VARIABLE, Agent, available, read_agents
from moa_dspy.calls import Caller, Calls
from moa_dspy.errors import PoolError

if TYPE_CHECKING:
    import dspy

__all__ = ["Agent", "Pool", "available", "make_lm", "read_agents"]

logger = logging.getLogger(__name__)

_IS_KEY = re.compile(r"(API_?KEY|_TOKEN|SECRET)$")
_SHORTEST_KEY = 6
"""Shorter values, such as a placeholder of a local server, would mask ordinary text."""


class Pool(Mapping[str, Agent]):
    """Agents by name, each with a ``dspy.LM`` whose calls go through one call store.

    Args:
        agents: In any order; names must differ.
        calls: Where answers come from and go to; default: memory of this process.
        lms: LMs that the caller made, by agent name, used as they are.

    Raises:
        PoolError: If there is no agent, or a name occurs twice.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        *,
        calls: Calls | None = None,
        lms: Mapping[str, dspy.LM] | None = None,
    ) -> None:
        listed = list(agents)
        self._agents = {agent.name: agent for agent in listed}
        self.calls = calls or Calls()
        self._lms: dict[str, Any] = dict(lms or {})
        self._lock = threading.Lock()
        if not listed:
            raise PoolError("A pool must hold at least one agent, but got none.")
        if len(self._agents) < len(listed):
            names = [agent.name for agent in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise PoolError(f"Agent names must differ, but {', '.join(twice)} occurs twice.")

    @classmethod
    def from_lms(cls, lms: Mapping[str, dspy.LM]) -> Pool:
        """Make a pool of LMs that exist already; their calls are not stored."""
        agents = [
            Agent(
                name=name,
                model=lm.model if "/" in lm.model else f"given/{lm.model}",
                temperature=lm.kwargs.get("temperature") or 0.0,
                max_tokens=lm.kwargs.get("max_tokens") or 1024,
            )
            for name, lm in lms.items()
        ]
        return cls(agents, lms=lms)

    @classmethod
    def read(cls, path: Path, *, calls: Calls | None = None) -> Pool:
        """Read a pool file: TOML with one ``[[agents]]`` table per agent.

        Raises:
            PoolError: If the file cannot be read or has an unknown or badly typed key.
        """
        agents, _ = available(read_agents(path))
        return cls(agents, calls=calls)

    def __getitem__(self, name: str) -> Agent:
        try:
            return self._agents[name]
        except KeyError:
            known = ", ".join(sorted(self._agents))
            raise PoolError(f"Unknown agent {name!r}; the pool has {known}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._agents

    def __iter__(self) -> Iterator[str]:
        return iter(self._agents)

    def __len__(self) -> int:
        return len(self._agents)

    def __repr__(self) -> str:
        return f"Pool({', '.join(self._agents)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Pool:
        # DSPy's optimizers deep-copy programs; connections and stores are shared, not copied.
        return self

    def lm(self, name: str) -> dspy.LM:
        """Return the LM of an agent, always the same object.

        Raises:
            PoolError: If the pool has no such agent.
        """
        agent = self[name]
        with self._lock:
            if name not in self._lms:
                self._lms[name] = make_lm(agent, self.calls)
            return self._lms[name]


def make_lm(agent: Agent, calls: Calls) -> dspy.LM:
    """Return a ``dspy.LM`` that answers from ``calls`` and asks the agent's endpoint otherwise.

    DSPy's own cache is off: its key ignores the endpoint and it forgets usage on hits.
    """
    import dspy

    from moa_dspy.calls import AsyncStoredEngine, StoredEngine

    key = os.environ.get(agent.api_key_env) if agent.api_key_env else None
    caller = Caller(
        agent=agent.name,
        identity=agent.identity,
        usd_per_prompt_token=agent.usd_per_million_prompt_tokens / 1e6,
        usd_per_completion_token=agent.usd_per_million_completion_tokens / 1e6,
        secrets=_secrets(agent),
    )
    return dspy.LM(
        f"agent/{agent.name}",
        temperature=agent.temperature,
        max_tokens=agent.max_tokens,
        cache=False,
        engine=StoredEngine(calls, caller, lambda: _engine(agent, key), is_seeded=agent.is_local),
        async_engine=AsyncStoredEngine(
            calls, caller, lambda: _engine(agent, key, asynchronous=True), is_seeded=agent.is_local
        ),
    )


def _secrets(agent: Agent) -> tuple[str, ...]:
    """Return what must never be written: every key that a client of this agent might send.

    Vendors' clients find their keys in the environment by themselves, so any variable
    that is named like a key counts, not only the agent's own.
    """
    if agent.is_local:
        return ()
    own = {os.environ.get(agent.api_key_env or "", "")} - {""}
    others = {v for n, v in os.environ.items() if _IS_KEY.search(n) and len(v) >= _SHORTEST_KEY}
    return tuple(sorted(own | others, key=len, reverse=True))


def _engine(agent: Agent, key: str | None, *, asynchronous: bool = False) -> Any:
    if missing := agent.missing_variables:
        raise PoolError(
            f"Agent {agent.name!r}: the environment has no variable {missing[0]} "
            "(`weights` or `api_key_env`)."
        )
    if agent.is_local:
        from moa_dspy.local import local_engine

        return local_engine(
            _weights(agent),
            sha256=agent.sha256,
            n_slots=agent.n_slots,
            n_threads=agent.n_threads,
            asynchronous=asynchronous,
        )
    from moa_dspy.calls._endpoints import Endpoint, endpoint_engine

    client: Any = agent.client
    endpoint = Endpoint(agent.model, agent.api_base, key, client)
    return endpoint_engine(endpoint, asynchronous=asynchronous)


def _weights(agent: Agent) -> str:
    """Return the path of the agent's weights, pulling those of the catalogue that are not here."""
    if agent.weights is not None:
        return VARIABLE.sub(lambda match: os.environ[match[1]], agent.weights)
    from moa_dspy.local import pull

    return str(pull(agent.model.removeprefix("local/"), progress=logger.warning))

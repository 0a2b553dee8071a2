"""The agents a mixture or a search may use, by name, each with a ``dspy.LM``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moa_dspy.adoption import given
from moa_dspy.agent import Agent, available, read_agents
from moa_dspy.agent_lm import make_lm
from moa_dspy.calls import Calls, NoStore
from moa_dspy.errors import PoolError

if TYPE_CHECKING:
    import dspy

__all__ = ["Agent", "Pool", "available", "make_lm", "read_agents"]


class Pool(Mapping[str, Agent]):
    """Agents by name, each with a ``dspy.LM`` whose calls go through one call store.

    Args:
        agents: In any order; names must differ.
        calls: Where answers come from and go to; default: memory of this process.
        lms: LMs that the caller made, by agent name, used as they are.

    Attributes:
        not_adopted: Why an agent's LM is used as it is, its calls not stored, by name.

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
        self.not_adopted: Mapping[str, str] = {}
        if not listed:
            raise PoolError("A pool must hold at least one agent, but got none.")
        if len(self._agents) < len(listed):
            names = [agent.name for agent in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise PoolError(f"Agent names must differ, but {', '.join(twice)} occurs twice.")
        for agent in listed:
            # Of all before the first request: the smallest limit of an endpoint counts.
            self.calls.limiters.of(agent.endpoint, agent.max_concurrent)

    @classmethod
    def from_lms(
        cls,
        lms: Mapping[str, dspy.BaseLM],
        *,
        calls: Calls | None = None,
        strict: bool = False,
        usd_per_million_tokens: Mapping[str, tuple[float, float]] | None = None,
    ) -> Pool:
        """Make a pool of LMs that exist already, each adopted if that is possible.

        The calls of an adopted LM go through the pool's: stored, counted, limited, told
        apart by sample. It is asked where and how the LM itself would ask, with the LM's key,
        settings, retries and timeout; answers of DSPy's cache are not used. The LM stays as
        it is, and calls show up in its history too; what is changed on it later has no
        effect here. An LM that cannot be adopted is used as it is: its calls are counted in
        the facts of an answer, but not stored; ``not_adopted`` says why.

        Args:
            lms: By agent name.
            calls: Where answers come from and go to; default: memory of this process for an
                LM that caches, and nowhere for one that does not.
            strict: Whether an LM that cannot be adopted is an error.
            usd_per_million_tokens: Price of prompt and of completion tokens, by agent
                name; default 0.

        Raises:
            PoolError: If there is no LM, or with ``strict`` one that cannot be adopted.
        """
        kept, prices = calls or Calls(), usd_per_million_tokens or {}
        unkept = calls or Calls(NoStore(), ledger=kept.ledger)
        found = {
            name: given(
                name,
                lm,
                kept if getattr(lm, "cache", False) else unkept,
                usd=prices.get(name, (0.0, 0.0)),
            )
            for name, lm in lms.items()
        }
        reasons = {name: it.reason for name, it in found.items() if it.reason is not None}
        if strict and reasons:
            name, reason = next(iter(reasons.items()))
            raise PoolError(f"Agent {name!r}: its LM cannot be adopted: {reason}.")
        made = {name: it.lm for name, it in found.items()}
        pool = cls([it.agent for it in found.values()], calls=kept, lms=made)
        pool.not_adopted = reasons
        return pool

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

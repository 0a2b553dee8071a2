"""The agents that a mixture or a search may use, by name, each with a ``dspy.LM``.

If possible, the user's own LMs are adopted: their calls go through the pool's ``Calls``. Other LMs
are called unchanged, and their calls are only counted.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moa_dspy.agent import IS_CREDENTIAL, VARIABLE, Agent, available, read_agents
from moa_dspy.calls.call import NoStore
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.request import AgentCalls, RetryPolicy
from moa_dspy.errors import SHORTEST_KEY, PoolError
from moa_dspy.local.server import loading, loading_seconds
from moa_dspy.vendors import OWN_PROTOCOL, Price, vendor_of

if TYPE_CHECKING:
    import dspy

_logger = logging.getLogger(__name__)

_IS_KEY: Final = re.compile(r"(API_?KEY|_TOKEN|SECRET)$")


def make_lm(agent: Agent, calls: Calls) -> dspy.LM:
    """Return a ``dspy.LM`` that answers from ``calls``, or else asks the agent's endpoint."""
    from moa_dspy.calls.lm.lm import stored_lm

    key = _key(agent)
    # Settings that are not given are not sent, and are not part of a call's key.
    options = {"top_p": agent.top_p, "reasoning_effort": agent.reasoning_effort}
    return stored_lm(
        f"agent/{agent.name}",
        calls,
        caller_of(agent, calls),
        lambda asynchronous: _engine(agent, key, asynchronous=asynchronous),
        is_seeded=agent.is_local,
        timeout_seconds=agent.timeout_seconds,
        extra_body=agent.extra_body,
        temperature=agent.temperature,
        max_tokens=agent.max_tokens,
        **{name: value for name, value in options.items() if value is not None},
    )


def _key(agent: Agent) -> str | None:
    if agent.api_key_env is not None:
        return os.environ.get(agent.api_key_env)
    if agent.api_base is None and agent.base_url is not None:
        # A gateway named in the environment gets the vendor's key, as in DSPy and LiteLLM.
        return os.environ.get(f"{vendor_of(agent.model).upper()}_API_KEY")
    return None


def caller_of(agent: Agent, calls: Calls, *, secrets: tuple[str, ...] = ()) -> AgentCalls:
    """Return the properties of ``agent`` that its calls need.

    Args:
        agent: The agent; an unknown price counts as 0 here, see ``Agent.price``.
        calls: The ``Calls`` it uses, in which agents of one endpoint share slots.
        secrets: Keys that are not in the environment.
    """
    return AgentCalls(
        agent=agent.name,
        identity=agent.identity,
        **(agent.price or Price(0.0, 0.0, "unknown")).per_token,
        secrets=_secrets(agent, secrets),
        retries=RetryPolicy(agent.num_retries),
        limiter=calls.limiters.of(agent.endpoint, agent.max_concurrent),
        is_remote=not agent.is_local,
        loading=loading_seconds if agent.is_local else float,
    )


def _secrets(agent: Agent, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return every key that a client of this agent might send; they must never be written.

    Vendors' clients find keys in the environment by themselves, so every variable that is named
    like a key counts, not only that of the agent.
    """
    if agent.is_local:
        return ()
    headers = [value for name, value in agent.headers.items() if IS_CREDENTIAL.search(name)]
    named = [agent.api_key_env or "", *VARIABLE.findall(" ".join(headers))]
    own = {*(os.environ.get(name, "") for name in named), *keys} - {""}
    others = {v for n, v in os.environ.items() if _IS_KEY.search(n) and len(v) >= SHORTEST_KEY}
    # The longest first: one key may be a part of another.
    return tuple(sorted(own | others, key=len, reverse=True))


def _expanded(text: str) -> str:
    return VARIABLE.sub(lambda match: os.environ[match[1]], text)


def _engine(agent: Agent, key: str | None, *, asynchronous: bool = False) -> Any:
    if missing := agent.missing_variables:
        raise PoolError(
            f"Agent {agent.name!r}: the environment has no variable {missing[0]} "
            "(`weights`, `api_key_env` or `headers`)."
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
    from moa_dspy.calls.lm.clients import endpoint_engine
    from moa_dspy.calls.lm.endpoint import Endpoint

    client: Any = agent.client
    if agent.api_base != agent.base_url and vendor_of(agent.model) in OWN_PROTOCOL:
        client = "litellm"
    headers = tuple((name, _expanded(value)) for name, value in agent.headers.items())
    timeout = agent.timeout_seconds
    endpoint = Endpoint(agent.model, agent.base_url, key, client, timeout, headers)
    return endpoint_engine(endpoint, asynchronous=asynchronous)


def _weights(agent: Agent) -> str:
    """Return the path of the agent's weights; missing weights of the catalogue are downloaded."""
    if agent.weights is not None:
        return _expanded(agent.weights)
    from moa_dspy.local import pull

    with loading():
        return str(pull(agent.model.removeprefix("local/"), progress=_logger.warning))


@dataclass(frozen=True, slots=True)
class GivenLM:
    """A user's own LM in a pool.

    Attributes:
        agent: Its description, for display and prices.
        lm: The LM in use; for an adopted LM, a copy whose calls go through the pool's ``Calls``.
        reason: Why it was not adopted; None if it was adopted or its calls are stored already.
    """

    agent: Agent
    lm: Any
    reason: str | None = None


def adopt(name: str, lm: dspy.BaseLM, calls: Calls, *, usd: tuple[float, float] | None) -> GivenLM:
    """Adopt ``lm``, or return it with the reason why it cannot be adopted.

    Args:
        name: Name of the agent.
        lm: The LM; it is not changed, except that a refused LM gets a callback that counts calls.
        calls: Source and store of its answers.
        usd: Prices of a million prompt and of a million completion tokens; None is unknown.
    """
    from moa_dspy.calls.lm.lm import CountCalls, refusal

    plain = _plain_agent(name, lm, usd)
    if getattr(getattr(lm, "engine", None), "logs_calls", False):
        return GivenLM(plain, lm)
    reason = refusal(lm)
    if reason is None:
        return _adopted(plain, lm, calls)
    if not any(isinstance(callback, CountCalls) for callback in lm.callbacks):
        lm.callbacks.append(CountCalls(name))
    return GivenLM(plain, lm, reason)


def _plain_agent(name: str, lm: Any, usd: tuple[float, float] | None) -> Agent:
    temperature = lm.kwargs.get("temperature")
    longest = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    return Agent(
        name=name,
        model=lm.model if "/" in lm.model else f"given/{lm.model}",
        # Vendors sample unless a request sets temperature 0.
        temperature=1.0 if temperature is None else temperature,
        max_tokens=longest or 1024,
        usd_per_million_prompt_tokens=usd[0] if usd else None,
        usd_per_million_completion_tokens=usd[1] if usd else None,
    )


def _adopted(plain: Agent, lm: Any, calls: Calls) -> GivenLM:
    """Return a copy of ``lm`` that uses ``calls``; both share history and callbacks."""
    from moa_dspy.calls.lm.lm import adopted, stored_lm

    source = adopted(lm)
    timeout = lm.kwargs.get("timeout")
    agent = replace(
        plain,
        api_base=source.endpoint,
        client=source.client,
        num_retries=lm.num_retries,
        timeout_seconds=timeout if isinstance(timeout, int | float) else plain.timeout_seconds,
    )
    caller = caller_of(agent, calls, secrets=source.secrets)
    if source.routing:
        caller = replace(caller, identity=f"{caller.identity}+{source.routing}")
    own_lm = stored_lm(
        lm.model,
        calls,
        caller,
        source.engine,
        timeout_seconds=agent.timeout_seconds,
        hints=lm,
        model_type=lm.model_type,
        use_developer_role=lm.use_developer_role,
    )
    own_lm.kwargs, own_lm.history = source.settings, lm.history
    own_lm.callbacks = [*own_lm.callbacks, *lm.callbacks]
    return GivenLM(agent, own_lm)


class Pool(Mapping[str, Agent]):
    """Agents by name, each with a ``dspy.LM`` whose calls go through one call store.

    Args:
        agents: The agents, in any order; names must differ.
        calls: Source and store of answers; default: memory of this process.
        lms: The user's own LMs by agent name, used unchanged.

    Attributes:
        not_adopted: By name, why an agent's LM is used unchanged, without storing its calls.
        is_timed: Whether the agents' seconds are known; False for a recording without them.

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
        if not all(isinstance(agent, Agent) for agent in listed):
            raise PoolError("`agents` must be agents; for LMs, use `Pool.from_lms([lm, lm])`.")
        self._agents = {agent.name: agent for agent in listed}
        self.calls = calls or Calls()
        self._lms: dict[str, Any] = dict(lms or {})
        self._lock = threading.Lock()
        self._prices: dict[str, Price | None] = {}
        self.not_adopted: Mapping[str, str] = {}
        self.is_timed = True
        if not listed:
            raise PoolError("A pool must hold at least one agent, but got none.")
        if len(self._agents) < len(listed):
            names = [agent.name for agent in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise PoolError(f"Agent names must differ, but {', '.join(twice)} occurs twice.")
        for agent in listed:
            # Before the first request, as the smallest limit of an endpoint applies.
            self.calls.limiters.of(agent.endpoint, agent.max_concurrent)

    @classmethod
    def from_lms(
        cls,
        lms: Mapping[str, dspy.BaseLM] | Iterable[dspy.BaseLM],
        *,
        calls: Calls | None = None,
        strict: bool = False,
        usd_per_million_tokens: Mapping[str, tuple[float, float]] | None = None,
    ) -> Pool:
        """Make a pool of existing LMs, each adopted if possible.

        The calls of an adopted LM go through the pool's ``Calls``: they are stored, counted,
        limited and distinguished by sample. They use the LM's endpoint, key, settings, retries and
        timeout, but not DSPy's cache. The LM itself is not changed, and the calls appear in its
        history too; later changes to it have no effect on the pool. An LM that cannot be adopted is
        used unchanged: its calls are counted in the facts of an answer, but not stored;
        ``not_adopted`` gives the reason.

        Args:
            lms: LMs by agent name; those of a list are named by their models.
            calls: Source and store of answers; default: memory of this process for an LM with
                ``cache``, and no store for an LM without it.
            strict: Whether an LM that cannot be adopted is an error.
            usd_per_million_tokens: Prices of prompt and of completion tokens by agent name;
                default: LiteLLM's list price for exactly that model, else unknown.

        Raises:
            PoolError: If there is no LM, a value is not an LM or, with ``strict``, an LM cannot be
                adopted.
        """
        from moa_dspy.calls.lm.lm import lm_names

        named = lm_names(lms)
        kept, prices = calls or Calls(), usd_per_million_tokens or {}
        unkept = calls or Calls(NoStore(), ledger=kept.ledger)
        items = {
            n: adopt(n, lm, kept if getattr(lm, "cache", False) else unkept, usd=prices.get(n))
            for n, lm in named.items()
        }
        reasons = {name: it.reason for name, it in items.items() if it.reason is not None}
        if strict and reasons:
            name, reason = next(iter(reasons.items()))
            raise PoolError(f"Agent {name!r}: its calls cannot be stored: {reason}.")
        stored, agents = {n: it.lm for n, it in items.items()}, [it.agent for it in items.values()]
        pool = cls(agents, calls=kept, lms=stored)
        pool.not_adopted = reasons
        return pool

    @classmethod
    def read(cls, path: Path | str, *, calls: Calls | None = None) -> Pool:
        """Read a pool file: TOML with one ``[[agents]]`` table per agent.

        Raises:
            PoolError: If the file cannot be read or has an unknown or badly typed key.
        """
        agents, _ = available(read_agents(Path(path)))
        return cls(agents, calls=calls)

    def __getitem__(self, name: str) -> Agent:
        try:
            return self._agents[name]
        except KeyError:
            choices = ", ".join(sorted(self._agents))
            raise PoolError(f"Unknown agent {name!r}; the pool has {choices}.") from None

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

    def __copy__(self) -> Pool:
        return self

    def __reduce__(self) -> tuple[type[DetachedPool], tuple[tuple[str, ...]]]:
        # A pickle holds no key, endpoint or connection.
        return DetachedPool, (tuple(self),)

    def detached(self, names: Iterable[str]) -> DetachedPool:
        """Return the placeholder for this pool in a pickled program that uses these agents."""
        return DetachedPool(tuple(names))

    def attach(self, program: Any) -> Any:
        """Give this pool to every module of ``program`` that needs a pool; return ``program``.

        A pickled program (``save_program=True``, cloudpickle) is loaded without a pool.

        Raises:
            PoolError: If no module in the program uses a pool, or this pool lacks an agent.
        """
        modules = [
            module
            for _, module in program.named_sub_modules()
            if isinstance(getattr(module, "pool", None), Pool | DetachedPool)
        ]
        if not modules:
            raise PoolError(
                f"`program` must hold a mixture, but {type(program).__name__} has none."
            )
        needed = {name for module in modules for name in getattr(module, "agents", ())}
        if absent := sorted(needed - set(self)):
            raise PoolError(
                f"The program needs agents that the pool lacks: {', '.join(absent)}; it has "
                f"{', '.join(sorted(self))}."
            )
        for module in modules:
            module.pool = self
        return program

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of the agents whose price is unknown: their calls count as 0 usd."""
        return tuple(n for n in self if self.price(n) is None)

    def unknown_costs(self, names: Iterable[str]) -> frozenset[str]:
        """Return the unknown costs of these agents: ``usd``, ``seconds``."""
        unknown = set() if self.is_timed else {"seconds"}
        return frozenset(unknown | ({"usd"} if {*names} & {*self.unpriced} else set()))

    def price(self, name: str) -> Price | None:
        """Return the price of an agent's tokens; None means unknown, which is not 0.

        For an LM that was not adopted, the list price does not apply, as its calls are not counted
        in usd.

        Raises:
            PoolError: If the pool has no such agent.
        """
        if name not in self._prices:  # called for each seat of each question
            price = self[name].price
            is_list = price is not None and price.source == "litellm"
            self._prices[name] = None if is_list and name in self.not_adopted else price
        return self._prices[name]

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


@dataclass(frozen=True, slots=True)
class DetachedPool:
    """Placeholder for the pool in a pickled program: it has names of agents but no LMs.

    Attributes:
        names: Names of the agents that the program uses.
    """

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Agent:
        raise PoolError(
            f"The program was loaded without its pool; it needs agents {', '.join(self.names)}. "
            "Give it a pool that has them: `pool.attach(program)`."
        )

    def lm(self, name: str) -> Any:
        """Raise an error, as there is no LM.

        Raises:
            PoolError: Always, naming the agents.
        """
        return self[name]

    def detached(self, names: Iterable[str]) -> DetachedPool:
        """Return a placeholder for these agents."""
        return DetachedPool(tuple(names))

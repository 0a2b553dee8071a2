"""The ``dspy.LM`` of an agent."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any, Final

from moa_dspy.agent import VARIABLE, Agent
from moa_dspy.calls import Caller, Calls, RetryPolicy
from moa_dspy.errors import PoolError

if TYPE_CHECKING:
    import dspy

logger = logging.getLogger(__name__)

_IS_KEY: Final = re.compile(r"(API_?KEY|_TOKEN|SECRET)$")
_SHORTEST_KEY: Final = 6
"""Shorter values, such as a placeholder of a local server, would mask ordinary text."""


def make_lm(agent: Agent, calls: Calls) -> dspy.LM:
    """Return a ``dspy.LM`` that answers from ``calls`` and asks the agent's endpoint otherwise."""
    from moa_dspy.calls import stored_lm

    key = os.environ.get(agent.api_key_env) if agent.api_key_env else None
    return stored_lm(
        f"agent/{agent.name}",
        calls,
        caller_of(agent, calls),
        lambda asynchronous: _engine(agent, key, asynchronous=asynchronous),
        is_seeded=agent.is_local,
        timeout_seconds=agent.timeout_seconds,
        temperature=agent.temperature,
        max_tokens=agent.max_tokens,
    )


def caller_of(agent: Agent, calls: Calls, *, secrets: tuple[str, ...] = ()) -> Caller:
    """Return who asks when this agent does.

    Args:
        agent: The agent.
        calls: Where its calls go; agents of one endpoint share its slots there.
        secrets: Keys that the environment does not hold.
    """
    return Caller(
        agent=agent.name,
        identity=agent.identity,
        usd_per_prompt_token=agent.usd_per_million_prompt_tokens / 1e6,
        usd_per_completion_token=agent.usd_per_million_completion_tokens / 1e6,
        secrets=_secrets(agent, secrets),
        retries=RetryPolicy(agent.num_retries),
        limiter=calls.limiters.of(agent.endpoint, agent.max_concurrent),
    )


def _secrets(agent: Agent, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return what must never be written: every key that a client of this agent might send.

    Vendors' clients find their keys in the environment by themselves, so any variable
    that is named like a key counts, not only the agent's own.
    """
    if agent.is_local:
        return ()
    own = {os.environ.get(agent.api_key_env or "", ""), *given} - {""}
    others = {v for n, v in os.environ.items() if _IS_KEY.search(n) and len(v) >= _SHORTEST_KEY}
    # The longest first: one key may be a part of another.
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
    from moa_dspy.calls.endpoints._endpoints import Endpoint, endpoint_engine

    client: Any = agent.client
    endpoint = Endpoint(agent.model, agent.api_base, key, client, agent.timeout_seconds)
    return endpoint_engine(endpoint, asynchronous=asynchronous)


def _weights(agent: Agent) -> str:
    """Return the path of the agent's weights, pulling those of the catalogue that are not here."""
    if agent.weights is not None:
        return VARIABLE.sub(lambda match: os.environ[match[1]], agent.weights)
    from moa_dspy.local import pull

    return str(pull(agent.model.removeprefix("local/"), progress=logger.warning))

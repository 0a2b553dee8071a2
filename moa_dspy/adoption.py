"""LMs that a caller made: adopted into the pool's calls, or used as they are and counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moa_dspy.agent import Agent
from moa_dspy.agent_lm import caller_of
from moa_dspy.calls import Calls

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True, slots=True)
class Given:
    """An LM of the caller's in a pool.

    Attributes:
        agent: What it is, for people and prices.
        lm: Who is asked: for an adopted LM, one whose calls go through the pool's.
        reason: Why it was not adopted; None if it was, or if its calls are stored already.
    """

    agent: Agent
    lm: Any
    reason: str | None = None


def given(name: str, lm: dspy.BaseLM, calls: Calls, *, usd: tuple[float, float]) -> Given:
    """Adopt ``lm``, or say why not.

    Args:
        name: Of the agent.
        lm: Is not changed, but for a callback that counts the calls of one that is refused.
        calls: Where its answers come from and go to.
        usd: Price of a million prompt tokens, and of as many completion tokens.
    """
    from moa_dspy.calls import CountCalls, refusal

    plain = _plain_agent(name, lm, usd)
    if getattr(getattr(lm, "engine", None), "logs_calls", False):
        return Given(plain, lm)
    reason = refusal(lm)
    if reason is None:
        return _adopted(plain, lm, calls)
    if not any(isinstance(callback, CountCalls) for callback in lm.callbacks):
        lm.callbacks.append(CountCalls(name))
    return Given(plain, lm, reason)


def _plain_agent(name: str, lm: Any, usd: tuple[float, float]) -> Agent:
    temperature = lm.kwargs.get("temperature")
    longest = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    return Agent(
        name=name,
        model=lm.model if "/" in lm.model else f"given/{lm.model}",
        # Vendors sample where nothing is said; greedy is only who says so.
        temperature=1.0 if temperature is None else temperature,
        max_tokens=longest or 1024,
        usd_per_million_prompt_tokens=usd[0],
        usd_per_million_completion_tokens=usd[1],
    )


def _adopted(plain: Agent, lm: Any, calls: Calls) -> Given:
    """Return an LM like ``lm`` that asks through ``calls``; they share history and callbacks."""
    from moa_dspy.calls import adopted, stored_lm

    found = adopted(lm)
    timeout = lm.kwargs.get("timeout")
    agent = replace(
        plain,
        api_base=found.endpoint,
        client=found.client,
        num_retries=lm.num_retries,
        timeout_seconds=timeout if isinstance(timeout, int | float) else plain.timeout_seconds,
    )
    caller = caller_of(agent, calls, secrets=found.secrets)
    if found.routing:
        caller = replace(caller, identity=f"{caller.identity}+{found.routing}")
    mine = stored_lm(
        lm.model,
        calls,
        caller,
        found.engine,
        timeout_seconds=agent.timeout_seconds,
        hints=lm,
        model_type=lm.model_type,
        use_developer_role=lm.use_developer_role,
    )
    mine.kwargs, mine.history = found.settings, lm.history
    mine.callbacks = [*mine.callbacks, *lm.callbacks]
    return Given(agent, mine)

"""Who asks, and what is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from moa_dspy.calls.budget import CallEstimate
from moa_dspy.calls.retry import Limiter, RetryPolicy


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """Everything of an agent that the calls must know.

    Attributes:
        agent: Its name, for people.
        identity: What answers, endpoint or weights included.
        usd_per_prompt_token: Price.
        usd_per_completion_token: Price.
        secrets: Keys, to be masked in every failure.
        retries: What happens after a failed attempt.
        limiter: The slots of its endpoint, shared with the other agents of it.
    """

    agent: str
    identity: str
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    secrets: tuple[str, ...] = field(default=(), repr=False)
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    limiter: Limiter = field(default_factory=Limiter, compare=False, repr=False)

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one call."""
        return (
            prompt_tokens * self.usd_per_prompt_token
            + completion_tokens * self.usd_per_completion_token
        )

    def without_secrets(self, text: str) -> str:
        """Return ``text`` with every key of this agent masked."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One request on its way: its key, and what to store it under."""

    caller: AgentCalls
    key: str
    sample: int
    request: str
    estimate: CallEstimate

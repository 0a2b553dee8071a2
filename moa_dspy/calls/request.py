"""The caller of a model (prices, keys, retries, slots), and one request of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from moa_dspy.calls.call import CallEstimate
from moa_dspy.calls.retry import Limiter, RetryPolicy


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """Everything about an agent that its calls depend on.

    Attributes:
        agent: Its name, for people.
        identity: Model with its endpoint or weights; part of the key of a call.
        usd_per_prompt_token: Price.
        usd_per_completion_token: Price.
        secrets: Keys, to be masked in every failure.
        retries: Which failed attempts are followed by another.
        limiter: The slots of its endpoint, shared with the endpoint's other agents.
    """

    agent: str
    identity: str
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    secrets: tuple[str, ...] = field(default=(), repr=False)
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    limiter: Limiter = field(default_factory=Limiter, compare=False, repr=False)

    @property
    def endpoint(self) -> str:
        """Name of the endpoint, in messages."""
        return self.limiter.endpoint or self.identity

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
    """One request that may be sent.

    Attributes:
        caller: The agent that asks.
        key: ``call_key`` of the request.
        sample: Index of the independent sample.
        content: Canonical JSON, without the model's name.
        estimate: Upper bound of what the call may use.
    """

    caller: AgentCalls
    key: str
    sample: int
    content: str
    estimate: CallEstimate

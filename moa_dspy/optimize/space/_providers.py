"""Who runs an agent: what one contract, one key or one machine stands behind."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from moa_dspy.pool import Agent


def provider(agent: Agent) -> str:
    """Return ``local``, the host of the agent's own endpoint, or its vendor.

    ``openai/NAME`` with an ``api_base`` is run by that host, whatever the vendor's name says.
    """
    if agent.is_local or agent.api_base is None:
        return agent.model.partition("/")[0]
    return urlsplit(agent.api_base).hostname or agent.api_base


def providers_of(agents: Iterable[Agent]) -> dict[str, str]:
    """Return the provider of each agent by the agent's name, as ``SearchSpace`` takes it."""
    return {agent.name: provider(agent) for agent in agents}

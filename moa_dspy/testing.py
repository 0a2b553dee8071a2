"""Offline stand-ins for models, for our tests and for those of plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy
from dspy import lm15

from moa_dspy.calls import Caller, Calls, stored_lm
from moa_dspy.pool import Agent, Pool

Script: TypeAlias = str | Exception | Callable[[str], str]
"""What an agent replies: always the same text, a function of the last user message, or an error."""


def scripted_pool(
    answers: Mapping[str, Script],
    *,
    calls: Calls | None = None,
    temperature: float = 0.0,
    usd_per_million_tokens: Mapping[str, float] | None = None,
    reads_all: bool = False,
) -> Pool:
    """Return a pool whose agents reply by script, through the call store as real ones do.

    So calls are counted, stored, reused and limited: ``pool.calls.ledger.spending``.
    A script replies as a model does, in the adapter's format: plain text for
    ``PlainChat``, ``[[ ## answer ## ]]`` fields for the chat adapter, whose failure
    to read a reply costs a second call. A token is a word. At temperature 0 a
    script is asked once per message, whatever the sample.

    Args:
        answers: Script per agent name; an exception, given or raised, is a failed call.
        calls: Where answers come from and go to; default: memory.
        temperature: Of every agent.
        usd_per_million_tokens: Price of prompt and completion tokens alike; default 0.
        reads_all: Whether a script is given the texts of all messages, system message
            first, a blank line between two, instead of the last user message.
    """
    prices = usd_per_million_tokens or {}
    shared = calls or Calls()
    agents = [
        Agent(
            name=name,
            model=f"scripted/{name}",
            temperature=temperature,
            usd_per_million_prompt_tokens=prices.get(name, 0.0),
            usd_per_million_completion_tokens=prices.get(name, 0.0),
        )
        for name in answers
    ]
    lms = {agent.name: _lm(agent, answers[agent.name], shared, reads_all) for agent in agents}
    return Pool(agents, calls=shared, lms=lms)


@dataclass(frozen=True, slots=True)
class ScriptedEngine:
    """Replies to a ``dspy.lm15.Request`` by a script; asks nobody."""

    script: Script
    reads_all: bool = False

    def complete(self, request: Any) -> Any:
        """Return the scripted response, or raise the script's error."""
        prompt = whole_text(request) if self.reads_all else last_user_text(request)
        if isinstance(self.script, Exception):
            raise self.script
        text = self.script if isinstance(self.script, str) else self.script(prompt)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=len(prompt.split()), output_tokens=len(text.split())),
        )


@dataclass(frozen=True, slots=True)
class AsyncScriptedEngine:
    """``ScriptedEngine`` for coroutines."""

    script: Script
    reads_all: bool = False

    async def complete(self, request: Any) -> Any:
        """Return the scripted response, or raise the script's error."""
        return ScriptedEngine(self.script, self.reads_all).complete(request)


def last_user_text(request: Any) -> str:
    """Return the text of the request's last user message."""
    parts = next(m.parts for m in reversed(request.messages) if m.role == "user")
    return _text(parts)


def whole_text(request: Any) -> str:
    """Return the texts of the request's messages, system message first."""
    system = request.system if isinstance(request.system, str) else _text(request.system or ())
    return "\n\n".join([system, *(_text(message.parts) for message in request.messages)])


def _text(parts: Iterable[Any]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, lm15.TextPart))


def _lm(agent: Agent, script: Script, calls: Calls, reads_all: bool) -> dspy.LM:
    caller = Caller(
        agent=agent.name,
        identity=agent.identity,
        usd_per_prompt_token=agent.usd_per_million_prompt_tokens / 1e6,
        usd_per_completion_token=agent.usd_per_million_completion_tokens / 1e6,
    )
    return stored_lm(
        f"agent/{agent.name}",
        calls,
        caller,
        lambda asynchronous: (AsyncScriptedEngine if asynchronous else ScriptedEngine)(
            script, reads_all
        ),
        temperature=agent.temperature,
        max_tokens=agent.max_tokens,
    )

"""One attempt at a call: when it was made, how long it took, and what came of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from moa_dspy.calls._call import Call, canonical_json
from moa_dspy.calls._caller import Ask
from moa_dspy.calls._clock import Clock
from moa_dspy.calls._scope import CallFacts

_ENDED_BY: Final = {asyncio.CancelledError: "Cancelled", GeneratorExit: "Abandoned"}


@dataclass(slots=True)
class Attempt:
    """A request that is made now.

    Attributes:
        ask: What is asked.
        number: Which try it is, from 1 on; 0 is one that is given up.
        clock: What time it is.
        started: When it began, by the clock's ``monotonic``.
        seconds: How long it took; 0 while it lasts.
    """

    ask: Ask
    number: int
    clock: Clock
    started: float
    seconds: float = 0.0

    def answered(self, response: dict[str, Any]) -> Call:
        """Return the call with its response (plain data)."""
        self._end()
        usage = response.get("usage", {})
        prompt, completion = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
        usd = self.ask.caller.usd(prompt, completion)
        return self._call(canonical_json(response), prompt, completion, usd=usd)

    def failed(self, error: BaseException) -> Call:
        """Return the call with the reason why there is no response, without secrets."""
        self._end()
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            ended = _ENDED_BY.get(type(error), type(error).__name__)
            reason = f"{ended} after {self.seconds:.2f} s."
        return self._call(None, failure=self.ask.caller.without_secrets(reason))

    def _end(self) -> None:
        self.seconds = self.clock.monotonic() - self.started

    def _call(
        self,
        response: str | None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        *,
        usd: float = 0.0,
        failure: str | None = None,
    ) -> Call:
        return Call(
            key=self.ask.key,
            agent=self.ask.caller.agent,
            identity=self.ask.caller.identity,
            sample=self.ask.sample,
            request=self.ask.request,
            response=response,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usd=usd,
            seconds=self.seconds,
            failure=failure,
            attempt=self.number,
            time=self.clock.time() - self.seconds,
        )


def facts_of(call: Call, *, is_reused: bool) -> CallFacts:
    """Return what a call cost, for the log of a scope."""
    return CallFacts(
        agent=call.agent,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        usd=call.usd,
        seconds=call.seconds,
        is_reused=is_reused,
        failure=call.failure,
        attempt=call.attempt,
        is_thought_only=_is_thought_only(call.response or ""),
    )


def _is_thought_only(response: str) -> bool:
    # Canonical JSON: inside a text these quotes are escaped, so they are those of the parts.
    said = response.replace('{"text":"","type":"text"}', "")
    return '"type":"thinking"' in said and '"type":"text"' not in said

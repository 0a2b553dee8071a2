"""A mixture as a ``dspy.LM``, and its engines for threads, coroutines and streams."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any, Self

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls.lm.engine import NOTE_SAMPLES, next_sample
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.serve.chat import ChatAnswer, ChatMixture, Proposals

FACTS_KEY = "moa"
"""Key of a reply's ``provider_data``, and of a history's entry, for the facts of the mixture."""


def answer_response(answer: ChatAnswer, model: str) -> Any:
    """Return the answer as a ``dspy.lm15.Response``: its usage is the sum of all calls."""
    return lm15.Response(
        id=answer.reply.id,
        model=model,
        message=answer.reply.message,
        finish_reason=answer.reply.finish_reason,
        usage=answer.usage,
        provider_data={FACTS_KEY: answer.facts},
    )


class _Engine:
    """Base of both engines."""

    logs_calls = True

    def __init__(self, mixture: ChatMixture) -> None:
        self.mixture = mixture

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # DSPy's optimizers deep-copy programs; a pool is shared, not copied.
        return self

    def __getattr__(self, name: str) -> Any:
        # DSPy's adapters ask for a model's abilities: those that all answering agents have.
        if not name.startswith(("supported_", "supports_")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        lms = [self.mixture.pool.lm(agent) for agent in self.mixture.answering_agents]
        values = [getattr(lm, name, None) for lm in lms]
        if name == "supported_params":
            return set.intersection(*(set(value or ()) for value in values))
        return all(values)

    def _rollout(self, request: Any) -> int | None:
        return next_sample(0, model=request.model) or None


class MixtureEngine(_Engine):
    """Answers a ``dspy.lm15.Request`` with a mixture."""

    def complete(self, request: Any) -> Any:
        """Return the response."""
        try:
            answer = self.mixture.answer(request, rollout=self._rollout(request))
        except LayerFailedError as error:
            raise lm15.ProviderError(str(error)) from error
        return answer_response(answer, request.model)

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events of the response as the aggregator writes it."""
        source = AsyncMixtureEngine(self.mixture).stream(request)
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def pass_on() -> None:
            async with aclosing(source):  # type: ignore[type-var]  # an async generator
                async for event in source:
                    events.put(event)

        # On a permanent loop, as the agents' connections belong to a loop.
        running = asyncio.run_coroutine_threadsafe(pass_on(), _stream_loop())
        running.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            running.result()
        finally:
            running.cancel()

    def close(self) -> None:
        """Do nothing: the connections to the agents are the pool's."""


class AsyncMixtureEngine(_Engine):
    """``MixtureEngine`` for coroutines."""

    async def complete(self, request: Any) -> Any:
        """Return the response."""
        try:
            answer = await self.mixture.aanswer(request, rollout=self._rollout(request))
        except LayerFailedError as error:
            raise lm15.ProviderError(str(error)) from error
        return answer_response(answer, request.model)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the events of the response as the aggregator writes it."""
        events = self.mixture.astream(request, rollout=self._rollout(request))
        async with aclosing(events):
            try:
                async for event in events:
                    if isinstance(event, Proposals):
                        yield lm15.StreamStartEvent(model=request.model)
                    elif isinstance(event, lm15.StreamDeltaEvent):
                        yield event
                    elif isinstance(event, ChatAnswer):
                        response = answer_response(event, request.model)
                        yield lm15.StreamEndEvent(
                            finish_reason=response.finish_reason,
                            usage=response.usage,
                            provider_data=response.provider_data,
                        )
            except LayerFailedError as error:
                raise lm15.ProviderError(str(error)) from error

    async def aclose(self) -> None:
        """Do nothing: the connections to the agents are the pool's."""


@cache
def _stream_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="moa-dspy-streams", daemon=True).start()
    return loop


class MixtureLM(dspy.LM):
    """A language model whose replies come from a mixture; for any DSPy program, adapter or agent.

    ``dspy.configure(lm=MixtureLM.load("program.json", pool=pool))``. Proposers are sent the
    caller's messages; the aggregator is sent them with the proposers' responses below the last
    one. Usage is the sum of all calls and the cost is by the pool's prices; ``history`` has both,
    and each agent's response under ``moa``. The calls are in the histories of the pool's LMs. The
    caller's settings (temperature, stop, response format ...) apply to the agents whose reply can
    be the answer; proposers below an aggregator keep the pool's. Tools are given to every agent.
    DSPy's cache is off; calls are stored in the pool's store.

    Args:
        program: A program, an architecture, or an architecture's text.
        pool: Has the agents; not needed with a program.
        name: Shown after ``moa/`` in histories.
        callbacks: DSPy callbacks of this LM.
        settings: More arguments of ``dspy.LM``: temperature, max_tokens ...

    Raises:
        ArchitectureError: If the program answers anything but one text, or cannot be built.
        PoolError: If the pool lacks an agent.
    """

    def __init__(
        self,
        program: MixtureOfAgents | Architecture | str,
        *,
        pool: Pool | None = None,
        name: str = "mixture",
        callbacks: list[Any] | None = None,
        **settings: Any,
    ) -> None:
        self.mixture = ChatMixture.of(program, pool)
        super().__init__(
            f"moa/{name}",
            cache=False,
            num_retries=0,
            callbacks=[NOTE_SAMPLES, *(callbacks or [])],
            engine=MixtureEngine(self.mixture),
            async_engine=AsyncMixtureEngine(self.mixture),
            **settings,
        )

    @classmethod
    def load(cls, path: Path | str, *, pool: Pool, **options: Any) -> MixtureLM:
        """Return the LM of a program that was saved as JSON; its name is the file's.

        Args:
            path: Path of the file.
            pool: Has the agents; a saved program contains no endpoints.
            options: More arguments of ``MixtureLM``.

        Raises:
            ArchitectureError: If the file cannot be read, or the program does not answer one text.
            PoolError: If the pool lacks an agent.
        """
        program = MixtureOfAgents.load(Path(path), pool=pool)
        return cls(program, **{"name": Path(path).stem, **options})

    def dump_state(self) -> dict[str, Any]:
        """Raise an error, as a saved LM would lack the pool.

        Raises:
            ArchitectureError: Always.
        """
        raise ArchitectureError(
            "A program cannot be saved with a MixtureLM on its predictors, as a file holds no "
            "pool. Save the mixture with MixtureOfAgents.save, and the program without its LM."
        )

    def update_history(self, entry: dict[str, Any]) -> None:
        """Record a call with the pool's price, and each agent's response under ``moa``."""
        responses = entry["response"]  # several for `n`
        responses = responses if isinstance(responses, list | tuple) else [responses]
        facts = [
            f for response in responses if (f := (response.provider_data or {}).get(FACTS_KEY))
        ]
        if facts:
            prices = [fact["usd"] for fact in facts]
            entry = {**entry, "cost": None if None in prices else sum(prices), FACTS_KEY: facts}
            entry.pop("cost_details", None)
        super().update_history(entry)

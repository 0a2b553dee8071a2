"""DSPy engines that ask ``Calls`` before they ask the endpoint.

Engines are DSPy's extension point below the LM: retries, history, usage and
streaming to the user stay DSPy's. Several agents share one ``Calls``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dspy import lm15
from dspy._vendor.lm15.serde import request_to_dict, response_from_dict, response_to_dict

from moa_dspy.calls._call import Call
from moa_dspy.calls._calls import Ask, Caller, Calls


class _Wrapped:
    """What both engines share; the endpoint's engine is built at the first call that needs it."""

    def __init__(
        self, calls: Calls, caller: Caller, build: Callable[[], Any], *, is_seeded: bool = False
    ) -> None:
        self.calls, self.caller = calls, caller
        self._build, self._is_seeded = build, is_seeded
        self._endpoint: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # DSPy's optimizers deep-copy programs; a store and a connection are shared, not copied.
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.caller.agent!r})"

    @property
    def endpoint(self) -> Any:
        """The engine that really asks the model."""
        if self._endpoint is None:
            self._endpoint = self._build()
        return self._endpoint

    def ask(self, request: Any) -> Ask:
        """Describe ``request`` without the model's name, which the identity stands for."""
        plain = request_to_dict(request)
        plain.pop("model")
        return self.calls.ask(self.caller, plain)

    def outgoing(self, request: Any, ask: Ask) -> Any:
        """Return the request as sent: a seeded endpoint samples by the call's content.

        So a recording that is made again, in any order and on any number of
        slots, draws the same samples.
        """
        if not self._is_seeded or request.config.seed is not None:
            return request
        return replace(request, config=replace(request.config, seed=int(ask.key[:7], 16)))

    @contextmanager
    def _masked(self) -> Iterator[None]:
        """Mask keys in what an endpoint raises: it may quote the request's own header."""
        try:
            yield
        except Exception as error:
            for link in _chain(error):
                _mask(link, self.caller.without_secrets)
            raise

    def response(self, call: Call) -> Any:
        """Rebuild the response of a stored call, or raise its stored failure."""
        if call.response is None:
            raise lm15.ProviderError(call.failure or "The recorded call failed.")
        return response_from_dict(json.loads(call.response))


class StoredEngine(_Wrapped):
    """Answers from the store if it can, else asks the endpoint and stores what came back."""

    def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        ask = self.ask(request)

        def send() -> dict[str, Any]:
            with self._masked():
                return _without_name(self.endpoint.complete(self.outgoing(request, ask)))

        return self.response(self.calls.answer(ask, send))

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events of the completed response; nothing is stored before it is complete."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Leave the endpoint open: it is shared and owned by the pool."""


class AsyncStoredEngine(_Wrapped):
    """``StoredEngine`` for coroutines; keys and store are the same."""

    async def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        ask = self.ask(request)

        async def send() -> dict[str, Any]:
            with self._masked():
                return _without_name(await self.endpoint.complete(self.outgoing(request, ask)))

        return self.response(await self.calls.aanswer(ask, send))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the events of the completed response; nothing is stored before it is complete."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Leave the endpoint open: it is shared and owned by the pool."""


def _without_name(response: Any) -> dict[str, Any]:
    # The endpoint's request id changes from run to run and says nothing; equal runs, equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error with all that led to it: a traceback prints them all."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _mask(error: BaseException, mask: Callable[[str], str]) -> None:
    error.args = tuple(mask(a) if isinstance(a, str) else a for a in error.args)
    for name, value in list(vars(error).items()):
        if isinstance(value, str):
            setattr(error, name, mask(value))

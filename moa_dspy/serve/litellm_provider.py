# pyright: reportIncompatibleMethodOverride=false
# LiteLLM gives its 17 arguments by name, and iterates over what its types call a coroutine.
"""LiteLLM's provider ``moa``: mixtures in LiteLLM's SDK, its proxy, and ``dspy.LM("moa/NAME")``.

LiteLLM asks the mixture inside the process; there is no server between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import litellm
from litellm.llms.custom_llm import CustomLLM, CustomLLMError
from litellm.types.utils import GenericStreamingChunk, ModelResponse

from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import LayerFailedError, PoolError
from moa_dspy.serve.chat import ChatAnswer, ChatMixture
from moa_dspy.serve.limits import ApiError
from moa_dspy.serve.lm import MixtureLM
from moa_dspy.serve.protocol import (
    ChatCall,
    Head,
    chat_completion,
    finish_reason,
    read_chat,
    usage_of,
)


class MixtureProvider(CustomLLM):
    """Answers LiteLLM's calls of ``moa/NAME``.

    Args:
        models: By name. A proxy's configuration names this object; the SDK needs ``register``.
    """

    def __init__(self, models: Mapping[str, MixtureLM]) -> None:
        super().__init__()
        self._models = dict(models)

    def completion(self, model: str, messages: list[Any], **rest: Any) -> ModelResponse:
        """Return the answer."""
        mixture, call = self._read(model, messages, rest, is_streamed=False)
        try:
            answers = [
                mixture.answer(request, rollout=n or None)
                for n, request in enumerate(call.requests)
            ]
        except LayerFailedError as error:
            raise _failed(error) from error
        return _response(model, call, answers)

    async def acompletion(self, model: str, messages: list[Any], **rest: Any) -> ModelResponse:
        """``completion`` for coroutines."""
        mixture, call = self._read(model, messages, rest, is_streamed=False)
        requests = enumerate(call.requests)
        try:
            answers = await asyncio.gather(
                *(mixture.aanswer(request, rollout=n or None) for n, request in requests)
            )
        except LayerFailedError as error:
            raise _failed(error) from error
        return _response(model, call, answers)

    def streaming(
        self, model: str, messages: list[Any], **rest: Any
    ) -> Iterator[GenericStreamingChunk]:
        """Yield the answer as the aggregator writes it."""
        mixture, call = self._read(model, messages, rest, is_streamed=True)
        chunks = _chunks(mixture, call)
        with asyncio.Runner() as runner:
            try:
                while (chunk := runner.run(_next(chunks))) is not None:
                    yield chunk
            finally:
                runner.run(chunks.aclose())  # type: ignore[attr-defined]  # an async generator

    async def astreaming(
        self, model: str, messages: list[Any], **rest: Any
    ) -> AsyncIterator[GenericStreamingChunk]:
        """``streaming`` for coroutines."""
        mixture, call = self._read(model, messages, rest, is_streamed=True)
        async for chunk in _chunks(mixture, call):
            yield chunk

    def _read(
        self, model: str, messages: list[Any], rest: dict[str, Any], *, is_streamed: bool
    ) -> tuple[ChatMixture, ChatCall]:
        name = model.removeprefix("moa/")
        if name not in self._models:
            choices = ", ".join(sorted(self._models))
            raise CustomLLMError(404, f"Unknown model {name!r}; known are {choices}.")
        optional_params = rest.get("optional_params", {})
        options = {k: v for k, v in optional_params.items() if k not in ("stream", "max_retries")}
        if not is_streamed:
            options.pop("stream_options", None)
        body = {"model": model, "messages": messages, "stream": is_streamed, **options}
        try:
            call = read_chat(body)
        except ApiError as error:
            raise CustomLLMError(error.status, str(error)) from error
        if is_streamed and len(call.requests) > 1:
            raise CustomLLMError(
                400, "The provider `moa` can stream only one answer (`n` must be 1)."
            )
        return self._models[name].mixture, call


def register(models: Mapping[str, MixtureLM]) -> MixtureProvider:
    """Register ``moa/NAME`` for each name with LiteLLM, and so with ``dspy.LM``, in this process.

    Raises:
        PoolError: If LiteLLM has another provider ``moa``.
    """
    others = [entry for entry in litellm.custom_provider_map if entry["provider"] == "moa"]
    if any(not isinstance(entry["custom_handler"], MixtureProvider) for entry in others):
        raise PoolError("LiteLLM already has another provider named `moa` in this process.")
    provider = MixtureProvider(models)
    kept = [entry for entry in litellm.custom_provider_map if entry["provider"] != "moa"]
    litellm.custom_provider_map = [*kept, {"provider": "moa", "custom_handler": provider}]
    return provider


def _failed(error: LayerFailedError) -> Exception:
    failure: Exception = CustomLLMError(502, str(error))
    return failure


def _response(model: str, call: ChatCall, answers: list[ChatAnswer]) -> ModelResponse:
    content = chat_completion(Head(model), call, answers)
    response = ModelResponse(**content)
    prices = [answer.usd for answer in answers]
    if None not in prices:
        response._hidden_params["response_cost"] = sum(price or 0.0 for price in prices)
    return response


async def _next(chunks: AsyncIterator[GenericStreamingChunk]) -> GenericStreamingChunk | None:
    return await anext(chunks, None)


async def _chunks(mixture: ChatMixture, call: ChatCall) -> AsyncIterator[GenericStreamingChunk]:
    indices: dict[int, int] = {}
    try:
        async with aclosing(mixture.astream(call.requests[0])) as events:
            async for event in events:
                if isinstance(event, ChatAnswer):
                    yield _chunk(finish=finish_reason(event.reply), usage=usage_of([event]))
                elif not isinstance(event, lm15.StreamDeltaEvent):
                    continue
                elif isinstance(event.delta, lm15.TextDelta):
                    yield _chunk(text=event.delta.text)
                elif isinstance(event.delta, lm15.ToolCallDelta):
                    index = indices.setdefault(event.delta.part_index, len(indices))
                    yield _chunk(tool=_tool(event.delta, index))
    except LayerFailedError as error:
        raise _failed(error) from error


def _tool(delta: Any, index: int) -> dict[str, Any]:
    function = {"name": delta.name, "arguments": delta.input}
    return {"id": delta.id, "type": "function", "function": function, "index": index}


def _chunk(
    *,
    text: str = "",
    finish: str = "",
    usage: dict[str, int] | None = None,
    tool: dict[str, Any] | None = None,
) -> GenericStreamingChunk:
    content: Any = {
        "text": text,
        "is_finished": bool(finish),
        "finish_reason": finish,
        "usage": usage,
        "index": 0,
        "tool_use": tool,
    }
    chunk: GenericStreamingChunk = content
    return chunk

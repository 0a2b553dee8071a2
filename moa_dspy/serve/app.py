"""The HTTP server: OpenAI's paths over a catalogue of mixtures, with FastAPI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import fastapi
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from moa_dspy.files import version
from moa_dspy.serve.answering import (
    Answering,
    Catalogue,
    Metrics,
    RequestRecord,
    Served,
    ServedModel,
    headers_of,
    unless_gone,
)
from moa_dspy.serve.chat import ChatAnswer, Proposals
from moa_dspy.serve.limits import (
    DETAILS,
    ApiError,
    DailySpending,
    Places,
    ServerKeys,
    ServerLimits,
    parsed_body,
    read_body,
)
from moa_dspy.serve.protocol import (
    ChatCall,
    ChatChunks,
    Head,
    TextChunks,
    chat_completion,
    read_chat,
    read_completion,
    text_completion,
)
from moa_dspy.serve.responses import ResponseWriter, read_response

_logger = logging.getLogger("moa_dspy.serve")

_GONE: Final = 499
"""Status in metrics and logs of a request whose client has disconnected."""


class ServerApp:
    """The handlers of the paths; ``create_app`` adds them to an application."""

    def __init__(self, served: Served, keys: ServerKeys) -> None:
        self._served, self._keys = served, keys
        self._started = int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer a chat, whole or as a stream of chunks."""
        return await self._answered(request, _CHAT)

    async def completions(self, request: Request) -> Response:
        """Answer prompts, each as the message of a user."""
        return await self._answered(request, _COMPLETION)

    async def responses(self, request: Request) -> Response:
        """Answer as OpenAI's Responses API does; nothing is stored."""
        return await self._answered(request, _RESPONSES)

    async def models(self, request: Request) -> Response:
        """List the models."""
        self._keys.name_of(request.headers.get("authorization"))
        models = self._served.catalogue.models.values()
        return JSONResponse({"object": "list", "data": [self._model(model) for model in models]})

    async def model(self, request: Request, name: str) -> Response:
        """Describe one model."""
        self._keys.name_of(request.headers.get("authorization"))
        return JSONResponse(self._model(self._served.catalogue.model(name)))

    async def health(self) -> Response:
        """Return that the server is up, with its version."""
        return JSONResponse({"status": "ok", "version": version()})

    async def metrics(self, request: Request) -> Response:
        """Show the metrics in Prometheus's text format."""
        self._keys.name_of(request.headers.get("authorization"))
        self._served.metrics.tasks.set(len(asyncio.all_tasks()))
        shown = await asyncio.to_thread(generate_latest, self._served.metrics.registry)
        return Response(shown, media_type=CONTENT_TYPE_LATEST)

    def _model(self, model: ServedModel) -> dict[str, Any]:
        facts = {"kind": model.kind, "architecture": str(model.mixture.architecture)}
        head = {"id": model.name, "object": "model", "created": self._started}
        return {**head, "owned_by": "moa-dspy", "moa": facts}

    async def _answered(self, request: Request, shape: _Shape) -> Response:
        record = RequestRecord(self._served.metrics)
        response = Response(status_code=_GONE)
        try:
            response = await self._answer(request, shape, record)
        except ClientDisconnect:
            record.status = _GONE
        except ApiError as error:
            record.status, response = error.status, await _refused(request, error)
        finally:
            if not isinstance(response, _Stream):
                record.write()
        return response

    async def _answer(self, request: Request, shape: _Shape, record: RequestRecord) -> Response:
        record.key = self._keys.name_of(request.headers.get("authorization"))
        body = parsed_body(await read_body(request, self._served.limits), self._served.limits)
        _check_body(body, request)
        model = self._served.catalogue.model(body["model"])
        record.label = model.label
        call = shape.read(body)
        answering = Answering(self._served, model, call, record.key)
        if self._served.has_content_log:
            _logger.info("%s asks %s: %s", record.key, record.label, json.dumps(body))
        if call.is_streamed:
            return await self._streamed(request, shape, answering, body, record)
        answers = await unless_gone(request, answering.whole())
        headers = headers_of(call, None, answers)
        response = JSONResponse(shape.whole(body, call, answers), headers=headers)
        record.status = 200
        return response

    async def _streamed(
        self,
        request: Request,
        shape: _Shape,
        answering: Answering,
        body: dict[str, Any],
        record: RequestRecord,
    ) -> Response:
        """Return a stream; its headers wait for the proposers, as they say how many answered."""
        events = answering.events()
        begun: list[tuple[int, Any]] = []

        async def first() -> Proposals | None:
            async for index, event in events:
                begun.append((index, event))
                if isinstance(event, Proposals):
                    return event
            return None

        try:
            proposals = await unless_gone(request, first())
        except BaseException:
            await events.aclose()  # type: ignore[attr-defined]  # an async generator
            raise
        writer = shape.writer(body, answering.call)
        headers = {"Cache-Control": "no-cache", **headers_of(answering.call, proposals, [])}
        return _Stream(_lines(shape, writer, begun, events, record), record, headers)


class _Stream(StreamingResponse):
    """A stream of events, recorded when it ends: also if the client left before it began."""

    def __init__(self, lines: Any, record: RequestRecord, headers: dict[str, str]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._record = record

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._record.status = _GONE  # unless the events come to an end
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._record.write()


async def _lines(
    shape: _Shape, writer: Any, begun: list[tuple[int, Any]], events: Any, record: RequestRecord
) -> AsyncIterator[bytes]:
    answers = dict[int, ChatAnswer]()
    async with aclosing(events):
        try:
            async for index, event in _chained(begun, events):
                if isinstance(event, Proposals):
                    lines = writer.begin(index)
                elif isinstance(event, ChatAnswer):
                    answers[index] = event
                    lines = writer.end(index, event)
                elif hasattr(event, "delta"):
                    lines = writer.delta(index, event.delta)
                else:
                    continue
                for line in lines:
                    yield shape.line(line)
            # Before the last events, as a client that has them may leave at once.
            record.status = 200
            for line in writer.last([answers[index] for index in sorted(answers)]):
                yield shape.line(line)
            if shape.closing:
                yield shape.closing
        except Exception as error:
            # The HTTP status has been sent, so only an event can tell the client.
            known = error if isinstance(error, ApiError) else _internal_error(error)
            record.status = known.status
            yield shape.failed(writer, known)


async def _chained(begun: list[Any], events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for item in begun:
        yield item
    async for item in events:
        yield item


def _check_body(body: dict[str, Any], request: Request) -> None:
    """Check the model's name, and copy the header ``X-Moa-Details`` into the body."""
    if (flag := request.headers.get("x-moa-details", "").lower()) in ("1", "true"):
        body[DETAILS] = True
    elif flag not in ("", "0", "false"):
        raise ApiError("The header `X-Moa-Details` must be true or false.")
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError("`model` must be the name of a model.", param="model")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Reads the requests of one path and writes their answers, whole or as a stream."""

    read: Callable[[dict[str, Any]], ChatCall]
    prefix: str = ""
    complete: Callable[[Head, ChatCall, list[ChatAnswer]], Any] = chat_completion
    chunks: Callable[[Head, ChatCall], Any] = ChatChunks
    closing: bytes = b"data: [DONE]\n\n"

    def whole(self, body: dict[str, Any], call: ChatCall, answers: list[ChatAnswer]) -> Any:
        return self.complete(Head(body["model"], self.prefix), call, answers)

    def writer(self, body: dict[str, Any], call: ChatCall) -> Any:
        return self.chunks(Head(body["model"], self.prefix), call)

    def line(self, content: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(content)}\n\n".encode()

    def failed(self, writer: Any, error: ApiError) -> bytes:
        return self.line(error.body)


class _ResponsesShape(_Shape):
    def whole(self, body: dict[str, Any], call: ChatCall, answers: list[ChatAnswer]) -> Any:
        return ResponseWriter(body, call).whole(answers[0])

    def writer(self, body: dict[str, Any], call: ChatCall) -> Any:
        return ResponseWriter(body, call)

    def line(self, content: dict[str, Any]) -> bytes:
        return f"event: {content['type']}\ndata: {json.dumps(content)}\n\n".encode()

    def failed(self, writer: Any, error: ApiError) -> bytes:
        return self.line(writer.failed(error))


_CHAT: Final = _Shape(read_chat, "chatcmpl")
_COMPLETION: Final = _Shape(read_completion, "cmpl", text_completion, TextChunks)
_RESPONSES: Final = _ResponsesShape(read_response, closing=b"")


def create_app(
    catalogue: Catalogue,
    *,
    keys: ServerKeys | None = None,
    limits: ServerLimits | None = None,
    has_content_log: bool = False,
) -> fastapi.FastAPI:
    """Return the server's application.

    Args:
        catalogue: The models.
        keys: Clients need one of them; None admits every client, on loopback addresses only.
        limits: Limits of sizes, times, concurrency and spending.
        has_content_log: Whether prompts are logged.

    Raises:
        PoolError: If usd are limited and the price of an agent is unknown.
    """
    limits = limits or ServerLimits()
    places = Places(limits)
    spending = DailySpending(limits, catalogue.pool)
    served = Served(catalogue, limits, spending, places, Metrics(places), has_content_log)
    app = fastapi.FastAPI(title="moa-dspy", version=version(), docs_url=None, redoc_url=None)
    app.state.served = served
    _add_paths(app, ServerApp(served, keys or ServerKeys()))
    if keys is None or not keys.are_needed:
        app.add_middleware(_OwnHosts)
    app.exception_handler(ApiError)(_refused)
    app.exception_handler(HTTPException)(_no_such_path)
    app.exception_handler(Exception)(_broken)
    return app


def _add_paths(app: fastapi.FastAPI, handlers: ServerApp) -> None:
    for path, handler, schema in (
        ("/v1/chat/completions", handlers.chat, _CHAT_BODY),
        ("/v1/completions", handlers.completions, _TEXT_BODY),
        ("/v1/responses", handlers.responses, _RESPONSE_BODY),
    ):
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        app.post(path, openapi_extra={"requestBody": body}, responses=_ERRORS)(handler)
    app.get("/v1/models", responses=_ERRORS)(handlers.models)
    app.get("/v1/models/{name:path}", responses=_ERRORS)(handlers.model)
    app.get("/health")(handlers.health)
    app.get("/metrics", responses=_ERRORS)(handlers.metrics)


_OWN_HOSTS: Final = ("127.0.0.1", "localhost", "[")
"""Names of this machine; of an address such as [::1] only the first bracket is compared."""


class _OwnHosts:
    """Refuses requests to other host names than this machine's.

    Against DNS rebinding: a web page may have a host name that resolves to this machine.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self._app
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if host.partition(":")[0] not in _OWN_HOSTS:
                error = ApiError(
                    "The header `Host` must be 127.0.0.1, localhost or [::1], as this server has "
                    f"no keys, but is {host!r:.100}."
                )
                answer = JSONResponse(error.body, error.status)
        await answer(scope, receive, send)


async def _refused(_: Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _no_such_path(_: Request, error: Any) -> Response:
    api_error = ApiError(str(error.detail), status=error.status_code)
    return JSONResponse(api_error.body, error.status_code, headers=error.headers)


async def _broken(_: Request, error: Exception) -> Response:
    return JSONResponse(_internal_error(error).body, 500)


def _internal_error(error: Exception) -> ApiError:
    """Log an error that nothing expected; return what the client may know of it."""
    _logger.error("A request failed.", exc_info=error)
    return ApiError("An internal error.", status=500, code="internal_error")


_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in {
        400: "The request is wrong.",
        401: "The key is wrong.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        429: "The server is busy, or the key's budget is spent.",
        502: "Too few agents answered.",
        503: "An agent cannot be asked.",
        504: "There was no answer in time.",
    }.items()
}
_SETTINGS: Final[dict[str, Any]] = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
}
_SAMPLING: Final[dict[str, Any]] = {
    **_SETTINGS,
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "max_tokens": {"type": "integer", "minimum": 1},
    "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "seed": {"type": "integer"},
}
_ROW: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": "string"},
    },
}
_CHAT_BODY: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        **_SAMPLING,
        "messages": {"type": "array", "minItems": 1, "items": _ROW},
        "tools": {"type": "array", "items": {"type": "object"}},
        "response_format": {"type": "object"},
    },
}
_TEXT_BODY: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {**_SAMPLING, "prompt": {"type": "string"}},
}
_RESPONSE_BODY: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        **_SETTINGS,
        "input": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": "string"},
        "max_output_tokens": {"type": "integer", "minimum": 1},
    },
}

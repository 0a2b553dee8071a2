"""The models of a server, and the answering of a request: queue, budget, deadline and errors."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import dspy
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request

from moa_dspy.architecture import Architecture
from moa_dspy.errors import (
    ArchitectureError,
    BudgetReachedError,
    LayerFailedError,
    MoaError,
    PoolError,
    moa_error_of,
)
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import Response
from moa_dspy.serve.chat import ChatAnswer, ChatMixture, Proposals
from moa_dspy.serve.limits import ApiError, DailySpending, Places, ServerLimits
from moa_dspy.serve.protocol import ChatCall

_logger = logging.getLogger("moa_dspy.serve")

_T = TypeVar("_T")

_LONGEST_TEXT: Final = 1000
_MOST_TEXTS: Final = 128
_SAMPLES: Final = re.compile(r"\*\s*([0-9]+)")
"""The number of samples of an agent in the text of a layer, such as ``a * 3``."""
_STATUS: Final = re.compile(r"HTTP [1-5][0-9]{2}\b")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the server.

    Attributes:
        name: The ``model`` of a request.
        kind: ``program``, ``preset``, ``agent`` or ``architecture``.
        mixture: Answers the requests.
    """

    name: str
    kind: str
    mixture: ChatMixture

    @property
    def label(self) -> str:
        """The name in metrics; all architectures that clients send share one."""
        return self.kind if self.kind == "architecture" else self.name


class Catalogue:
    """The models of a server: its programs, presets and agents, and architectures by their text.

    Args:
        programs: By name.
        pool: The agents that may be asked.
        aggregator: The agent that aggregates in the presets ``moa``, ``moa-lite`` and
            ``self-moa`` of all agents; without one there are no presets.
        limits: Limits of the server.

    Raises:
        ArchitectureError: If a program answers anything but one text.
        PoolError: If the pool lacks the aggregator.
    """

    def __init__(
        self,
        programs: Mapping[str, MixtureOfAgents],
        pool: Pool,
        *,
        aggregator: str | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self.pool, self._limits = pool, limits or ServerLimits()
        texts = {} if aggregator is None else _presets(list(pool), pool[aggregator].name)
        agents = [(name, "agent", ChatMixture.of(Architecture.single(name), pool)) for name in pool]
        presets = [(name, "preset", ChatMixture.of(text, pool)) for name, text in texts.items()]
        own = [(name, "program", ChatMixture(program)) for name, program in programs.items()]
        # A program may have the name of an agent; then the program is served.
        self.models = {entry[0]: ServedModel(*entry) for entry in (*agents, *presets, *own)}
        self._texts: OrderedDict[str, ServedModel] = OrderedDict()

    def model(self, name: str) -> ServedModel:
        """Return a model by its name, or by the text of an architecture.

        Raises:
            ApiError: There is no such model, or the architecture asks too often.
        """
        model = self.models.get(name) or self._texts.get(name)
        return model or self._architecture(name)

    def _architecture(self, text: str) -> ServedModel:
        unknown = ApiError(
            f"Unknown model {text!r:.200}; known are {', '.join(sorted(self.models))}, and "
            "architectures such as 'a + b > synthesize(c)'.",
            status=404,
            param="model",
            code="model_not_found",
        )
        if len(text) > _LONGEST_TEXT or not text.isprintable():
            raise unknown
        # Checked before it is built, as a billion samples would fill the memory.
        samples = max(map(_number, _SAMPLES.findall(text)), default=1)
        if samples > self._limits.calls_per_answer:
            raise self._too_many(samples)
        try:
            architecture = Architecture.parse(text)
            if architecture.calls > self._limits.calls_per_answer:
                raise self._too_many(architecture.calls)
            model = ServedModel(text, "architecture", ChatMixture.of(architecture, self.pool))
        except (ArchitectureError, PoolError) as error:
            raise unknown from error
        self._texts[text] = model
        while len(self._texts) > _MOST_TEXTS:
            self._texts.popitem(last=False)
        return model

    def _too_many(self, n: int) -> ApiError:
        return ApiError(
            f"The architecture makes {n} calls for an answer, but this server allows "
            f"{self._limits.calls_per_answer}.",
            param="model",
        )


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:9] or 0)


def _presets(agents: list[str], aggregator: str) -> dict[str, Architecture]:
    layer = tuple(agents)
    return {
        "moa": Architecture((layer, layer), aggregator),
        "moa-lite": Architecture((layer,), aggregator),
        "self-moa": Architecture(((aggregator,) * 6,), aggregator),
    }


class Metrics:
    """The counters and gauges for Prometheus."""

    def __init__(self, places: Places) -> None:
        self.registry = registry = CollectorRegistry()
        by_model = ["model"]
        self.requests = Counter(
            "moa_requests", "Requests, by HTTP status.", ["model", "status"], registry=registry
        )
        self.seconds = Histogram(
            "moa_request_seconds",
            "Time to the whole answer.",
            by_model,
            registry=registry,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
        )
        self.degraded = Counter(
            "moa_degraded",
            "Answers of several agents of which one answered.",
            by_model,
            registry=registry,
        )
        self.failures = Counter(
            "moa_agent_failures", "Agents that did not answer.", ["agent"], registry=registry
        )
        self.calls = Counter("moa_agent_calls", "Requests to agents.", ["agent"], registry=registry)
        self.tokens = Counter("moa_tokens", "Tokens of all agents.", ["kind"], registry=registry)
        self.usd = Counter(
            "moa_usd", "Price of the answers, where known.", ["key"], registry=registry
        )
        self.tasks = Gauge("moa_tasks", "Tasks of the server's event loop.", registry=registry)
        gauges = {"answering": "Requests being answered.", "waiting": "Requests in the queue."}
        for name, text in gauges.items():
            gauge = Gauge(f"moa_{name}", text, registry=registry)
            gauge.set_function(partial(getattr, places, f"n_{name}"))

    def count(self, model: ServedModel, key: str, answer: ChatAnswer) -> None:
        """Count an answer."""
        if answer.proposals.fell_to_one:
            self.degraded.labels(model.label).inc()
        self.usd.labels(key).inc(answer.usd or 0.0)
        self.tokens.labels("prompt").inc(answer.usage.input_tokens or 0)
        self.tokens.labels("completion").inc(answer.usage.output_tokens or 0)
        self.count_agents(answer.answer.responses)

    def count_agents(self, responses: Iterable[Response]) -> None:
        """Count the calls and the failures of agents, also where no answer came of them."""
        for response in responses:
            self.calls.labels(response.agent).inc(response.calls)
            if not (response.has_answer or response.is_left_out):
                self.failures.labels(response.agent).inc()


@dataclass(slots=True)
class RequestRecord:
    """The facts of a request for the metrics and the log, written once its answer has been sent."""

    metrics: Metrics
    key: str = "refused"
    label: str = "unknown"
    status: int = 500
    started: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        """Count and log the request."""
        seconds = time.monotonic() - self.started
        self.metrics.requests.labels(self.label, str(self.status)).inc()
        self.metrics.seconds.labels(self.label).observe(seconds)
        _logger.info("%s %s %s %.2f s", self.key, self.label, self.status, seconds)


@dataclass(slots=True)
class Served:
    """Parts of a server that all requests share."""

    catalogue: Catalogue
    limits: ServerLimits
    spending: DailySpending
    places: Places
    metrics: Metrics
    has_content_log: bool = False
    rollouts: Any = field(default_factory=lambda: itertools.count(1 + secrets.randbelow(2**20)))
    """Numbers of the answers; each draws other samples."""


@dataclass(slots=True)
class Answering:
    """The answering of one request, in a task that is cancelled if the client disconnects.

    Attributes:
        served: The parts that all requests share.
        model: The model that answers.
        call: The request.
        key: Name of the client's key.
    """

    served: Served
    model: ServedModel
    call: ChatCall
    key: str

    async def whole(self) -> list[ChatAnswer]:
        """Return the answers.

        Raises:
            ApiError: If one fails.
        """
        answers: list[ChatAnswer] = await self._limited(self._answers)
        return answers

    async def events(self) -> AsyncIterator[tuple[int, Any]]:
        """Yield the events of all answers, each with the index of its answer.

        Raises:
            ApiError: If an answer fails; the others are cancelled.
        """
        queue: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
        running = asyncio.create_task(self._limited(lambda: self._stream_into(queue)))
        running.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (item := await queue.get()) is not None:
                yield item
            running.result()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await running

    async def _limited(self, answer: Callable[[], Any]) -> Any:
        try:
            with self.served.spending.of(self.key), dspy.context(disable_history=True):
                async with asyncio.timeout(self.served.limits.deadline_seconds):
                    async with self.served.places.place():
                        return await answer()
        except BaseExceptionGroup as group:
            raise self._api_error(group.exceptions[0]) from group
        except Exception as error:
            raise self._api_error(error) from error

    async def _answers(self) -> list[ChatAnswer]:
        mixture, rollouts = self.model.mixture, self.served.rollouts
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(mixture.aanswer(request, rollout=next(rollouts)))
                for request in self.call.requests
            ]
        answers = [task.result() for task in tasks]
        for answer in answers:
            self._count(answer)
        return answers

    def _count(self, answer: ChatAnswer) -> None:
        self.served.metrics.count(self.model, self.key, answer)
        self._log_failures(answer.answer.failures)

    def _log_failures(self, responses: Iterable[Response]) -> None:
        """Log why agents did not answer: in whole words only where prompts are logged as well."""
        for response in responses:
            reason = (
                response.failure if self.served.has_content_log else _kind(str(response.failure))
            )
            _logger.warning(
                "%s: agent %s did not answer: %s", self.model.label, response.agent, reason
            )

    async def _stream_into(self, queue: asyncio.Queue[tuple[int, Any] | None]) -> None:
        async def stream(index: int, request: Any) -> None:
            rollout = next(self.served.rollouts)
            async with aclosing(self.model.mixture.astream(request, rollout=rollout)) as events:
                async for event in events:
                    if isinstance(event, ChatAnswer):
                        self._count(event)
                    queue.put_nowait((index, event))

        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(self.call.requests):
                group.create_task(stream(index, request))

    def _api_error(self, error: BaseException) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            seconds = self.served.limits.deadline_seconds
            return ApiError(f"No answer within {seconds:g} s.", status=504, code="deadline")
        cause = moa_error_of(error) or error
        if isinstance(cause, BudgetReachedError):
            return self.served.spending.refusal(cause)
        if isinstance(cause, LayerFailedError):
            return self._failed_layer(cause)
        if isinstance(cause, PoolError):
            _logger.error("The pool cannot be asked: %s", cause)
            return ApiError("An agent of this model cannot be asked.", status=503, code="pool")
        if isinstance(cause, MoaError):
            _logger.error("A request failed: %s", type(cause).__name__)
            return ApiError("The request failed.", status=500, code=type(cause).__name__)
        _logger.error("A request failed.", exc_info=error)
        return ApiError("An internal error.", status=500, code="internal_error")

    def _failed_layer(self, error: LayerFailedError) -> ApiError:
        # Causes contain addresses and messages of endpoints, so only requests for details get them.
        subject, _, causes = str(error).partition(" agents answered.")
        failed = [
            response
            for response in error.responses
            if not (response.has_answer or response.is_left_out)
        ]
        self.served.metrics.count_agents(error.responses)
        self._log_failures(failed)
        _logger.warning("%s: %s agents answered.", self.model.label, subject)
        shown = f"{subject} agents answered.{causes if self.call.has_details else ''}"
        # The agents were retried already, as often as the pool allows.
        headers = {"x-should-retry": "false"}
        return ApiError(shown, status=502, code="agents_failed", headers=headers)


def _kind(failure: str) -> str:
    """Return a failure without what the endpoint or the model said, which may repeat a prompt.

    The type of the error and the HTTP status stay.
    """
    name, status = failure.partition(":")[0], _STATUS.findall(failure)
    return f"{name} ({status[-1]})" if status else name


def headers_of(
    call: ChatCall, proposals: Proposals | None, answers: list[ChatAnswer]
) -> dict[str, str]:
    """Return the headers on ignored keys of the request, failed agents, and the price."""
    headers = {}
    if call.not_passed_on:
        headers["X-Moa-Not-Passed-On"] = ", ".join(call.not_passed_on)
    all_proposals = [answer.proposals for answer in answers] + ([proposals] if proposals else [])
    fallen = [layer for layer in all_proposals if layer.fell_to_one]
    if fallen:
        headers["X-Moa-Degraded"] = f"1 of {fallen[0].n_asked} agents answered"
    elif lost := [layer for layer in all_proposals if layer.n_answered < layer.n_asked]:
        headers["X-Moa-Failures"] = f"{lost[0].n_asked - lost[0].n_answered} of {lost[0].n_asked}"
    if answers and all(answer.usd is not None for answer in answers):
        headers["X-Moa-Usd"] = f"{sum(answer.usd or 0.0 for answer in answers):.8f}"
    return headers


async def unless_gone(request: Request, answer: Awaitable[_T]) -> _T:
    """Return the answer; cancel it if the client disconnects first.

    Raises:
        ClientDisconnect: If the client disconnected.
    """
    working, gone = asyncio.ensure_future(answer), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

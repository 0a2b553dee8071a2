"""The pool's ``dspy.LM``, whose calls go through ``Calls``, and adoption of the user's own LMs."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import dspy
from dspy.utils.callback import BaseCallback

from moa_dspy.calls.call import is_count
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.lm.clients import (
    AsyncLiteLLMClient,
    AsyncVendorEngine,
    LiteLLMClient,
    PerLoop,
    VendorEngine,
)
from moa_dspy.calls.lm.engine import (
    NOTE_SAMPLES,
    AsyncStoredEngine,
    StoredEngine,
    history_entry,
    model_under_way,
    name_in_history,
)
from moa_dspy.calls.lm.response import ThoughtOpening
from moa_dspy.calls.reply import why_no_answer
from moa_dspy.calls.request import AgentCalls
from moa_dspy.calls.scope import CallFacts, current_scope
from moa_dspy.dspy_internals import (
    CLIENT_KEYS,
    BackendSelection,
    LM15Engine,
    Provider,
    lm15,
    select_backend,
    timeouts_for,
)
from moa_dspy.errors import SHORTEST_KEY, PoolError
from moa_dspy.files import shown_value
from moa_dspy.vendors import gateway_of


class CountCalls(BaseCallback):
    """Callback that logs the calls of an LM that was not made by this library in their scope.

    Tokens are those of the LM's history, or 0 without an entry; a call answered by DSPy's cache
    counts like any other.

    Args:
        agent: The LM's name in the log.
    """

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self._begun: dict[str, tuple[Any, float]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Record the start of the call."""
        self._begun[call_id] = (instance, time.monotonic())

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Log the call's cost and duration."""
        instance, started = self._begun.pop(call_id)
        name_in_history(instance, outputs, self.agent)
        entry = (None if exception else history_entry(instance, outputs)) or {}
        usage = dict(entry.get("usage") or {})
        finish_reason, refusal = _ending(entry.get("response"))
        facts = CallFacts(
            agent=self.agent,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            usd=0.0,
            seconds=time.monotonic() - started,
            is_reused=False,
            failure=f"{type(exception).__name__}: {exception}" if exception else None,
            finish_reason=finish_reason,
            no_answer=why_no_answer([("refusal", refusal)]) if refusal else None,
        )
        current_scope().note(facts)


def _count(tokens: Any) -> int:
    return tokens if is_count(tokens) else 0


def _ending(response: Any) -> tuple[str | None, str]:
    """Return the finish reason of a chat completion, and the refusal in it."""
    choices = getattr(response, "choices", None) or [None]
    message = getattr(choices[0], "message", None)
    more = getattr(message, "provider_specific_fields", None) or {}
    refusal = getattr(message, "refusal", None) or (more.get("refusal") if more else None)
    reason = getattr(choices[0], "finish_reason", None)
    return (reason if isinstance(reason, str) else None), str(refusal or "")


def stored_lm(
    model: str,
    calls: Calls,
    caller: AgentCalls,
    build: Callable[[bool], Any],
    *,
    is_seeded: bool = False,
    timeout_seconds: float | None = None,
    hints: Any = None,
    extra_body: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dspy.LM:
    """Return an LM that answers from ``calls``, or else through the engine of ``build``.

    DSPy's own cache is off: its key ignores the endpoint, and a hit loses the usage. DSPy's retries
    are off too: those of ``caller`` count every attempt and observe the deadline.

    Args:
        model: The LM's name, for histories and usage.
        calls: Where answers come from and go to.
        caller: The agent's name, identity, price and limits.
        build: Makes the endpoint's engine; its argument says whether it is for coroutines.
        is_seeded: Whether the endpoint's samples are drawn by the call's content.
        timeout_seconds: Longest time of one attempt.
        hints: Capabilities of the model, which adapters read; see ``StoredEngine``.
        extra_body: Further fields of every request.
        settings: Settings of ``dspy.LM``: temperature, max_tokens, ...
    """
    shared: dict[str, Any] = {
        "is_seeded": is_seeded,
        "timeout_seconds": timeout_seconds,
        "hints": hints,
        "extra_body": extra_body,
        "opening": ThoughtOpening(caller.identity, calls.store, extra_body),
    }
    return dspy.LM(
        model,
        cache=False,
        num_retries=0,
        callbacks=[NOTE_SAMPLES],
        engine=StoredEngine(calls, caller, lambda: build(False), **shared),
        async_engine=AsyncStoredEngine(calls, caller, lambda: build(True), **shared),
        **settings,
    )


_ROUTING: Final = ("api_version", "custom_llm_provider", "extra_query", "organization", "project")
_IS_SECRET: Final = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_NOT_SENT: Final = frozenset({"n", "num_generations", "prompt_cache", "rollout_id"})


@dataclass(frozen=True, slots=True)
class Adopted:
    """Model, endpoint and settings of an LM that was adopted; keys are in memory only.

    Attributes:
        lm: The caller's LM, which sends the requests.
        endpoint: URL of the endpoint; None is that of the vendor.
        client: ``litellm`` if the LM sends its requests through LiteLLM.
        routing: Digest of other settings that choose the model or its host; mostly empty.
        settings: Sampling settings that it sends: temperature, max_tokens, ...
        secrets: Its API keys.
    """

    lm: Any = field(repr=False)
    endpoint: str | None
    client: str
    routing: str
    settings: dict[str, Any]
    secrets: tuple[str, ...] = field(repr=False)

    def engine(self, asynchronous: bool) -> Any:
        """Return the engine that the LM would have used."""
        selection = _selection(self.lm)
        if self.client == "litellm":
            options = {"model_type": self.lm.model_type, **selection.clients}
            says = "max_completion_tokens" not in self.settings
            if asynchronous:
                return PerLoop(lambda: _AsyncLiteLLM(says_max_tokens=says, **options))
            return _LiteLLM(says_max_tokens=says, **options)
        config, model_type = _config(self.lm, selection), self.lm.model_type
        if asynchronous:
            return PerLoop(lambda: AsyncVendorEngine(config, model_type=model_type))
        return VendorEngine(config, model_type=model_type)


def lm_names(lms: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Return LMs by their given names, or by a plain word made from each model's name.

    Equal words are numbered.

    Raises:
        PoolError: If a value is not an LM.
    """
    is_one = isinstance(lms, dspy.BaseLM) or not isinstance(lms, Iterable)
    listed = list(lms.values() if isinstance(lms, Mapping) else [lms] if is_one else lms)
    for lm in listed:
        # DSPy's predictors refuse every other object when they are called.
        if not isinstance(lm, dspy.BaseLM):
            raise PoolError(
                "A pool is made of LMs such as dspy.LM('openai/gpt-4o-mini'), or of agents by "
                f"`Pool([...])`, but got {shown_value(lm)}."
            )
    if isinstance(lms, Mapping):
        return dict(lms)
    named: dict[str, Any] = {}
    for lm in listed:
        word = re.sub(r"[\s>+*()]+", "-", str(lm.model).rpartition("/")[2]) or "lm"
        number, name = 2, word
        while name in named:
            number, name = number + 1, f"{word}-{number}"
        named[name] = lm
    return named


def refusal(lm: Any) -> str | None:
    """Return why ``lm`` cannot be adopted, or None if it can."""
    if type(lm) is not dspy.LM:
        return f"the LM is of the class {type(lm).__name__}, so what it sends is not known"
    if {"forward", "aforward"} & vars(lm).keys():
        return "the LM has its own `forward`, so what it sends is not known"
    if not isinstance(lm.engine, str):
        return (
            f"the LM's engine is of the class {type(lm.engine).__name__}, so which model answers "
            "is not known"
        )
    if lm.model_type == "text":
        return "the LM uses text completions, which cannot be written as a chat request"
    if type(lm.provider).launch is not Provider.launch or lm.finetuning_model:
        return "the LM can be launched or fine-tuned, which would change the model that answers"
    try:
        _canonical(lm)
        selection = _selection(lm)
    except (lm15.LM15Error, dspy.LMError, TypeError, ValueError) as error:
        return f"the LM's settings cannot be written into a request: {error}"
    if not selection.native and getattr(selection.resolution, "declared", False):
        return "the LM's provider can only be reached through LiteLLM"
    return None


def adopted(lm: Any) -> Adopted:
    """Return the model, endpoint and settings of ``lm``, for which ``refusal`` returned None."""
    selection = _selection(lm)
    clients = selection.clients
    return Adopted(
        lm,
        _endpoint(lm, selection),
        "auto" if selection.native else "litellm",
        _routing(lm, clients),
        {name: value for name, value in lm.kwargs.items() if name not in CLIENT_KEYS},
        _secrets(clients),
    )


def _canonical(lm: Any) -> Any:
    """Return the request that ``lm`` makes from a short prompt."""
    sent = {name: value for name, value in lm.kwargs.items() if value is not None}
    body = {name: value for name, value in sent.items() if name not in CLIENT_KEYS | _NOT_SENT}
    messages = [{"role": "user", "content": "?"}]
    return lm15.request_from_openai_chat({"model": lm.model, "messages": messages, **body})


def _selection(lm: Any) -> BackendSelection:
    """Return the client that DSPy chooses for the LM's settings."""
    selection = select_backend(lm)
    if not selection.native or lm.engine != "auto":
        return selection
    try:
        LM15Engine(_config(lm, selection), model_type=lm.model_type).plan(_canonical(lm))
    except lm15.UnsupportedFeatureError:
        return BackendSelection(False, selection.resolution, selection.clients)
    return selection


def _config(lm: Any, selection: BackendSelection) -> Any:
    resolution: Any = selection.resolution
    provider, clients = resolution.provider, selection.clients
    url = clients.get("api_base") or clients.get("base_url")
    return lm15.RouterConfig(
        api_keys={provider: clients["api_key"]} if "api_key" in clients else None,
        base_urls={provider: url} if url else None,
        timeouts=timeouts_for(clients.get("timeout")),
        providers=tuple(binding.definition for binding in lm._providers),
    )


def _endpoint(lm: Any, selection: BackendSelection) -> str | None:
    clients = selection.clients
    base_url: str | None = clients.get("api_base") or clients.get("base_url")
    if base_url is not None:
        return base_url
    resolution: Any = selection.resolution
    if resolution is not None and resolution.declared:
        declared = {binding.id: binding.definition for binding in lm._providers}
        return str(declared[resolution.provider].access.base_url)
    return gateway_of(lm.model)


def _routing(lm: Any, clients: dict[str, Any]) -> str:
    """Return a digest of the settings besides model and URL that select the model; without keys."""
    parts = [f"{name}={clients[name]}" for name in _ROUTING if clients.get(name)]
    headers = {**(clients.get("headers") or {}), **(clients.get("extra_headers") or {})}
    parts += sorted(f"{k}: {v}" for k, v in headers.items() if not _IS_SECRET.search(k))
    if lm.model_type != "chat":
        parts.append(lm.model_type)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12] if parts else ""


def _secrets(clients: dict[str, Any]) -> tuple[str, ...]:
    headers = {**(clients.get("headers") or {}), **(clients.get("extra_headers") or {})}
    values = [clients.get("api_key"), *(v for k, v in headers.items() if _IS_SECRET.search(k))]
    # A server may quote a whole header, or only the key without the word before it.
    words = [word for text in values if isinstance(text, str) for word in (text, *text.split())]
    return tuple(sorted({word for word in words if len(word) >= SHORTEST_KEY}))


class _Spelled:
    """Sends the token limit under the field name that the LM itself uses."""

    def __init__(self, *, says_max_tokens: bool, **options: Any) -> None:
        super().__init__(**options)
        self.says_max_tokens = says_max_tokens

    def _arguments(self, request: Any, *, streaming: bool = False) -> dict[str, Any]:
        parent: Any = super()
        arguments: dict[str, Any] = parent._arguments(request, streaming=streaming)
        arguments.pop("n", None)
        if self.says_max_tokens and "max_completion_tokens" in arguments:
            arguments["max_tokens"] = arguments.pop("max_completion_tokens")
        return arguments


class _LiteLLM(_Spelled, LiteLLMClient):
    pass


class _AsyncLiteLLM(_Spelled, AsyncLiteLLMClient):
    pass


class _Once(logging.Filter):
    """Passes each message of a handler once per model."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new for the model, whose name it adds to ``record``."""
        model = model_under_way()
        if model is not None and not hasattr(record, "model"):
            record.model = model  # other handlers see the same record
            record.msg, record.args = f"{model}: {record.getMessage()}", ()
        key = (record.name, record.getMessage())
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show each message in DSPy's log, such as a reply cut at ``max_tokens``, once per agent."""
    # One filter per handler, as each handler must pass a message once.
    filters = [(handler, _Once()) for handler in logging.getLogger("dspy").handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)

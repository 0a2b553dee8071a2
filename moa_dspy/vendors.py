"""Facts about endpoints and vendors: gateways, reasoning models, prices, finish reasons, errors."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

NATIVE_VENDORS: Final = frozenset(
    {"anthropic", "deepseek", "gemini", "groq", "hosted_vllm", "moonshot", "ollama", "ollama_chat"}
    | {"openai", "openrouter", "xai"}
)
"""Vendors that DSPy's own client supports without LiteLLM (dspy 3.4)."""
OWN_PROTOCOL: Final = frozenset({"anthropic", "gemini"})
"""Native vendors whose gateways do not speak OpenAI's chat completions."""
_REASONING: Final = re.compile(
    r"(?:o[134](?:-(?:mini|nano|pro|preview|deep-research))?|gpt-5(?!.*-chat)(?:[.-].*)?)"
    r"(?:-\d{4}-\d{2}-\d{2})?",
    re.IGNORECASE,
)
_PRICE_LIST: Final = "model_prices_and_context_window_backup.json"


def vendor_of(model: str) -> str:
    """Return the vendor of ``vendor/NAME``."""
    return model.partition("/")[0]


def is_loopback(host: str) -> bool:
    """Return whether a host, by name or address, is a loopback address of this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def gateway_of(model: str) -> str | None:
    """Return the URL in the environment for the vendor of ``model``, or None.

    As in DSPy and LiteLLM: ``OPENAI_BASE_URL`` or ``OPENAI_API_BASE``, and for every other vendor
    ``VENDOR_API_BASE`` or ``VENDOR_BASE_URL``; the first that is set.
    """
    vendor = vendor_of(model).removesuffix("_chat").upper()
    ends = ("BASE_URL", "API_BASE") if vendor == "OPENAI" else ("API_BASE", "BASE_URL")
    return next((url for end in ends if (url := os.environ.get(f"{vendor}_{end}"))), None)


def is_reasoning_model(model: str) -> bool:
    """Return whether ``model`` is OpenAI's and takes no temperature and no ``max_tokens``."""
    return _REASONING.fullmatch(model.rpartition("/")[2]) is not None


_OPENS_THOUGHTS: Final = re.compile(
    r"qwq|thinking|[-_/:.]r1\b|reasoner|glm-z1|exaone-deep|skywork-or1|deep(?:coder|scaler)"
    r"|minimax-m[12]\b|(?:ace|open)reason",
    re.IGNORECASE,
)
"""Models whose chat templates open the thought, so that a reply has only the closing tag."""
_SET_APART: Final = NATIVE_VENDORS - {"hosted_vllm", "ollama", "ollama_chat"}
"""Vendors whose own servers never send a thought without its opening tag."""


def opens_thought(identity: str) -> bool | None:
    """Return whether the chat template of a caller's model opens the thought.

    Then replies have only the closing tag. None means that it is not known for model or vendor.

    Args:
        identity: ``MODEL@ENDPOINT``.
    """
    model = identity.partition("@")[0]
    if _OPENS_THOUGHTS.search(model):
        return True
    is_set_apart = identity == f"{model}@vendor" and vendor_of(model) in _SET_APART
    return False if is_set_apart else None


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model's tokens.

    Attributes:
        usd_per_million_prompt_tokens: Price of prompt tokens; 0 if they are free.
        usd_per_million_completion_tokens: Price of completion tokens; 0 if they are free.
        source: ``pool`` (from the pool file or the caller), ``local`` (this machine), ``litellm``
            (LiteLLM's price list has exactly this name), or ``table`` (of recorded answers).
        usd_per_million_cached_tokens: Price of prompt tokens that the vendor read from its cache;
            None if it is that of other prompt tokens.
    """

    usd_per_million_prompt_tokens: float
    usd_per_million_completion_tokens: float
    source: str
    usd_per_million_cached_tokens: float | None = None

    @property
    def per_token(self) -> dict[str, Any]:
        """Return the price of one token of each kind, as arguments of ``AgentCalls``."""
        cached = self.usd_per_million_cached_tokens
        prompt = self.usd_per_million_prompt_tokens
        return {
            "usd_per_prompt_token": prompt / 1e6,
            "usd_per_completion_token": self.usd_per_million_completion_tokens / 1e6,
            "usd_per_cached_token": (prompt if cached is None else cached) / 1e6,
        }

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one call."""
        return (
            prompt_tokens * self.usd_per_million_prompt_tokens
            + completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6


def listed_price(model: str) -> Price | None:
    """Return the list price of ``vendor/NAME`` at the vendor's own endpoint, or None.

    LiteLLM's installed list is read, without importing LiteLLM and without a request. An entry must
    be ``vendor/NAME``, or ``NAME`` with that vendor; similar names do not count.
    """
    vendor, _, name = model.partition("/")
    entry = _price_list().get(model) or _price_list().get(name) or {}
    if entry.get("litellm_provider") != vendor:
        return None
    names = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
    prompt, completion, cached = (_per_million(entry.get(name)) for name in names)
    if prompt is None or completion is None:
        return None
    return Price(prompt, completion, "litellm", cached)


def _per_million(usd: object) -> float | None:
    return 1e6 * usd if isinstance(usd, int | float) and math.isfinite(usd) else None


@cache
def _price_list() -> Mapping[str, Mapping[str, Any]]:
    spec = find_spec("litellm")
    path = Path(spec.origin).parent / _PRICE_LIST if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    listed: dict[str, Mapping[str, Any]] = json.loads(path.read_text("utf-8"))
    return listed


_FILTERED: Final = frozenset(
    {"BLOCKLIST", "LANGUAGE", "OTHER", "PROHIBITED_CONTENT", "RECITATION", "SAFETY", "SPII"}
)
"""Gemini's reasons why it ended an answer early or gave none."""
_WINDOW_EXCEEDED: Final = "model_context_window_exceeded"


def regular_ending(data: dict[str, Any], *, is_for_litellm: bool) -> dict[str, Any]:
    """Return a reply or event of Gemini or Anthropic with an ending that all clients read alike.

    A filtered answer or a blocked prompt becomes an answer (possibly empty) with that finish
    reason; otherwise DSPy's client would raise, and LiteLLM would drop the text. Tokens of thoughts
    count as tokens of the answer, as they are paid for; prompt tokens that Anthropic reads from or
    writes to its cache count as prompt tokens.

    Args:
        data: The reply as sent by the server.
        is_for_litellm: Whether LiteLLM reads it, instead of DSPy's own client.
    """
    candidates, feedback = data.get("candidates"), data.get("promptFeedback")
    if not candidates and isinstance(feedback, Mapping) and feedback.get("blockReason"):
        candidates = [{"index": 0, "finishReason": "SAFETY"}]
    if isinstance(candidates, list):
        # Each client has its own finish reason for a filtered answer.
        word = "content_filter" if is_for_litellm else "safety"
        usage = data.get("usageMetadata")
        return {
            **{name: value for name, value in data.items() if name != "promptFeedback"},
            "candidates": [_regular_candidate(candidate, word) for candidate in candidates],
            # LiteLLM adds thoughts itself, and raises without counts.
            "usageMetadata": (usage or {}) if is_for_litellm else _with_thoughts(usage),
        }
    if not is_for_litellm:
        data = _with_cached(data)
    ending = data if "stop_reason" in data else data.get("delta")
    if isinstance(ending, Mapping) and ending.get("stop_reason") == _WINDOW_EXCEEDED:
        ended_by = {**ending, "stop_reason": "max_tokens"}
        return ended_by if ending is data else {**data, "delta": ended_by}
    return data


def _regular_candidate(candidate: Any, filtered: str) -> Any:
    if not isinstance(candidate, Mapping) or candidate.get("finishReason") not in _FILTERED:
        return candidate
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    message = {"role": "model", "parts": parts or [{"text": ""}]}
    return {**candidate, "content": message, "finishReason": filtered}


def _with_thoughts(usage: Any) -> Any:
    if not isinstance(usage, Mapping):
        return usage
    spoken, thought = usage.get("candidatesTokenCount"), usage.get("thoughtsTokenCount")
    if not isinstance(thought, int):
        return usage
    return {**usage, "candidatesTokenCount": thought + (spoken if isinstance(spoken, int) else 0)}


_CACHED: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")


def _with_cached(data: dict[str, Any]) -> dict[str, Any]:
    """Return a reply or event of Anthropic whose prompt tokens include cached ones.

    Anthropic counts cached tokens separately; LiteLLM and all other vendors include them.
    """
    inner = data.get("message")
    if isinstance(inner, Mapping) and "usage" in inner:
        return {**data, "message": _with_cached(dict(inner))}
    usage = data.get("usage")
    prompt = usage.get("input_tokens") if isinstance(usage, Mapping) else None
    if not isinstance(usage, Mapping) or not isinstance(prompt, int):
        return data
    apart = [usage.get(name) for name in _CACHED]
    whole = prompt + sum(n for n in apart if isinstance(n, int))
    return {**data, "usage": {**usage, "input_tokens": whole}}


_LONGEST_WORDS: Final = 500
_WORDS: Final = (
    *("message", "Message", "detail", "msg", "error_message", "errorMessage", "status_msg"),
    *("error_description", "error", "err", "errors", "exception", "title", "description"),
    *("reason", "text"),
)
"""Fields in which servers describe errors, the most informative first."""
_MARKUP: Final = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^<>]*>", re.DOTALL | re.IGNORECASE)


def server_words(body: str) -> dict[str, Any]:
    """Return a server's error: its ``message`` in one line, "" if it has none.

    Also ``code``, ``type`` and ``param``, if given. OpenAI, vLLM, FastAPI, Ollama, LM Studio,
    llama.cpp, Anthropic, Gemini and gateways each have their own format; of a web page, its text is
    used. A gateway's message is followed by that of the server behind it.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {"message": _one_line(_MARKUP.sub(" ", body) if "<" in body else body)}
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        data = data[0]
    inner = data.get("error") if isinstance(data, Mapping) else None
    source = inner if isinstance(inner, Mapping) else data
    if not isinstance(source, Mapping):
        return {"message": _one_line(_message_in(source))}
    named = {name: source[name] for name in ("code", "type", "param") if source.get(name)}
    if isinstance(named.get("code"), int):
        del named["code"]  # repeats the status
    message = ": ".join(
        filter(None, (_message_in(source) or _message_in(data), _gateway_message(source)))
    )
    return {**named, "message": _one_line(message)}


def shown_body(body: str) -> str:
    """Return a body in one line, shortened; "" for an empty body."""
    return "" if body.strip() in ("", "null", "{}", "[]", '""') else _one_line(body)


def _gateway_message(error: Mapping[str, Any]) -> str:
    """Return the message of the server behind a gateway, in the form of OpenRouter."""
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    if not raw:
        return ""
    words = str(server_words(raw if isinstance(raw, str) else json.dumps(raw))["message"])
    name = metadata.get("provider_name") if isinstance(metadata, Mapping) else None
    return f"{name}: {words}" if name else words


def decoded(body: bytes) -> str:
    """Return the text of an error's body: UTF-8, or else UTF-16 with its mark, or Latin-1."""
    for encoding in (
        "utf-8-sig",
        "utf-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1",
    ):
        try:
            return body.decode(encoding)
        except UnicodeDecodeError:
            continue
    return body.decode("utf-8", "replace")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_WORDS]


def _message_in(value: Any) -> str:
    """Return the message in a value; an error of a field is preceded by its name."""
    if isinstance(value, list | tuple):
        return "; ".join(filter(None, map(_message_in, value)))
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    message = next((words for name in _WORDS if (words := _message_in(value.get(name)))), "")
    place = value.get("loc")
    return f"{'.'.join(map(str, place))}: {message}" if isinstance(place, list) else message


SERVERS: Final = {
    "Ollama": 11434,
    "llama.cpp": 8080,
    "vLLM": 8000,
    "LM Studio": 1234,
}
"""Model servers and their default ports; each lists its models at ``/v1/models``."""
KEYS: Final = {
    "OPENAI_API_KEY": ("openai/gpt-4.1-mini", "openai/gpt-4.1-nano"),
    "ANTHROPIC_API_KEY": ("anthropic/claude-haiku-4-5",),
    "GEMINI_API_KEY": ("gemini/gemini-2.5-flash", "gemini/gemini-2.5-flash-lite"),
    "MISTRAL_API_KEY": ("mistral/mistral-small-latest",),
    "DEEPSEEK_API_KEY": ("deepseek/deepseek-chat",),
    "GROQ_API_KEY": ("groq/openai/gpt-oss-20b",),
    "OPENROUTER_API_KEY": ("openrouter/openai/gpt-4.1-mini",),
}
"""Environment variables of keys, and a cheap first model for each."""

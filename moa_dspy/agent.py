"""Agents (a model with sampling settings under a name), and files that list agents."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from moa_dspy.errors import PoolError
from moa_dspy.files import (
    LONGEST_SHOWN,
    NUMBER,
    NUMBER_OR_NONE,
    WHOLE,
    Kinds,
    check_kinds,
    check_table,
    read_toml,
    shown_value,
)
from moa_dspy.local.server import CATALOGUE, usable_cores
from moa_dspy.vendors import Price, gateway_of, is_reasoning_model, listed_price, vendor_of

VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
"""A reference to an environment variable in a path or a header."""
IS_CREDENTIAL: Final = re.compile(r"auth|(?:key|token)(?![a-z])|secret|cookie", re.IGNORECASE)
"""Names of headers whose values are kept out of files, logs and identities."""
_IS_BODY_KEY: Final = re.compile(r"api_?key|authorization|secret|password", re.IGNORECASE)
_IS_URL: Final = re.compile(r"https?://[^/\s]", re.IGNORECASE)
_CHOICES: Final = {
    "name": "a word without blanks and without > + * ( )",
    "model": "`local/NAME` or `vendor/NAME`",
    "client": "auto or litellm",
    "reasoning_effort": "a word, or absent",
}
"""Descriptions of text fields, for errors that do not show the values."""
_NAME = re.compile(r"[^\s>+*()]+")
_BY_MODEL: Final = float("nan")
"""Marks a temperature that was not given."""
_PRICES: Final = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
_CACHED_PRICE: Final = "usd_per_million_cached_tokens"
_TEXT: Final = (str, "a text")
_TEXT_OR_NONE: Final = (str | None, "a text or None")
_TEXTS: Final[Kinds] = {
    **dict.fromkeys(("name", "model", "client"), _TEXT),
    **dict.fromkeys(("reasoning_effort", "weights", "sha256"), _TEXT_OR_NONE),
    **dict.fromkeys(("api_base", "api_key_env"), _TEXT_OR_NONE),
    **dict.fromkeys(("headers", "extra_body"), (Mapping, "a table")),
}
_WHOLE_OR_NONE: Final = (int | None, "a whole number or None")
_NUMBERS: Final[Kinds] = {
    **dict.fromkeys(("max_tokens", "n_slots", "num_retries"), WHOLE),
    **dict.fromkeys(("context_window", "n_threads", "max_concurrent"), _WHOLE_OR_NONE),
    "timeout_seconds": NUMBER,
    **dict.fromkeys(("temperature", "top_p", *_PRICES, _CACHED_PRICE), NUMBER_OR_NONE),
}
"""Types that Python users may pass; files are checked when they are read."""
_OWN_FIELDS: Final = frozenset({"max_tokens", "messages", "model", "n", "stream", "temperature"})
"""Request fields that ``extra_body`` may not hold: the request would differ from the stored one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A language model with sampling settings under a name: ``A_ij`` of the paper.

    The same model at two temperatures is two agents.

    Attributes:
        name: A plain word, as used in architectures.
        model: ``local/NAME`` (llama.cpp in this process; NAME from the catalogue), or
            ``vendor/NAME`` as in DSPy and LiteLLM.
        temperature: 0 is greedy; such an agent always gives the same answer. None (``"none"`` in a
            pool file) sends none, so the endpoint's default applies. Default: None for OpenAI's
            reasoning models (``gpt-5*``, ``o1``, ``o3``, ``o4``), else 0.7.
        top_p: Nucleus sampling; None sends none.
        max_tokens: Longest answer, in tokens, thoughts included. It is sent as the field that the
            model accepts, ``max_completion_tokens`` for OpenAI's reasoning models.
        reasoning_effort: ``low``, ``medium``, ``high``, ... as supported by the model; None sends
            none.
        extra_body: Further fields of the request, sent unchanged. A ``max_completion_tokens`` in it
            is sent instead of ``max_tokens``.
        headers: Further headers of the request; ``${VARIABLE}`` in a value is expanded. The
            value of a header that holds a credential must name a variable.
        context_window: Most tokens of prompt and answer together; the responses of others that an
            agent reads are cut to fit. None means no limit.
        weights: ``local/`` only: path of a GGUF file, ``${VARIABLE}`` is expanded.
        sha256: ``local/`` only: checksum of the weights, which is also their identity; required
            with ``weights``, known for a name of the catalogue.
        n_slots: ``local/`` only: questions that the model answers at the same time.
        n_threads: ``local/`` only: threads of the model; None uses every core.
        api_base: URL of an OpenAI-compatible endpoint. None is the address in the environment for
            the vendor (``OPENAI_BASE_URL``, ``OPENAI_API_BASE``, ...), else that of the vendor.
        api_key_env: Name of the environment variable that holds the key.
        client: ``litellm`` sends every request through LiteLLM.
        num_retries: Further attempts after a temporary failure: busy, down, slow.
        timeout_seconds: Longest time of one attempt, and of each wait inside it.
        max_concurrent: Most requests at a time; agents of one endpoint share the smallest of their
            numbers. None means no limit by this library.
        usd_per_million_prompt_tokens: Price; 0 if they are free; see ``price`` for None.
        usd_per_million_completion_tokens: Likewise; both prices must be given together.
        usd_per_million_cached_tokens: Price of prompt tokens that the vendor read from its cache;
            None is that of other prompt tokens, or the list price if their price is that of the
            list.
        optional: Whether the agent is left out, with a message, if a variable that it needs is not
            set.

    Raises:
        PoolError: If a value is out of range, naming the agent, the field and the value.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    model: str
    temperature: float | None = _BY_MODEL
    top_p: float | None = None
    max_tokens: int = 1024
    reasoning_effort: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    context_window: int | None = None
    weights: str | None = None
    sha256: str | None = None
    n_slots: int = 4
    n_threads: int | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    client: str = "auto"
    num_retries: int = 3
    timeout_seconds: float = 600.0
    max_concurrent: int | None = None
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_completion_tokens: float | None = None
    usd_per_million_cached_tokens: float | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        before = f"Agent {shown_value(self.name)}: `"
        check_kinds(self, _TEXTS, before=before, error=PoolError, shows=False)
        if self.temperature is _BY_MODEL:
            default = None if is_reasoning_model(self.model) else 0.7
            object.__setattr__(self, "temperature", default)
        check_kinds(self, _NUMBERS, before=before, error=PoolError, shows=False)
        self._check_secrets()
        if self.is_local:
            self._check_local()
        for name, is_fine in self._checks().items():
            if not is_fine:
                # A text in the wrong field may be a key.
                longest = LONGEST_SHOWN if name == "name" else 0
                value, choices = shown_value(getattr(self, name), longest=longest), _CHOICES
                hint = f"; it must be {choices[name]}" if name in choices else ""
                shown = shown_value(self.name)
                raise PoolError(f"Agent {shown}: `{name}` cannot be {value}{hint}.")
        self._check_prices()

    def _check_prices(self) -> None:
        """Refuse a part of a price: a price that is not given is unknown, not 0."""
        names = [name for name in (*_PRICES, _CACHED_PRICE) if getattr(self, name) is not None]
        missing = [name for name in _PRICES if name not in names]
        if names and missing:
            raise PoolError(
                f"Agent {shown_value(self.name)}: `{names[0]}` is given, but `{missing[0]}` is "
                "not: give both prices (0 if tokens are free), or neither if they are unknown."
            )

    def _checks(self) -> dict[str, bool]:
        prices = {name: getattr(self, name) for name in (*_PRICES, _CACHED_PRICE)}
        return {
            "name": _NAME.fullmatch(self.name) is not None,
            "model": "/" in self.model,
            "temperature": self.temperature is None or 0 <= self.temperature <= 2,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "max_tokens": self.max_tokens >= 1,
            "reasoning_effort": self.reasoning_effort != "",
            "extra_body": not _OWN_FIELDS & set(self.extra_body),
            "context_window": self.context_window is None or self.context_window > self.max_tokens,
            "n_slots": self.n_slots >= 1,
            "n_threads": self.n_threads is None or self.n_threads >= 1,
            "client": self.client in ("auto", "litellm"),
            "num_retries": self.num_retries >= 0,
            "timeout_seconds": 0 < self.timeout_seconds < math.inf,
            "max_concurrent": self.max_concurrent is None or self.max_concurrent >= 1,
            **{name: usd is None or 0 <= usd < math.inf for name, usd in prices.items()},
        }

    def _check_secrets(self) -> None:
        # A value refused here may be the key itself, so it is not shown.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise PoolError(
                f"Agent {self.name!r}: `api_key_env` must be the name of an environment variable, "
                "not the key."
            )
        if self.api_base is not None and not _IS_URL.match(self.api_base):
            raise PoolError(
                f"Agent {self.name!r}: `api_base` must be a URL that begins with http:// or "
                f"https://, but got {shown_value(self.api_base, longest=0)}."
            )
        if "@" in (self.api_base or "").partition("://")[2].partition("/")[0]:
            raise PoolError(
                f"Agent {self.name!r}: `api_base` must not hold a user or password, which would be "
                "stored; use `api_key_env`."
            )
        for header, value in self.headers.items():
            if IS_CREDENTIAL.search(header) and not VARIABLE.search(value):
                raise PoolError(
                    f"Agent {self.name!r}: `headers` must not hold the credential of {header!r}, "
                    "which would be stored; write ${VARIABLE} and set the variable."
                )
        if secret := next(filter(_IS_BODY_KEY.search, self.extra_body), None):
            raise PoolError(
                f"Agent {self.name!r}: `extra_body` must not hold {secret!r}, which would be "
                "stored; use `api_key_env` or `headers`."
            )

    def _check_local(self) -> None:
        for name in ("headers", "reasoning_effort"):
            if getattr(self, name):
                raise PoolError(f"Agent {self.name!r}: `{name}` cannot be set for a local model.")
        if self.weights is not None and self.sha256 is None:
            raise PoolError(
                f"Agent {self.name!r}: `sha256` must be given with `weights`; "
                "`sha256sum FILE` prints it."
            )
        catalogue_name = self.model.removeprefix("local/")
        if self.weights is None and catalogue_name not in CATALOGUE:
            choices = ", ".join(sorted(CATALOGUE))
            raise PoolError(
                f"Agent {self.name!r}: `model` {self.model!r} is not in the catalogue ({choices}); "
                "give `weights` and `sha256`."
            )

    def beside(self, folder: Path) -> Agent:
        """Return the agent with a relative ``weights`` path resolved against ``folder``."""
        if self.weights is None or self.weights.startswith("$"):
            return self
        return replace(self, weights=str(folder / self.weights))

    @property
    def missing_variables(self) -> tuple[str, ...]:
        """Environment variables that the agent needs and that are not set."""
        named = VARIABLE.findall(" ".join([self.weights or "", *self.headers.values()]))
        needed = [*named, *([self.api_key_env] if self.api_key_env else [])]
        return tuple(name for name in needed if name not in os.environ)

    @property
    def is_recorded(self) -> bool:
        """True if its answers are those of a table."""
        return self.model.startswith("recorded/")

    @property
    def is_local(self) -> bool:
        """True if llama.cpp answers inside this process."""
        return self.model.startswith("local/")

    @property
    def processor_share(self) -> float:
        """Share of this machine's cores that it keeps busy while it answers; 0 if not local."""
        n_cores = usable_cores()
        return min(1.0, (self.n_threads or n_cores) / n_cores) if self.is_local else 0.0

    @property
    def base_url(self) -> str | None:
        """URL of requests: ``api_base``, else that of the environment; None is the vendor's own."""
        return None if self.is_local else self.api_base or gateway_of(self.model)

    @property
    def endpoint(self) -> str:
        """The endpoint of requests, independent of the model; each endpoint has one queue."""
        if self.is_local:
            return self.identity
        return (self.base_url or vendor_of(self.model)).rstrip("/")

    @property
    def identity(self) -> str:
        """The model that answers, with its endpoint or weights, and without sampling settings.

        Headers may select another model, so headers without credentials are part of it.
        """
        if self.is_local:
            digest = self.sha256 or CATALOGUE[self.model.removeprefix("local/")].sha256
            return f"{self.model}@sha256:{digest}"
        identity = f"{self.model}@{self.base_url or 'vendor'}"
        public = sorted(f"{k}: {v}" for k, v in self.headers.items() if not IS_CREDENTIAL.search(k))
        if not public:
            return identity
        return f"{identity}+{hashlib.sha256(chr(10).join(public).encode()).hexdigest()[:12]}"

    @property
    def price(self) -> Price | None:
        """The price of the agent's tokens; None means unknown, which is not 0.

        The agent's own price if it is given; 0 for a local model; else LiteLLM's list price for
        exactly this name, if the endpoint is the vendor's own.
        """
        prompt, completion = (getattr(self, name) for name in _PRICES)
        if prompt is not None:
            return Price(prompt, completion, "pool", self.usd_per_million_cached_tokens)
        if self.is_local:
            return Price(0.0, 0.0, "local")
        return listed_price(self.model) if self.base_url is None else None


class AgentPool(Protocol):
    """The part of a ``Pool`` that callers need: LMs and prices of agents by name."""

    def __getitem__(self, name: str, /) -> Agent: ...

    def lm(self, name: str, /) -> Any:
        """Return the LM of an agent."""
        ...

    def price(self, name: str, /) -> Any:
        """Return the price of an agent's tokens; None means unknown."""
        ...


def read_agents(path: Path) -> list[Agent]:
    """Read the agents of a pool file, or those that a study file lists or takes from its pool.

    A relative ``weights`` path is relative to the file.

    Raises:
        PoolError: If the file cannot be read, has an unknown key, or is a study of a table of
            answers.
    """
    content = read_toml(path, error=PoolError)
    data = content.get("data")
    if isinstance(data, Mapping) and data.get("reader") == "recorded":
        raise PoolError(f"{path} is a study of a table of answers, which has no agents to call.")
    if {"task", "data"} <= content.keys():
        if isinstance(pool := content.get("pool"), str) and "agents" not in content:
            path = path.parent / pool
            content = read_toml(path, error=PoolError)
        else:
            content = {"agents": content.get("agents", [])}
    if unknown := set(content) - {"agents"}:
        raise PoolError(f"{path}: unknown key {min(unknown)!r}; the only known one is `agents`.")
    agents = agents_of(content.get("agents", []), where=f"{path}: agents")
    return [agent.beside(path.parent) for agent in agents]


def agents_of(tables: object, *, where: str) -> tuple[Agent, ...]:
    """Return the agents of ``[[agents]]`` tables.

    Raises:
        PoolError: If a table is not valid; the message begins with ``where``.
    """
    if isinstance(tables, list):
        tables = [_with_null(table) for table in tables]
    agents = check_table(list[Agent], tables, where=where, error=PoolError, may_hold_keys=True)
    return tuple(agents)


def _with_null(table: Any) -> Any:
    # TOML has no null.
    is_none = isinstance(table, dict) and table.get("temperature") == "none"
    return {**table, "temperature": None} if is_none else table


def available(agents: Iterable[Agent]) -> tuple[list[Agent], list[str]]:
    """Return the agents that can be asked here, and a line on each optional agent that cannot."""
    kept, notes = [], []
    for agent in agents:
        if agent.optional and (missing := agent.missing_variables):
            notes.append(
                f"Agent {agent.name!r} is left out, because {', '.join(missing)} is not set."
            )
        else:
            kept.append(agent)
    return kept, notes

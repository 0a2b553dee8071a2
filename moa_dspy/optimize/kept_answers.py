"""Parsed answers of measured nodes, kept in the call store beside their calls.

DSPy still has to format, look up and parse a stored call, which takes most of the time of a search
whose calls are all stored. The parsed replies of agents are kept here and read back in one query.
They are copies only: what is paid, counted and recorded is the call, and an answer whose call is
no longer in the store is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import dspy

from moa_dspy.adapters.guard import speaking_adapter
from moa_dspy.adapters.plain_chat import PlainChat
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.lm.engine import NOTE_SAMPLES, StoredEngine
from moa_dspy.calls.scope import CallFacts, current_scope
from moa_dspy.calls.store.schema import make_kept_answers, packed, read_kept, unpacked, write_kept
from moa_dspy.calls.store.store import CallStore
from moa_dspy.errors import StoreError
from moa_dspy.files import version
from moa_dspy.layers import SEAT_MARK
from moa_dspy.plan import is_traced
from moa_dspy.prediction import Question, Response, counted_in_time, render
from moa_dspy.seats import rollout
from moa_dspy.telemetry import is_traced_outside

_logger = logging.getLogger(__name__)

_FORMAT: Final = 1
"""Part of every key: increasing it invalidates answers that were kept in another format."""
_MODULES: Final = (dspy.Predict, dspy.ChainOfThought)
_ADAPTERS: Final = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, PlainChat)
"""Adapter classes with known requests and parsing; subclasses may do anything else."""
_ABILITIES: Final = (
    "supports_function_calling",
    "supports_reasoning",
    "supports_response_schema",
    "supported_params",
)
"""Attributes of an LM on which the request of an adapter depends."""
_LEAVES: Final = (str, int, float, bool, type(None))
_N_WAITING: Final = 64
"""Answers that are written together; a killed process loses these copies, but no call."""
AskAll: TypeAlias = Callable[[Sequence[Question]], list[Response]]


class _NotPlainError(TypeError):
    """A value cannot be serialised, so it cannot be compared."""


@dataclass(slots=True)
class KeptAnswers:
    """Reads and writes answers of nodes in the store of their calls.

    An answer is kept if one of DSPy's own modules, with an adapter of DSPy or of this library,
    asked an agent of the pool in one call. The key has everything on which the request and the
    parsing of its reply depend; if a part cannot be serialised there is no key, and DSPy runs.

    Attributes:
        is_used: Whether no function of the user's runs meanwhile, as it may read DSPy's history
            of calls. If DSPy keeps no history, answers are kept in any case.
    """

    is_used: bool = False
    _waiting: dict[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    _parts: dict[int, tuple[Any, Any, str]] = field(default_factory=dict[int, tuple[Any, Any, str]])
    _store: CallStore | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(
        self,
        questions: Sequence[Question],
        seats: tuple[Any, Any],
        ask_all: AskAll,
        log: Sequence[CallFacts],
        *,
        is_alone: bool,
    ) -> list[Response]:
        """Return the responses to questions, in order; responses that are not kept are asked for.

        Args:
            questions: Questions that may be asked at once.
            seats: Pool and adapter of the mixture.
            ask_all: Asks the questions whose responses are not kept.
            log: Log of the current scope, to which ``ask_all`` adds the calls in order.
            is_alone: Whether only the mixture runs, and no larger program of the user's.
        """
        pool, adapter = seats
        if self.opened(pool, is_alone=is_alone) is None:
            return ask_all(questions)
        keys = self._keys(questions, pool, adapter)
        kept = self._kept_responses(questions, keys, pool)
        if rest := [place for place, response in enumerate(kept) if response is None]:
            n_before = len(log)
            responses = ask_all([questions[place] for place in rest])
            self._keep([keys[place] for place in rest], responses, log[n_before:])
            for place, response in zip(rest, responses, strict=True):
                kept[place] = response
        return [response for response in kept if response is not None]

    def read(self, questions: Sequence[Question], seats: tuple[Any, Any]) -> list[Response | None]:
        """Return the kept response to each question, in order, or None."""
        pool, adapter = seats
        if not questions or self.opened(pool) is None:
            return [None] * len(questions)
        return self._kept_responses(questions, self._keys(questions, pool, adapter), pool)

    def flush(self) -> None:
        """Write what waits to be written."""
        with self._lock:
            rows, self._waiting = [*self._waiting.values()], {}
        store = self._store
        if not rows or store is None:
            return
        try:
            write_kept(store.database, rows)
        except StoreError as error:
            # The calls are in the store: the only loss is time in the next search.
            _logger.info("Answers could not be kept: %s", error)

    def opened(self, pool: Any, *, is_alone: bool = True) -> CallStore | None:
        """Return the store, or None if kept answers must not be used."""
        if not (self.is_used and is_alone) and not dspy.settings.disable_history:
            return None
        calls = getattr(pool, "calls", None)
        store = calls.store if isinstance(calls, Calls) and calls.recording is None else None
        if not isinstance(store, CallStore) or _is_watched():
            return None
        if self._store is not store:
            try:
                store.database.transact(make_kept_answers)
            except StoreError:
                return None
            self._store = store
        return store

    def _kept_responses(
        self, questions: Sequence[Question], keys: Sequence[str | None], pool: Any
    ) -> list[Response | None]:
        """Return the kept responses; their calls are counted like other stored calls."""
        store = self._store
        rows = {} if store is None else read_kept(store.database, [key for key in keys if key])
        if not rows:
            return [None] * len(questions)
        is_priced = {q.agent: pool.price(q.agent) is not None for q in questions}
        scope, responses, log = current_scope(), list[Response | None](), list[CallFacts]()
        for question, key in zip(questions, keys, strict=True):
            response = None
            if key is not None and key in rows:
                response, facts = _restored(question, rows[key], is_priced[question.agent])
                log.append(facts)
            responses.append(response)
        pool.calls.count_reuse(len(log))
        scope.note(*log)
        return responses

    def _keep(
        self, keys: Sequence[str | None], responses: Sequence[Response], log: Sequence[CallFacts]
    ) -> None:
        if sum(response.calls for response in responses) != len(log):
            return  # Some are still running, so calls cannot be assigned to responses.
        place = 0
        for key, response in zip(keys, responses, strict=True):
            facts, place = log[place : place + response.calls], place + response.calls
            if key is not None and (row := _row(key, response, facts)) is not None:
                with self._lock:
                    self._waiting[key] = row
        if len(self._waiting) >= _N_WAITING:
            self.flush()

    def _keys(self, questions: Sequence[Question], pool: Any, adapter: Any) -> list[str | None]:
        """Return a key or None per question; equal keys mean equal requests and parsing."""
        speaking = speaking_adapter(adapter)
        starts: dict[tuple[str, int], Any] = {}
        keys: list[str | None] = []
        for question in questions:
            # No code of the caller's runs meanwhile, so the request of a seat does not change.
            seat = (question.agent, id(question.module))
            if seat not in starts:
                starts[seat] = self._start(question, pool, speaking)
            keys.append(_key_of(starts[seat], question))
        return keys

    def _start(self, question: Question, pool: Any, adapter: Any) -> Any:
        """Return the hash of what all questions of a seat share; None if it has no hash."""
        if question.agent in getattr(pool, "not_adopted", ()):
            return None
        try:
            parts = (
                _versions(),
                self._part(pool.lm(question.agent), _agent_state, _agent_form),
                self._part(question.module, _module_state, _module_form),
                self._part(adapter, _adapter_state, _adapter_form),
            )
        except _NotPlainError:
            return None
        return hashlib.sha256(_bytes("".join(f"{part}\x00" for part in parts)))

    def _part(self, value: Any, state: Callable[[Any], Any], form: Callable[[Any], str]) -> str:
        """Return ``form(one)``, computed again only if its state has changed."""
        now = state(value)
        kept = self._parts.get(id(value))
        if kept is None or kept[0] is not value or kept[1] != now:
            if len(self._parts) > _MOST_PARTS:
                self._parts.clear()
            # A copy: an object changed in place would still equal itself.
            kept = self._parts[id(value)] = (value, deepcopy(now), form(value))
        return kept[2]


_MOST_PARTS: Final = 1_000


def _is_watched() -> bool:
    """True if the caller observes DSPy's calls, such as by callbacks or a usage tracker."""
    settings = dspy.settings
    return bool(
        settings.callbacks
        or settings.usage_tracker is not None
        or settings.send_stream is not None
        or is_traced()
        or rollout(()) is not None
        or is_traced_outside()
    )


def _key_of(start: Any, question: Question) -> str | None:
    if start is None:
        return None
    try:
        inputs = _json(dict(question.inputs))
    except _NotPlainError:
        return None
    digest = start.copy()
    digest.update(_bytes(f"{inputs}\x00{question.sample} {question.is_final}"))
    return str(digest.hexdigest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _restored(
    question: Question, row: Sequence[Any], is_priced: bool
) -> tuple[Response, CallFacts]:
    """Return the kept response and its call."""
    answer, agent, prompt, completion, usd, seconds, attempt, at = row
    kept = json.loads(unpacked(bytes(answer)))
    facts = CallFacts(
        agent,
        prompt,
        completion,
        usd,
        seconds,
        is_reused=True,
        attempt=attempt,
        is_estimated=kept["is_estimated"],
        finish_reason=kept["finish_reason"],
        no_answer=kept["no_answer"],
        time=at,
    )
    values, failure = kept["values"], kept["failure"]
    response = Response(
        question.agent,
        question.sample,
        values,
        text="" if failure is not None else render(values),
        calls=1,
        prompt_tokens=prompt,
        completion_tokens=completion,
        usd=usd if is_priced else None,
        seconds=seconds,
        failure=failure,
        cuts=question.cuts,
        finish_reason=kept["finish_reason"],
    )
    return counted_in_time(response, question.deadline_seconds), facts


def _row(key: str, response: Response, log: Sequence[CallFacts]) -> tuple[Any, ...] | None:
    """Return the row of an answer; None if it did not take exactly one call, or was too late."""
    if len(log) != 1:
        return None
    (facts,) = log
    if not facts.key or facts.failure is not None or response.seconds != facts.seconds:
        return None
    if response.has_answer and response.text != render(response.values):
        return None
    kept = {
        "values": dict(response.values),
        "failure": response.failure,
        "is_estimated": facts.is_estimated,
        "finish_reason": facts.finish_reason,
        "no_answer": facts.no_answer,
    }
    try:
        answer = packed(_json(kept))
    except _NotPlainError:
        return None
    return key, facts.key, facts.seconds, facts.time, answer


@cache
def _versions() -> str:
    read_by = (f"{name} {metadata.version(name)}" for name in ("dspy", "json_repair", "pydantic"))
    return f"{_FORMAT} {version()} {' '.join(read_by)}"


def _agent_state(lm: Any) -> Any:
    if type(lm) is not dspy.LM or lm.cache or type(lm.engine) is not StoredEngine:
        raise _NotPlainError(f"{type(lm).__name__} may ask anything.")
    if lm.callbacks != [NOTE_SAMPLES] or {"forward", "aforward", "__call__"} & vars(lm).keys():
        raise _NotPlainError("A caller watches this LM, or has changed it.")
    return lm.engine, lm.kwargs


def _agent_form(lm: Any) -> str:
    engine: StoredEngine = lm.engine
    abilities = [getattr(lm, name, None) for name in _ABILITIES]
    listed = [
        sorted(map(str, ability)) if isinstance(ability, set | frozenset) else ability
        for ability in abilities
    ]
    return _json(
        [
            engine.caller.identity,
            lm.model,
            lm.model_type,
            getattr(lm, "use_developer_role", None),
            lm.kwargs,
            engine.extra_fields,
            [list(ability) if isinstance(ability, tuple) else ability for ability in listed],
        ]
    )


def _predictor(module: Any) -> dict[str, Any]:
    """Return the attributes of the only predictor of a module of a known class."""
    own = vars(module)  # attribute access of a DSPy module is slow
    if type(module) not in _MODULES or "forward" in own or "__call__" in own:
        raise _NotPlainError(f"{type(module).__name__} may ask anything.")
    predictor = module if type(module) is dspy.Predict else own["predict"]
    state: dict[str, Any] = vars(predictor)
    if type(predictor) is not dspy.Predict or "forward" in state or state["lm"] is not None:
        raise _NotPlainError("The predictor was replaced, or has an LM of its own.")
    if state["fields"] or own["callbacks"] or state["callbacks"]:
        raise _NotPlainError("There are criteria for decisions, or callbacks.")
    return state


def _module_state(module: Any) -> Any:
    state = _predictor(module)
    signature = state["signature"]
    extras = [info.json_schema_extra for info in signature.model_fields.values()]
    return signature, signature.__doc__, extras, _demos(state), state["config"]


def _module_form(module: Any) -> str:
    state = _predictor(module)
    signature = state["signature"]
    fields = [_field_form(name, info) for name, info in signature.fields.items()]
    kind, name = type(module).__name__, signature.__name__
    return _json([kind, name, signature.instructions, fields, _demos(state), state["config"]])


def _demos(predictor: Mapping[str, Any]) -> list[Any]:
    return [dict(demo) if isinstance(demo, dspy.Example) else demo for demo in predictor["demos"]]


def _field_form(name: str, info: Any) -> list[Any]:
    extra = {key: item for key, item in (info.json_schema_extra or {}).items() if key != SEAT_MARK}
    default = "" if info.is_required() else _json(info.default)
    limits = repr(info.metadata)
    if _ADDRESS.search(limits) or info.default_factory is not None:
        raise _NotPlainError(f"Field {name!r} has rules that have no plain form.")
    return [name, _annotation(info.annotation), extra, default, limits, info.description]


_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)


def _annotation(kind: Any) -> str:
    """Return the name of a type that consists of plain values only."""
    if kind in (*_LEAVES, None, Any, list, dict):
        return str(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"Literal{_json(list(inner))}"
    if origin not in (list, dict, Union, types.UnionType):
        raise _NotPlainError(f"{kind} is no plain type.")
    return f"{origin}[{', '.join(map(_annotation, inner))}]"


def _adapter_state(adapter: Any) -> Any:
    if type(adapter) not in _ADAPTERS or adapter.callbacks:
        raise _NotPlainError(f"{type(adapter).__name__} may send anything.")
    return vars(adapter)


def _adapter_form(adapter: Any) -> str:
    parts = {n: _setting(value) for n, value in vars(adapter).items() if n != "callbacks"}
    return _json([type(adapter).__name__, parts])


def _setting(value: Any) -> Any:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return [_setting(item) for item in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> str:
    """Return JSON in the given order, as the request may depend on it.

    Raises:
        _NotPlainError: If the value would change in a round trip through JSON.
    """
    _check(value)
    return _ENCODER.encode(value)


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


def _check(value: Any) -> None:
    kind = type(value)
    if kind is str or (kind in _LEAVES and (kind is not float or math.isfinite(value))):
        return
    if kind is list:
        inner = value
    elif kind is dict and all(type(key) is str for key in value):
        inner = value.values()
    else:
        raise _NotPlainError(f"{kind.__name__} has no plain form.")
    for item in inner:
        _check(item)

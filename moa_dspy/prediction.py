"""Questions to agents, their responses, and the prediction that a mixture makes from them.

``Question`` is a request to a seat (the place of an agent in a mixture), ``Response`` one agent's
reply with its costs, ``Answer`` the final response with all others. The prediction has the
signature's own fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from html import escape
from typing import Any, Final

import dspy
from dspy.adapters.utils import serialize_for_json
from dspy.primitives.prediction import Completions

from moa_dspy.calls.scope import CallFacts
from moa_dspy.references import Cut

_SHOWN: Final = 100
"""Most characters of a response in its one-line summary."""

NOT_ASKED: Final = "Not asked: the answer was known without it."
NOT_AWAITED: Final = "No longer waited for: the answer was known without it."


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a seat; questions with equal nodes are one computation per example.

    Attributes:
        node: Name of the computation: the agent, its role, and the nodes it reads.
        agent: Name of the agent in the pool.
        sample: Index of the independent sample.
        module: The DSPy module that asks.
        inputs: Keyword arguments of the module.
        cuts: References in ``inputs`` that were shortened or left out.
        deadline_seconds: Time after which an answer is too late; None means no limit.
        is_final: Whether the reply is the mixture's own answer, which may be streamed.
    """

    node: str
    agent: str
    sample: int
    module: Any
    inputs: Mapping[str, Any]
    cuts: tuple[Cut, ...] = ()
    deadline_seconds: float | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """An agent's answer to one question, or the reason why there is none.

    Attributes:
        agent: Name of the agent.
        sample: Index of the independent sample; 0 unless the agent sits in a layer twice.
        values: The signature's output fields; empty when the agent failed.
        text: The text for the next layer, original and not yet guarded (quoted and escaped).
        calls: Number of requests, including failed ones; more than one after a retry, or if an
            adapter could not read the reply and asked again.
        prompt_tokens: Sum over all its requests.
        completion_tokens: Sum over all its requests.
        usd: Cost in production: that of the original call for a stored answer. None if the agent's
            price is unknown.
        seconds: Time in production, like ``usd``; for a late agent, the time it was waited for.
        failure: Error type and message; None if there is an answer.
        cuts: References that were shortened before this agent read them.
        finish_reason: The endpoint's reason for the end of its last reply: ``stop``, ``length``
            (``max_tokens`` cut it), ``content_filter``, ``tool_call``; None if it is unknown.
    """

    agent: str
    sample: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0
    failure: str | None = None
    cuts: tuple[Cut, ...] = ()
    finish_reason: str | None = None

    @classmethod
    def of_calls(
        cls, agent: str, sample: int, log: Sequence[CallFacts], *, is_priced: bool, **rest: Any
    ) -> Response:
        """Return a response with the costs of the calls in ``log``, as far as prices are known."""
        return cls(
            agent,
            sample,
            calls=len(log),
            prompt_tokens=sum(facts.prompt_tokens for facts in log),
            completion_tokens=sum(facts.completion_tokens for facts in log),
            usd=sum(facts.usd for facts in log) if is_priced else None,
            seconds=sum(facts.seconds for facts in log),
            finish_reason=log[-1].finish_reason if log else None,
            **rest,
        )

    @property
    def has_answer(self) -> bool:
        """True if there is an answer to read."""
        return self.failure is None

    @property
    def cost(self) -> str:
        """The cost of the response, in one line."""
        return _cost(self.calls, self.seconds, self.usd)

    @property
    def is_left_out(self) -> bool:
        """True if the mixture did not need this response; then it did not fail either."""
        return self.failure in (NOT_ASKED, NOT_AWAITED)


def counted_in_time(response: Response, seconds: float | None) -> Response:
    """Return ``response``, or a failure if its recorded seconds exceed the limit.

    Recorded seconds decide, so that results repeat; the failure has the seconds of the limit.
    """
    if seconds is None or response.seconds <= seconds:
        return response
    failure = late_after(seconds) if response.has_answer else response.failure
    return replace(response, values={}, text="", failure=failure, seconds=seconds)


def late_after(seconds: float) -> str:
    """Return the failure message for an answer that was too late."""
    return f"Late: no answer within {seconds:g} s."


def not_awaited(response: Response, seconds: float) -> Response:
    """Return the placeholder for a response that is no longer needed."""
    return replace(response, values={}, text="", failure=NOT_AWAITED, seconds=seconds)


def fields_of_answer(fields: Iterable[str]) -> list[str]:
    """Return the fields that make up an answer.

    ``reasoning`` is how an answer was found, and counts only if there is no other field.
    """
    names = list(fields)
    return [name for name in names if name != "reasoning"] or names


def render(values: Mapping[str, Any]) -> str:
    """Return output fields as one text: the value alone, or ``name: value`` lines for several.

    Values that are no texts are written as DSPy writes them in a demo, which is the format that the
    next agent has to write: an enum by its value, lists, mappings and models as JSON.
    """
    if len(values) == 1:
        return _text(next(iter(values.values())))
    return "\n".join(f"{name}: {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, Enum):
        return str(value)
    plain = serialize_for_json(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else str(plain)


@dataclass(frozen=True, slots=True)
class Answer:
    """The final response with every response on the way to it.

    Attributes:
        final: The mixture's answer.
        layers: Responses per layer, in the architecture's order, failed ones included.
        replies: Replies of the last step's own models, in the order of asking: one of an aggregator
            or ranker, one of an analyst before it, two of a judge per pair. Empty if the last step
            calls no model.
        is_undecided: Whether a ranker named no single response, so that consensus decided, or a
            judge did not decide a pair, so that the earlier response stayed.
        step_seconds: Time of each layer, then of each round of the last step. The time of a layer
            that is asked in waves is the sum of the slowest response of each wave.
        not_asked: Agents of the last layer whose answers could not change the result, by seat.
        weights: Weight of each agent in a vote, if it is not 1.
    """

    final: Response
    layers: tuple[tuple[Response, ...], ...]
    replies: tuple[Response, ...] = ()
    is_undecided: bool = False
    step_seconds: tuple[float, ...] = ()
    not_asked: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def last(self) -> Response | None:
        """The last reply of the last step's own models; None if it calls no model."""
        return self.replies[-1] if self.replies else None

    @property
    def responses(self) -> tuple[Response, ...]:
        """Every response, first layer first."""
        return (*(response for layer in self.layers for response in layer), *self.replies)

    @property
    def seats(self) -> tuple[tuple[str, Response], ...]:
        """``responses``, each with its place, such as ``layer 1``."""
        members = [(f"layer {n}", r) for n, layer in enumerate(self.layers, start=1) for r in layer]
        return (*members, *(("last", reply) for reply in self.replies))

    @property
    def seconds(self) -> float:
        """Time to the answer."""
        return sum(self.step_seconds)

    @property
    def usd(self) -> float | None:
        """Cost of all calls, stored ones at their original cost; None if a price is unknown."""
        prices = [response.usd for response in self.responses if response.calls]
        return None if None in prices else sum(filter(None, prices))

    @property
    def calls(self) -> int:
        """Requests to models, stored ones included."""
        return sum(response.calls for response in self.responses)

    @property
    def failures(self) -> tuple[Response, ...]:
        """The responses without an answer that were needed, each with its reason."""
        missing = (response for response in self.responses if not response.has_answer)
        return tuple(response for response in missing if not response.is_left_out)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Every reference of which an agent read only a part."""
        return tuple(cut for response in self.responses for cut in response.cuts)

    @property
    def summary(self) -> str:
        """The cost of the answer, in one line."""
        parts = [_cost(self.calls, self.seconds, self.usd)]
        ends = [response.finish_reason for response in self.responses if response.has_answer]
        counts = {
            "not asked": len(self.not_asked),
            "no longer waited for": sum(response.is_left_out for response in self.responses),
            "failed": len(self.failures),
            "references cut": len(self.cuts),
            "cut by max_tokens": ends.count("length"),
            "cut by a content filter": ends.count("content_filter"),
            "ranker without a readable choice": int(self.is_undecided),
        }
        parts += [f"{n} {label}" for label, n in counts.items() if n]
        parts += [f"weight of {agent} {weight:g}" for agent, weight in self.weights.items()]
        return ", ".join(parts)

    def __str__(self) -> str:
        """Return one line per response, then the summary and the answer."""
        lines = [f"{where}  {_line(response)}" for where, response in self.seats]
        return "\n".join([*lines, self.summary, "", self.final.text])


def _cost(calls: int, seconds: float, usd: float | None) -> str:
    price = "unknown price" if usd is None else f"{usd:.6f} usd"
    return f"{calls} calls, {seconds:.2f} s, {price}"


def _line(response: Response) -> str:
    tokens = response.prompt_tokens + response.completion_tokens
    text = " ".join(response.text.split()) if response.has_answer else _reason(response)
    cut = f", {len(response.cuts)} references cut" if response.cuts else ""
    if response.has_answer and response.finish_reason in ("length", "content_filter"):
        cut += f", ended by {response.finish_reason}"
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
    return f"{response.agent} ({tokens} tokens, {response.seconds:.2f} s{cut}): {shown}"


def _reason(response: Response) -> str:
    return str(response.failure) if response.is_left_out else f"failed: {response.failure}"


class MixturePrediction(dspy.Prediction):
    """A prediction with the signature's output fields, and ``mixture``, an ``Answer``.

    ``mixture`` is not one of the fields, so code that iterates over a prediction's fields (an
    evaluation's table, a vote, a saved file) gets only the user's own fields.
    """

    def __init__(self, *args: Any, mixture: Answer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = args[0] if args else kwargs.get("base")
        self._mixture = mixture or getattr(base, "_mixture", None)

    @classmethod
    def of(cls, answer: Answer) -> MixturePrediction:
        """Return the prediction for a mixture's answer."""
        return cls(**answer.final.values, mixture=answer)

    @property
    def completions(self) -> Any:
        """The single completion, as for any DSPy module, so that ``dspy.majority`` accepts it."""
        return self._completions or Completions([dict(self.items())])

    @property
    def mixture(self) -> Answer:
        """Every agent's response, price, seconds and failure on the way to the answer."""
        if self._mixture is None:
            raise AttributeError("mixture")
        return self._mixture

    def _repr_html_(self) -> str:
        """Return the fields and every agent's response as HTML tables, for notebooks."""
        fields = [
            f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in self.items()
        ]
        agents = "" if self._mixture is None else _agents_html(self._mixture)
        return f"<table>{''.join(fields)}</table>{agents}"


def _agents_html(answer: Answer) -> str:
    names = ("seat", "agent", "calls", "tokens", "seconds", "usd", "cut", "response")
    heads = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_row(where, response) for where, response in answer.seats)
    return f"<table><tr>{heads}</tr>{rows}</table><p>{escape(answer.summary)}</p>"


def _row(where: str, response: Response) -> str:
    cells = [
        where,
        response.agent,
        str(response.calls),
        str(response.prompt_tokens + response.completion_tokens),
        f"{response.seconds:.2f}",
        "unknown" if response.usd is None else f"{response.usd:.6f}",
        str(len(response.cuts) or ""),
        response.text if response.has_answer else _reason(response),
    ]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"

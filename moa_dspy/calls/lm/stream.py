"""Field markers in a stream: each is one piece, however finely or coarsely it was split."""

# DOCS: calls/engines/_failures: What may be wrong with a reply, and how it is told: clearly, and without keys. | calls/engines/_stream: Streams: what is passed on as it arrives, and a stored answer as if it arrived.

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from moa_dspy.calls.request import AgentCalls
from moa_dspy.calls.scope import DeadlineError
from moa_dspy.dspy_internals import StreamAccumulator, lm15, response_to_dict
from moa_dspy.errors import MoaError

_CUT: Final = re.compile(r"\[\[ ## \w+ ## \]\]|</?\w+>|\"\w+\": ?")
"""Where a field begins or ends, as the chat, XML and JSON adapters write it."""
_BEGUN: Final = re.compile(r"\[(?:\[(?: (?:#(?:#(?: (?:\w+(?: (?:#(?:#(?: \]?)?)?)?)?)?)?)?)?)?)?$")
"""The beginning of a marker at the end of a text."""
_LONGEST_HELD: Final = 80
_WORD: Final = re.compile(r"\S+\s*|\s+")


class WholeMarkers:
    """Passes text deltas on; a ``[[ ## field ## ]]`` that was split is put together.

    DSPy's ``StreamListener`` looks for a marker in at most 10 pieces of a stream and shows
    the rest of it to the user; and it shows nothing of a field whose beginning and end come
    in one piece, so a delta is cut there. Only what may be the beginning of a marker is
    held back, up to 80 characters of it.
    """

    def __init__(self) -> None:
        self._held: Any = None

    def feed(self, delta: Any) -> list[Any]:
        """Return what can be passed on when ``delta`` comes."""
        out: list[Any] = []
        if self._held is not None:
            if self._held.part_index != delta.part_index:
                out = self.flush()
            else:
                delta, self._held = _joined(self._held, delta), None
        *ready, rest = _split(delta.text)
        if len(rest) > _LONGEST_HELD:
            ready, rest = [*ready, rest], ""
        out += [_piece(delta, text, is_first=not n) for n, text in enumerate(ready)]
        if rest:
            self._held = _piece(delta, rest, is_first=not ready)
        return out

    def flush(self) -> list[Any]:
        """Return what was held back: nothing follows that could complete it."""
        held, self._held = self._held, None
        return [] if held is None else [held]


def words(delta: Any) -> Iterator[Any]:
    """Yield a text delta word by word, as an endpoint would have sent it."""
    for n, text in enumerate(_WORD.findall(delta.text)):
        yield _piece(delta, text, is_first=not n)


def _split(text: str) -> list[str]:
    """Return texts that can be passed on, then what may be the beginning of a marker, or ''."""
    parts: list[str] = []
    end = 0
    for cut in _CUT.finditer(text):
        parts += [text[end : cut.start()], cut[0]]
        end = cut.end()
    begun = _BEGUN.search(text, end)
    start = len(text) if begun is None else begun.start()
    return [*filter(None, [*parts, text[end:start]]), text[start:]]


def _joined(first: Any, second: Any) -> Any:
    return replace(
        first,
        text=first.text + second.text,
        logprobs=first.logprobs + second.logprobs,
        logprobs_complete=first.logprobs_complete and second.logprobs_complete,
    )


def _piece(delta: Any, text: str, *, is_first: bool) -> Any:
    """Return a part of ``delta``; the first one carries the scores of them all."""
    if text == delta.text:
        return delta
    if is_first:
        return replace(delta, text=text)
    return lm15.TextDelta(text=text, part_index=delta.part_index)


_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)
"""What a client's parser raises at JSON of an unexpected shape."""
_ANSWERS: Final = ("candidates", "choices", "content", "output")
"""Where the vendors' replies hold the answer."""


def readable(response: Any) -> dict[str, Any]:
    """Return a response as plain data, without its id.

    Raises:
        ProviderError: The reply held no answer; lm15 would make an empty one of it.
    """
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    is_empty = not text and all(isinstance(p, lm15.TextPart) for p in response.message.parts)
    if is_empty and response.provider_data is not None and not _holds(response.provider_data):
        raise lm15.ProviderError("The endpoint's reply holds no answer.")
    # The endpoint's request id changes from run to run and says nothing; equal runs, equal stores.
    plain: dict[str, Any] = response_to_dict(response)
    plain.pop("id", None)
    return plain


def _holds(reply: Mapping[str, Any]) -> bool:
    """Whether there is an answer in a reply whose text is empty: an empty one is one as well."""
    choices = reply.get("choices")
    if choices:
        (first, *_) = choices
        message = first.get("message", first.get("delta")) if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else 0
        return content is None or isinstance(content, str | list)
    return any(reply.get(name) for name in _ANSWERS)


@contextmanager
def mask_keys(caller: AgentCalls) -> Iterator[None]:
    """Make what an endpoint raises fit to be shown.

    Keys are masked, for a server may quote the request's own header; what a parser
    raised at a reply becomes a ProviderError that says so.
    """
    try:
        yield
    except Exception as error:
        for link in _chain(error):
            _mask(link, caller.without_secrets)
        if isinstance(error, _UNREADABLE) and not isinstance(error, MoaError):
            what = f"{type(error).__name__}: {error}"
            raise lm15.ProviderError(f"The endpoint's reply cannot be read: {what}") from error
        raise


@contextmanager
def in_time() -> Iterator[None]:
    """Raise the end of the asker's time as DSPy's clients raise a timeout."""
    try:
        yield
    except DeadlineError as error:
        raise lm15.TimeoutError(str(error)) from error


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


@dataclass(slots=True)
class StreamState:
    """What is known of a stream that is being passed on.

    Attributes:
        result: What came of the last step; of a request, the response as plain data.
        arriving: The stream that the response came by; None where it came whole.
    """

    result: Any = None
    arriving: StreamedResponse | None = None


class StreamedResponse:
    """Collects a stream into a response while its events are passed on.

    The end is kept back: whoever reads it must find the answer stored.
    """

    def __init__(self, request: Any) -> None:
        self._whole = StreamAccumulator(request)
        self._markers = WholeMarkers()
        self._start: Any = None
        self._end: Any = None
        self._has_content = False

    def take(self, event: Any) -> list[Any]:
        """Return the events to pass on when ``event`` arrives."""
        self._whole.push(event)
        if event.type == "start":
            self._start = event
            return []
        if event.type == "end":
            self._end = event
            return self._begun(_events(self._markers.flush()))
        self._has_content = True
        if isinstance(event.delta, lm15.TextDelta):
            return self._begun(_events(self._markers.feed(event.delta)))
        return self._begun([*_events(self._markers.flush()), event])

    def _begun(self, events: list[Any]) -> list[Any]:
        # An attempt that brings nothing may be followed by another: only one can begin.
        if events and self._start is not None:
            events, self._start = [self._start, *events], None
        return events

    def response(self) -> dict[str, Any]:
        """Return the whole response as plain data.

        Raises:
            ProviderError: The stream ended before there was anything, or a reason to end.
        """
        if not self._has_content and self._end.finish_reason is None:
            raise lm15.ProviderError("The endpoint's stream holds no answer.")
        return readable(self._whole.response())

    def last(self) -> list[Any]:
        """Return the events that end the stream."""
        return self._begun([self._end])


def stream_of(endpoint: Any, request: Any) -> Any:
    """Return the endpoint's stream.

    Raises:
        UnsupportedFeatureError: It has none.
    """
    if not hasattr(endpoint, "stream"):
        raise lm15.UnsupportedFeatureError("This endpoint answers whole only.", feature="stream")
    return endpoint.stream(request)


def as_stream(response: Any) -> Iterator[Any]:
    """Yield a whole response as events, its text word by word."""
    markers = WholeMarkers()
    for event in lm15.response_to_events(response):
        if event.type == "delta" and isinstance(event.delta, lm15.TextDelta):
            for word in words(event.delta):
                yield from _events(markers.feed(word))
        else:
            yield from _events(markers.flush())
            yield event


def _events(deltas: list[Any]) -> list[Any]:
    return [lm15.StreamDeltaEvent(delta=delta) for delta in deltas]

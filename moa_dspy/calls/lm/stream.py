"""Streams of replies that are passed on as they arrive, with thoughts separated."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from moa_dspy.calls.lm.response import readable, tells_opening, with_thought
from moa_dspy.calls.reply import REFUSAL, ReplySplitter, without_half
from moa_dspy.dspy_internals import EngineChunk, LiteLLMChunks, StreamAccumulator, lm15

_CUT: Final = re.compile(r"\[\[ ## \w+ ## \]\]|</?\w+>|\"\w+\": ?")
"""Markers of the beginning or end of a field, as in the chat, XML and JSON adapters."""
_BEGUN: Final = re.compile(r"\[(?:\[(?: (?:#(?:#(?: (?:\w+(?: (?:#(?:#(?: \]?)?)?)?)?)?)?)?)?)?)?$")
"""The beginning of a marker at the end of a text."""
_LONGEST_HELD: Final = 80
_WORD: Final = re.compile(r"\S+\s*|\s+")


class WholeMarkers:
    """Passes text deltas on, and joins a marker ``[[ ## field ## ]]`` that was split.

    DSPy's ``StreamListener`` looks for a marker in at most 10 pieces of a stream and shows the rest
    of the marker to the user. It shows nothing of a field whose beginning and end are in one piece,
    so deltas are cut at markers. Only text that may be the beginning of a marker is held back, up
    to 80 characters.
    """

    def __init__(self) -> None:
        self._held: Any = None

    def feed(self, delta: Any) -> list[Any]:
        """Return the deltas that can be passed on when ``delta`` arrives."""
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
        """Return the text that was held back, as nothing follows that could complete a marker."""
        held, self._held = self._held, None
        return [] if held is None else [held]


def deltas_of_reply(reply: Any) -> Iterator[Any]:
    """Yield the pieces of a complete reply, its text word by word, as an endpoint would."""
    for event in lm15.response_to_events(reply):
        if event.type == "delta" and isinstance(event.delta, lm15.TextDelta):
            yield from words(event.delta)
        elif event.type == "delta" and isinstance(event.delta, lm15.ToolCallDelta):
            call = reply.message.parts[event.delta.part_index]
            yield replace(event.delta, input=arguments_of(call))
        elif event.type == "delta":
            yield event.delta


def arguments_of(call: Any) -> str:
    """Return the arguments of a tool call as JSON; broken ones as the model wrote them."""
    text = call.input.get("partial_json")  # where DSPy keeps what is no JSON
    if len(call.input) == 1 and isinstance(text, str):
        try:
            json.loads(text)
        except ValueError:
            return text
    return json.dumps(call.input)


def words(delta: Any) -> Iterator[Any]:
    """Yield a text delta word by word, as an endpoint would send it."""
    for n, text in enumerate(_WORD.findall(delta.text)):
        yield _piece(delta, text, is_first=not n)


def _split(text: str) -> list[str]:
    """Return texts that can be passed on, and last the possible beginning of a marker, or ''."""
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
    """Return a part of ``delta``; the first part carries the log-probabilities of all parts."""
    if text == delta.text:
        return delta
    if is_first:
        return replace(delta, text=text)
    return lm15.TextDelta(text=text, part_index=delta.part_index)


@dataclass(slots=True)
class StreamState:
    """State of a stream that is being passed on.

    Attributes:
        result: Result of the last step; for a request, the response as plain data.
        arriving: The stream of the response; None if it was not streamed.
    """

    result: Any = None
    arriving: StreamedResponse | None = None


class StreamedResponse:
    """Collects a stream into a response and passes its events on, with thoughts separated.

    The collected response is unchanged, thoughts included. The end of the stream is held back,
    because the answer must be stored before the caller sees the end.

    Args:
        request: The request.
        request_text: The request as canonical JSON.
        is_opened: Whether the chat template opens a thought; None means unknown.
    """

    def __init__(
        self, request: Any, request_text: str = "", *, is_opened: bool | None = False
    ) -> None:
        self._request_text = request_text
        self._whole = StreamAccumulator(request)
        self._splitter = ReplySplitter(request_text, is_opened=is_opened)
        self._markers = WholeMarkers()
        self._half = ""
        self._text_index: int | None = None
        self._start: Any = None
        self._end: Any = None
        self._latest: Any = None

    def take(self, event: Any) -> list[Any]:
        """Return the events to pass on when ``event`` arrives."""
        if event.type == "delta" and isinstance(event.delta, lm15.TextDelta):
            return self._begun(self._take_text(event.delta))
        if event.type == "end":
            events = self._held_back()
            self._whole.push(event)
            self._end = event
            return self._begun(events)
        self._whole.push(event)
        if event.type == "start":
            self._start = event
            return []
        if self._latest is None and isinstance(event.delta, lm15.ThinkingDelta):
            # The server separates thoughts itself, so the text is the answer.
            self._splitter = ReplySplitter(self._request_text)
        self._latest = event.delta
        return self._begun([*_events(self._markers.flush()), event])

    def _take_text(self, delta: Any) -> list[Any]:
        text, self._half = without_half(self._half + delta.text)
        if self._text_index is None:
            self._text_index = delta.part_index
        # Gemini restarts the numbers of parts in each event, so the order of arrival is used.
        delta = replace(delta, text=text, part_index=self._text_index)
        self._latest = delta
        self._whole.push(lm15.StreamDeltaEvent(delta=delta))
        return self._split(*self._splitter.feed(text), delta)

    def _held_back(self) -> list[Any]:
        """Return the events that were held back, as nothing follows that could change them."""
        if not isinstance(self._latest, lm15.TextDelta):
            return _events(self._markers.flush())
        rest = lm15.TextDelta(text=self._half, part_index=self._latest.part_index)
        if rest.text:
            self._whole.push(lm15.StreamDeltaEvent(delta=rest))
        events = self._split(*self._splitter.feed(rest.text), rest)
        events += self._split(*self._splitter.flush(), rest)
        return [*events, *_events(self._markers.flush())]

    def _split(self, thought: str, answer: str, delta: Any) -> list[Any]:
        events: list[Any] = []
        if thought:
            index = delta.part_index
            events = _events([lm15.ThinkingDelta(text=thought, part_index=index)])
        if answer:
            part = delta if answer == delta.text else replace(delta, text=answer)
            events += _events(self._markers.feed(part))
        return events

    def _begun(self, events: list[Any]) -> list[Any]:
        # An attempt without events may be followed by another, and a stream can start only once.
        if events and self._start is not None:
            events, self._start = [self._start, *events], None
        return events

    def response(self) -> dict[str, Any]:
        """Return the whole response as plain data.

        Raises:
            ProviderError: The stream ended without any content, or without a reason to end.
            ServerError: The endpoint failed during the reply.
        """
        if self._latest is None and self._end.finish_reason is None:
            raise lm15.ProviderError("The endpoint's stream holds no answer.")
        whole = readable(self._whole.response(), has_ended=self._end.finish_reason is not None)
        if refusal := (self._end.provider_data or {}).get(REFUSAL):
            parts = [part for part in whole["message"]["parts"] if part.get("text")]
            whole["message"]["parts"] = [*parts, {"type": "refusal", "text": refusal}]
        return whole

    @property
    def tells_opening(self) -> bool | None:
        """The reply's evidence on the chat template; see ``tells_opening``."""
        whole = self._whole.response()
        return tells_opening(whole, with_thought(whole, request=self._request_text)[1])

    def last(self) -> list[Any]:
        """Return the events that end the stream."""
        return self._begun([self._end])


def stream_of(endpoint: Any, request: Any) -> Any:
    """Return the endpoint's stream.

    Raises:
        UnsupportedFeatureError: The endpoint cannot stream.
    """
    if not hasattr(endpoint, "stream"):
        raise lm15.UnsupportedFeatureError(
            "This endpoint cannot stream an answer.", feature="stream"
        )
    return endpoint.stream(request)


def as_stream(response: Any) -> Iterator[Any]:
    """Yield a complete response as events, its text word by word."""
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


def signal_chunk(predictor: Any, **facts: Any) -> Any:
    """Return a chunk without text, with ``facts`` for the predictor's listeners."""
    delta = EngineChunk(content=None)
    choice = EngineChunk(index=0, delta=delta, finish_reason=None)
    return EngineChunk(id=None, predict_id=id(predictor), choices=[choice], **facts)


_WITHOUT_EVENT: Final = ("annotations", "audio", "images", REFUSAL, "thinking_blocks")


class LiteLLMEvents(LiteLLMChunks):
    """Events of LiteLLM's chunks, without fields for which DSPy has no event.

    DSPy abandons a stream with such a field and asks again, so the answer would be paid twice.
    """

    def __init__(self, request: Any) -> None:
        super().__init__(request)
        self._refusal = ""

    def feed(self, chunk: Any) -> Generator[Any, Any, None]:
        """Yield the events of ``chunk`` without such fields."""
        for choice in getattr(chunk, "choices", None) or ():
            delta: Any = getattr(choice, "delta", None)
            extras = getattr(delta, "provider_specific_fields", None)
            if isinstance(extras, Mapping):
                self._refusal += str(extras.get(REFUSAL) or "")
                kept = {name: value for name, value in extras.items() if name == "citation"}
                delta.provider_specific_fields = kept or None
            for name in _WITHOUT_EVENT:
                if hasattr(delta, name):
                    delattr(delta, name)
        yield from super().feed(chunk)

    def finish(self, litellm: Any) -> Any:
        """Return the event that ends the stream, with the refusal if there was one."""
        end = super().finish(litellm)
        if not self._refusal:
            return end
        return replace(end, provider_data={**(end.provider_data or {}), REFUSAL: self._refusal})

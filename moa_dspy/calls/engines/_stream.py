"""Streams: what is passed on as it arrives, and a stored answer as if it arrived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dspy import lm15
from dspy._vendor.lm15.result import StreamAccumulator

from moa_dspy.calls.engines._failures import readable
from moa_dspy.calls.engines._markers import WholeMarkers, words


@dataclass(slots=True)
class Passage:
    """What is known of a stream that is being passed on.

    Attributes:
        result: What came of the last step; of a request, the response as plain data.
        arriving: The stream that the response came by; None where it came whole.
    """

    result: Any = None
    arriving: Arriving | None = None


class Arriving:
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

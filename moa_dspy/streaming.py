"""A listener that streams a mixture's answer, as it is written or, if it was picked, at once."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import dspy
from dspy.streaming import StreamListener, StreamResponse

from moa_dspy.adapters import PlainChat
from moa_dspy.adapters.guard import is_verbatim, without_closing
from moa_dspy.calls.lm.stream import signal_chunk
from moa_dspy.calls.reply import ReplySplitter, without_half
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import PlannedModule
from moa_dspy.prediction import render

_MARKER: Final = re.compile(r"^\s*\[\[ ## \w+ ## \]\]", re.MULTILINE)
_PART_OF_MARKER: Final = re.compile(
    r"\n[ \t]*(\[(\[( (#(#( (\w+( (#(#( \]?)?)?)?)?)?)?)?)?)?)?)?\Z"
)


_PART_OF_TOKEN: Final = re.compile(
    r"(?:<(?:[|\uff5c][^<>|\uff5c\s]{0,60}[|\uff5c]?)?|\[\[? ?#{0,2} ?\w{0,10} ?#{0,2} ?\]?)\Z"
)


class AnswerListener(StreamListener):
    """Listener for one output field of a mixture's answer, for every adapter of the mixture.

    ``dspy.streamify(program, stream_listeners=[AnswerListener(mixture)])`` yields the text as the
    aggregator writes it, and before it a status message for every proposer that has answered. A
    vote or a selection picks a complete answer, which is sent as one chunk. DSPy's own listener
    supports only the adapter of the settings and not plain chat, and it drops text after two
    brackets. A field of JSON is shown as JSON, with escapes.

    The streamed program answers any number of questions, also at the same time: each of them is
    read in a task of its own, which has its own state.

    Args:
        mixture: The streamed mixture, or a mixture inside the streamed program.
        field: Name of the output field; default: the signature's last one.
        name: The ``predict_name`` of the chunks, to tell the mixtures of a program apart.
        allow_reuse: Whether every call of the mixture in one run of the program is streamed, one
            after the other, instead of the first. Calls at the same time are not told apart.

    Raises:
        ArchitectureError: If ``mixture`` is not a mixture, or has no such field.
    """

    # The constructor of the base is not called: `__getattr__` finds its state in the stream.
    def __init__(
        self,
        mixture: PlannedModule,
        field: str | None = None,
        *,
        name: str = "aggregator",
        allow_reuse: bool = False,
    ) -> None:
        if not isinstance(mixture, PlannedModule):
            raise ArchitectureError(
                "`mixture` must be the MixtureOfAgents whose answer is streamed, as in "
                "AnswerListener(program.mixture, field='answer'), but got a "
                f"{type(mixture).__name__}."
            )
        outputs = list(mixture.signature.output_fields)
        if field is not None and field not in outputs:
            raise ArchitectureError(f"Unknown `field` {field!r}; known are {', '.join(outputs)}.")
        writer = mixture.writer
        self.mixture = mixture
        self.signature_field_name = field or outputs[-1]
        # An answer that no predictor writes is sent by the mixture itself, which DSPy accepts as
        # well.
        self.predict = mixture if writer is None else writer.predictors()[-1]
        self.predict_name, self.allow_reuse = name, allow_reuse
        self._streams: WeakKeyDictionary[Any, _AnswerStream] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        """Return what DSPy reads of a listener, such as ``stream_start``, of the current stream."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)

    @property
    def _stream(self) -> _AnswerStream:
        """The latest stream that the current task reads."""
        reader = _reader()
        return self._streams.get(reader) or self._streams.setdefault(reader, _AnswerStream(self))

    def signal(self, values: Mapping[str, Any] | None) -> Any:
        """Return the chunk with which the mixture begins an answer, or ends that of ``values``."""
        request = dspy.settings.send_stream
        return signal_chunk(self.predict, listener=self, request=request, answer=values)

    def receive(self, chunk: Any) -> StreamResponse | None:
        """Return the part of ``chunk`` that belongs to the field, or None."""
        listener = getattr(chunk, "listener", None)
        if listener is None:
            return self._stream.receive(chunk)
        if listener is not self:
            return None
        if chunk.answer is not None:
            return self._stream.finish(chunk.answer)
        latest = self._stream
        if self.allow_reuse or latest.request is not chunk.request or not latest.stream_start:
            self._streams[_reader()] = _AnswerStream(self, chunk.request)
        return None

    def finalize(self) -> StreamResponse | None:
        """Return the text that was held back, at the end of the request."""
        if self._stream.is_closed:
            # That was an earlier request; this one did not call the mixture.
            self._streams[_reader()] = _AnswerStream(self)
        self._stream.is_closed = True
        return self._stream.finalize()


def _reader() -> Any:
    """Return the running task, as DSPy reads a request in one task; without one, the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.current_thread()


class _AnswerStream(StreamListener):
    """The text of one answer of a mixture, and what of it the reader has been sent.

    Attributes:
        request: DSPy's stream of the request; None if it is unknown.
        is_closed: Whether the request has ended.
    """

    stream_end: bool

    def __init__(self, listener: AnswerListener, request: Any = None) -> None:
        name, predictor = listener.signature_field_name, listener.predict
        super().__init__(name, predict=predictor, predict_name=listener.predict_name)
        self.request, self.is_closed = request, False
        self._adapter = listener.mixture.adapter
        self._answer_text = self._sent_text = self._half = ""
        # LMs that were not adopted send thoughts inside the text; names of fields open no thought.
        outputs = listener.mixture.signature.output_fields
        self._splitter = ReplySplitter("".join(f"<{name}>{{{name}}}" for name in outputs))

    @property
    def adapter(self) -> Any:
        """The adapter of the aggregator's reply."""
        return self._adapter or dspy.settings.adapter or dspy.ChatAdapter()

    @property
    def _dspy_adapter(self) -> Any:
        """The adapter as DSPy's listener needs it, of no subclass; None for plain chat."""
        kinds: tuple[Any, ...] = (dspy.JSONAdapter, dspy.XMLAdapter)
        return next((kind() for kind in kinds if isinstance(self.adapter, kind)), None)

    def receive(self, chunk: Any) -> StreamResponse | None:
        """Return the part of ``chunk`` that belongs to the field, or None."""
        if self.stream_end:
            return None
        text, self._half = without_half(self._half + (chunk.choices[0].delta.content or ""))
        _, answer = self._splitter.feed(text)
        if (adapter := self._dspy_adapter) is not None:
            with dspy.context(adapter=adapter):
                response: StreamResponse | None = super().receive(_with_text(chunk, answer))
            return response
        self._answer_text += answer
        return self._more(self._visible(is_whole=False))

    def finish(self, values: Mapping[str, Any]) -> StreamResponse | None:
        """Return the rest of a complete answer: all of it if no predictor wrote it."""
        if self.stream_end or not isinstance(self.predict, PlannedModule):
            return self.finalize()
        self.stream_start = self.stream_end = True
        name = self.signature_field_name
        return self._response(render({name: values.get(name, "")}), is_last=True)

    def finalize(self) -> StreamResponse | None:
        """Return the text that was held back, at the end of the stream."""
        if self.stream_end or isinstance(self.predict, PlannedModule):
            return None
        _, rest = self._splitter.feed(self._half)
        self._answer_text += rest + self._splitter.flush()[1]
        self._half = ""
        if self._answer_text:
            self.stream_end = True
            more = self._more(self._visible(is_whole=True))
            return self._response(more.chunk if more else "", is_last=True)
        with dspy.context(adapter=self._dspy_adapter or dspy.ChatAdapter()):
            response: StreamResponse | None = super().finalize()
        return response

    def _visible(self, *, is_whole: bool) -> str:
        """Return the value received so far, without blanks that may be at its end."""
        text = self._answer_text
        if isinstance(self.adapter, PlainChat):
            return self._without_end(text, is_whole=is_whole)
        start = re.search(rf"^\s*\[\[ ## {self.signature_field_name} ## \]\]", text, re.MULTILINE)
        if start is None:
            return ""
        value = text[start.end() :]
        end = _MARKER.search(value) or (None if is_whole else _PART_OF_MARKER.search(value))
        return value[: end.start()].strip() if end else value.strip()

    def _without_end(self, text: str, *, is_whole: bool) -> str:
        """Return plain text without its end tokens, as the adapter reads it."""
        if is_verbatim(self.adapter):
            return text.strip()
        shown = str(without_closing(text)).strip()
        # The last characters may be the beginning of such a token.
        return shown if is_whole else _PART_OF_TOKEN.sub("", shown).strip()

    def _more(self, visible: str) -> StreamResponse | None:
        new = visible[len(self._sent_text) :]
        if not new:
            return None
        self._sent_text, self.stream_start = visible, True
        return self._response(new)

    def _response(self, text: str, *, is_last: bool = False) -> StreamResponse:
        name, field = self.predict_name, self.signature_field_name
        return StreamResponse(str(name), field, text, is_last_chunk=is_last)


def _with_text(chunk: Any, text: str) -> Any:
    """Return a copy of ``chunk`` with another text, as other listeners get ``chunk`` too."""
    changed = copy.copy(chunk)
    choice = copy.copy(chunk.choices[0])
    choice.delta = copy.copy(choice.delta)
    choice.delta.content = text or None
    changed.choices = [choice, *chunk.choices[1:]]
    return changed

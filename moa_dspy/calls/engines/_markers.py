"""Field markers in a stream: each is one piece, however finely or coarsely it was split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from dspy import lm15

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

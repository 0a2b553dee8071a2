"""What was read lately, within a bound."""

from __future__ import annotations

import threading

from moa_dspy.calls._call import Call

_BYTES_PER_CALL = 900
"""What a call needs in memory besides its two texts."""


class Seen:
    """Calls by key; the oldest go when all together are larger than ``most_bytes``."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._calls: dict[str, Call] = {}
        self._lock = threading.Lock()
        self.get = self._calls.get

    def add(self, call: Call) -> None:
        """Keep ``call``."""
        with self._lock:
            if call.key in self._calls:
                return
            self._calls[call.key] = call
            self._bytes += _size(call)
            while self._bytes > self._most_bytes and self._calls:
                oldest = next(iter(self._calls))
                self._bytes -= _size(self._calls.pop(oldest))


def _size(call: Call) -> int:
    return _BYTES_PER_CALL + len(call.request) + len(call.response or "")

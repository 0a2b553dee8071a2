"""What may hold calls, and what does when nothing else is given."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from moa_dspy.calls._call import Call


class Shelf(Protocol):
    """Something that may hold the call of a key: the store, or a recording."""

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        ...


class WritableShelf(Shelf, Protocol):
    """A shelf that also keeps what is new."""

    def put(self, call: Call, /) -> Call | None:
        """Keep ``call``, durably, before returning; a failure gives way to an answer.

        Returns:
            What is kept if that is not ``call``: the first answer to a key stays.
        """
        ...


@runtime_checkable
class SharedShelf(WritableShelf, Protocol):
    """A shelf that other processes use too: one at a time makes the call of a key."""

    def claim(self, key: str, /) -> bool:
        """Take the right to make the call of ``key``, and return whether it was free."""
        ...

    def release(self, key: str, /) -> None:
        """Give it back; an answer that is put does so by itself."""
        ...


class Memory:
    """A shelf that forgets everything when the process ends."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        return self._calls.get(key)

    def put(self, call: Call, /) -> Call:
        """Keep ``call`` unless its key has an answer; return what is kept."""
        kept = self._calls.get(call.key)
        if kept is None or kept.failure is not None:
            self._calls[call.key] = kept = call
        return kept


class NoStore:
    """A shelf that keeps nothing: whatever is asked is asked anew."""

    def get(self, key: str, /) -> Call | None:
        """Return None."""
        return None

    def put(self, call: Call, /) -> Call:
        """Return ``call``."""
        return call

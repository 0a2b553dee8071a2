"""Shares what room there is out over the references: the longest are cut first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from moa_dspy.references._limits import Cut, ReferenceLimits
from moa_dspy.references._shorten import shortened
from moa_dspy.references._tokens import count_tokens

FEWEST_TOKENS: Final = 16
"""A reference that would have fewer left is left out: it could say nothing."""


def fitted(
    texts: Sequence[str],
    *,
    agents: Sequence[str | None] = (),
    limits: ReferenceLimits,
    window: int | None = None,
    max_tokens: int | None = None,
    measure: Callable[[list[str]], int] | None = None,
    count: Callable[[str], int] = count_tokens,
) -> tuple[list[str], tuple[Cut, ...]]:
    """Return the references as a reader with this context window can take them; see ``fit``.

    Args:
        texts: The references, original and unguarded.
        agents: Whose they are, in the same order, for the cuts.
        limits: What the user allows.
        window: Tokens of the reader's context window; None is no limit.
        max_tokens: What of the window its reply needs.
        measure: Tokens of the reader's whole prompt with these references in it; needed
            with ``window``.
        count: Tokens of a text.
    """
    room = None if window is None else window - (max_tokens or 0)
    return fit(texts, limits=limits, room=room, measure=measure, count=count, agents=agents)


def fit(
    texts: Sequence[str],
    *,
    limits: ReferenceLimits,
    room: int | None = None,
    measure: Callable[[list[str]], int] | None = None,
    count: Callable[[str], int] = count_tokens,
    agents: Sequence[str | None] = (),
) -> tuple[list[str], tuple[Cut, ...]]:
    """Return references of which each, all, and the prompt they stand in keep to their limits.

    What is too long loses its end and says so. All cut references are cut to the same
    length, so a short one stays whole. If that length were below ``FEWEST_TOKENS``, long
    references are left out, the last first, until it is not. Never raises: in a prompt
    that has no room at all there is no reference.

    Args:
        texts: The references, original and unguarded.
        limits: Of each, and of all together.
        room: Most tokens that ``measure`` may say; None is no limit.
        measure: Tokens of the built prompt with these references in it.
        count: Tokens of a text.
        agents: Whose they are, in the same order, for the cuts.

    Returns:
        The references that are left, in order, and one ``Cut`` for each that is not whole.
    """
    is_unlimited = limits == ReferenceLimits() and (room is None or measure is None)
    if is_unlimited or not texts:
        return list(texts), ()
    tokens = [count(text) for text in texts]
    read = _Shares(texts, tokens, limits, room, measure, count).largest()
    cuts = tuple(
        Cut(
            reference=i + 1,
            agent=agents[i] if i < len(agents) else None,
            tokens=tokens[i],
            kept_tokens=count(read[i]) if i in read else 0,
        )
        for i, text in enumerate(texts)
        if read.get(i) != text
    )
    return list(read.values()), cuts


@dataclass(frozen=True, slots=True)
class _Shares:
    """Tries how long references may be, which go by their index in ``texts``."""

    texts: Sequence[str]
    tokens: list[int]
    limits: ReferenceLimits
    room: int | None
    measure: Callable[[list[str]], int] | None
    count: Callable[[str], int]

    def largest(self) -> dict[int, str]:
        """Return the texts at the greatest common length that keeps all limits."""
        given = (self.limits.per_reference, self.limits.total)
        fewest = min(n for n in (FEWEST_TOKENS, *given) if n is not None)
        members = list(range(len(self.texts)))
        whole = min(max(self.tokens), self.limits.per_reference or max(self.tokens))
        read = self._read(members, whole)
        if read is not None:
            return read
        while members:
            read = self._read(members, fewest)
            if read is not None:
                return self._search(members, fewest, read)
            members.remove(max(members, key=lambda i: (min(self.tokens[i], fewest), i)))
        return {}

    def _search(self, members: list[int], length: int, best: dict[int, str]) -> dict[int, str]:
        """Bisect, from a length that fits, to within one percent of the greatest."""
        caps = [self.limits.per_reference, self.room, max(self.tokens[i] for i in members)]
        too_long = max(length, min(cap for cap in caps if cap is not None)) + 1
        while too_long - length > 1 + length // 100:
            tried = (length + too_long) // 2
            read = self._read(members, tried)
            if read is None:
                too_long = tried
            else:
                length, best = tried, read
        return best

    def _read(self, members: list[int], length: int) -> dict[int, str] | None:
        """Return the texts cut to ``length`` tokens, or None if they keep not all limits."""
        allowed = {i: min(self.tokens[i], length) for i in members}
        if self.limits.total is not None and sum(allowed.values()) > self.limits.total:
            return None
        read = {i: self._cut(i, length) for i in members}
        read = {i: text for i, text in read.items() if text or not self.texts[i]}
        if self.room is not None and self.measure is not None:
            return read if self.measure(list(read.values())) <= self.room else None
        return read

    def _cut(self, i: int, length: int) -> str:
        if self.tokens[i] <= length:
            return self.texts[i]
        return shortened(self.texts[i], length, count=self.count)

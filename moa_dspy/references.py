"""Limits of the references that an agent may read, and the cutting of references to them.

The longest references are cut first. A cut text ends between words, with a mark that it was cut.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import dspy

from moa_dspy.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """Most tokens that references may have; None means no limit.

    Attributes:
        per_reference: Most tokens of one reference.
        total: Most tokens of all references together.

    Raises:
        ArchitectureError: If a limit is below 1.
    """

    per_reference: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        for name, limit in (("per_reference", self.per_reference), ("total", self.total)):
            if limit is not None and limit < 1:
                raise ArchitectureError(f"`{name}` must be at least 1, but got {limit}.")


NO_LIMITS: Final = ReferenceLimits()
"""No limits besides the reader's context window."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A reference that was shortened, or left out, before an agent read it.

    Attributes:
        reference: Number of the reference, from 1, before any was left out.
        agent: Name of the agent that gave the response.
        tokens: Tokens of the whole response.
        kept_tokens: Tokens that were read, the mark of the cut included; 0 if it was left out.
    """

    reference: int
    agent: str | None
    tokens: int
    kept_tokens: int


CUT_MARK: Final = " [cut]"
"""Mark at the end of a text that was cut."""

_LONGEST_WORD: Final = 40
_STEPS: Final = 24


def shortened(text: str, tokens: int, *, count: Callable[[str], int]) -> str:
    """Return the longest beginning of ``text`` that fits, with the mark; or "".

    It ends between words if possible, so a number is complete or left out, and never inside a
    character of several code points.
    """
    fits, too_long, best = 0, len(text) + 1, ""
    guess = tokens * 4  # a token has about four letters
    for _ in range(_STEPS):
        if too_long - fits <= 1:
            break
        n = guess if fits < guess < too_long else (fits + too_long) // 2
        start = _start(text, n)
        size = count(start + CUT_MARK)
        if size <= tokens:
            fits, best = n, start
        else:
            too_long = n
        guess = n * tokens // max(size, 1)
    return best + CUT_MARK if best else ""


def _start(text: str, n: int) -> str:
    while 0 < n < len(text) and _is_inside(text, n):
        n -= 1
    if n < len(text) and not text[n].isspace():
        # A part of a number would be another number.
        end = text[max(0, n - _LONGEST_WORD) : n]
        word = end.split()[-1] if end.strip() and not end[-1].isspace() else ""
        n -= len(word) if len(word) < len(end) else 0
    return text[:n].rstrip()


def _is_inside(text: str, n: int) -> bool:
    before, after = text[n - 1], text[n]
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return True
    if before == "\u200d" or after in "\u200c\u200d\ufe0e\ufe0f":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    return _is_flag(before) and _is_flag(after)


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


_PIECE: Final = re.compile(
    r"(?<=[a-z])[a-z]{1,2}"  # the rest of a long word
    r"| ?[A-Z]?[a-z]{1,5}"
    r"| ?[A-Z]{1,2}"
    r"|[0-9]"
    r"| ?[!-/:-@\[-`{-~]{1,2}"
    r"|\s{1,8}"
)
_DENSE: Final = re.compile(r"[A-Za-z0-9+/]{40,}")
"""Letters without words, such as base64, with about one letter per token."""

_CHARACTERS_PER_EXTRA_TOKEN: Final = 5
_TOKENS_PER_BYTE: Final = 0.6
"""Tokens per byte of a character that is not ASCII."""

_ASCII: Final = bytes(range(128))


def count_tokens(text: str) -> int:
    """Estimate the tokens of ``text``, rather too many than too few, without a tokenizer.

    Calibrated on the tokenizers of Qwen2.5 and SmolLM2: 1.1 to 1.9 times their number on English,
    code and JSON, 1.0 to 1.3 on digits, hashes and LaTeX. Too low on random letters (0.55) and, for
    SmolLM2, on Korean and emoji (0.8). Other scripts are counted as by a tokenizer made for
    English: for Chinese 1.0 times SmolLM2's number and 3 times Qwen's. Pass your own counter if
    that matters.
    """
    pieces = sum(1 for _ in _PIECE.finditer(text))
    dense = sum(len(run) // _CHARACTERS_PER_EXTRA_TOKEN for run in _DENSE.findall(text))
    rest = text.encode("utf-8", "surrogatepass").translate(None, _ASCII)
    return pieces + dense + math.ceil(_TOKENS_PER_BYTE * len(rest))


FEWEST_TOKENS: Final = 16
"""A reference that would be cut to fewer tokens is left out, as it would hold no information."""


def fit(
    texts: Sequence[str],
    *,
    limits: ReferenceLimits,
    room: int | None = None,
    measure: Callable[[list[str]], int] | None = None,
    count: Callable[[str], int] = count_tokens,
    agents: Sequence[str | None] = (),
) -> tuple[list[str], tuple[Cut, ...]]:
    """Cut references so that each, all together, and the prompt with them keep to their limits.

    A reference that is too long is cut at its end and marked. All cut references have the same
    length, so short references stay complete. While that length would be below ``FEWEST_TOKENS``,
    the last of the long references is left out. Never raises: a prompt without any room gets no
    reference.

    Args:
        texts: The references, original and unguarded.
        limits: Limits of each reference, and of all together.
        room: Most tokens that ``measure`` may return; None means no limit.
        measure: Returns the tokens of the built prompt with these references.
        count: Returns the tokens of a text.
        agents: Names of the references' agents, in the same order, for the cuts.

    Returns:
        The remaining references, in order, and a ``Cut`` for each that was cut or left out.
    """
    is_unlimited = limits == NO_LIMITS and (room is None or measure is None)
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
    """Search for the common length of references, which are given by their index in ``texts``."""

    texts: Sequence[str]
    tokens: list[int]
    limits: ReferenceLimits
    room: int | None
    measure: Callable[[list[str]], int] | None
    count: Callable[[str], int]

    def largest(self) -> dict[int, str]:
        """Return the texts cut to the greatest common length within all limits."""
        limits = (self.limits.per_reference, self.limits.total)
        fewest = min(n for n in (FEWEST_TOKENS, *limits) if n is not None)
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
        """Bisect from a length that fits to within one percent of the greatest length."""
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
        """Return the texts cut to ``length`` tokens, or None if they exceed a limit."""
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


_PER_MESSAGE: Final = 8
"""Tokens of a chat template around a message."""

_PER_PROMPT: Final = 32
"""Tokens of a chat template per prompt: its start, its system text, the mark of the next turn."""

_PER_IMAGE: Final = 1600
"""Tokens of a part that is not text; vendors count 85 to 1,600 for an image."""


def built_tokens(
    module: Any,
    adapter: Any,
    inputs: Mapping[str, Any],
    count: Callable[[str], int] = count_tokens,
) -> int:
    """Estimate the tokens of the prompt of a module's first predictor.

    Args:
        module: A DSPy module; without a predictor, the texts of its inputs are counted.
        adapter: A DSPy adapter; None takes DSPy's own choice, as in the call.
        inputs: Inputs of the module.
        count: Returns the tokens of a text.
    """
    predictors = module.predictors() if isinstance(module, dspy.Module) else []
    chosen = adapter or dspy.settings.adapter or dspy.ChatAdapter()
    messages: list[dict[str, Any]] = []
    if predictors:
        first: Any = predictors[0]
        try:
            # No callbacks, as this is not a call.
            with dspy.context(callbacks=[]):
                messages = chosen.format(first.signature, first.demos, dict(inputs))
        except Exception:
            # The call itself will report faults of the inputs.
            messages = []
    if not messages:
        messages = [{"content": str(value)} for value in inputs.values()]
    return _PER_PROMPT + sum(_PER_MESSAGE + _size(m.get("content"), count) for m in messages)


def _size(content: Any, count: Callable[[str], int]) -> int:
    if not isinstance(content, list):
        return count(str(content or ""))
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return sum(_PER_IMAGE if text is None else count(str(text)) for text in texts)


_MOST_COUNTED: Final = 50
TOKENS_PER_COUNTED: Final = {"low": 1 / 1.9, "likely": 1 / 1.35, "high": 1.0}
"""Real tokens per token of ``count_tokens``, which counts 1.0 to 1.9 times as many."""


def counted_rows(rows: Sequence[Any]) -> Sequence[Any]:
    """Return the rows whose tokens are counted; of a hundred or more, an evenly spaced part."""
    return rows[:: max(1, len(rows) // _MOST_COUNTED)]


def tokens_beyond_val(rows: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return for each split by how many tokens its inputs are longer than those of val."""
    means = {name: _mean_tokens(split_rows) for name, split_rows in rows.items() if split_rows}
    usual = means["val"]
    return {name: TOKENS_PER_COUNTED["likely"] * (mean - usual) for name, mean in means.items()}


def _mean_tokens(rows: Sequence[Any]) -> float:
    return fmean(
        sum(count_tokens(value) for value in row.inputs().values() if isinstance(value, str))
        for row in counted_rows(rows)
    )

"""Tells who streams a mixture (``dspy.streamify``) which proposers have answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.streaming.messages import StatusMessage, sync_send_to_stream

from moa_dspy.aggregators import Question
from moa_dspy.response import Response

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Status:
    """Sends a status message for each of a layer's agents; nothing where nobody streams.

    Made in the caller's context: the contexts of proposers have no stream.
    """

    questions: Sequence[Question]
    stream: Any = field(default_factory=lambda: dspy.settings.send_stream)
    _n_answered: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return self.stream is not None

    def watched(self, running: Sequence[Future[Any]], seconds: float | None) -> set[Future[Any]]:
        """Wait at most ``seconds``, tell of each that is done, and return these."""
        done: set[Future[Any]] = set()
        try:
            for future in as_completed(running, seconds):
                done.add(future)
                if future.exception() is None:
                    self._send(self._message(future.result()[0]))
        except TimeoutError:
            pass  # What is left are stragglers, which the caller counts.
        return done

    async def aanswered(self, response: Response) -> None:
        """Tell of one response."""
        if not self.is_wanted:
            return
        try:
            await self.stream.send(StatusMessage(self._message(response)))
        except Exception:
            logger.warning("A status message could not be sent.", exc_info=True)

    def _send(self, message: str) -> None:
        try:
            sync_send_to_stream(self.stream, StatusMessage(message))
        except Exception:
            # Who listened may be gone; the answer is made all the same.
            logger.warning("A status message could not be sent.", exc_info=True)

    def _message(self, response: Response) -> str:
        self._n_answered += 1
        verb = "answered" if response.has_answer else "failed"
        return f"{response.agent} {verb} ({self._n_answered} of {len(self.questions)})"

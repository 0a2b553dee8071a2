"""Connections on which a whole exchange has a time, not only each wait for bytes."""

from __future__ import annotations

import time
from typing import Any

from dspy._vendor.lm15.transports import StdlibTransport


class TimedTransport(StdlibTransport):
    """``StdlibTransport`` that spends at most so many seconds on waiting, per exchange.

    A server that sends a byte now and then never trips a limit of each wait. The time in
    which somebody reads a stream slowly does not count.

    Args:
        seconds: To connect, send and receive in all; None is no limit.
        limits: As of ``StdlibTransport``.
    """

    def __init__(self, *, seconds: float | None, **limits: Any) -> None:
        super().__init__(**limits)
        self._seconds, self._limits = seconds, limits

    def copy(self) -> TimedTransport:
        """Return an open transport like this one: lm15 asks for it when this one was closed."""
        return TimedTransport(seconds=self._seconds, **self._limits)

    def _open(self, *where: Any, **how: Any) -> Any:
        started = time.monotonic()
        connection: Any = super()._open(*where, **how)
        if self._seconds is not None:
            connection.sock = _TimedSocket(connection.sock, time.monotonic() - started)
        return connection

    def _send_request(self, conn: Any, *what: Any, **how: Any) -> None:
        if self._seconds is not None:
            # What it took to connect belongs to the first exchange only.
            conn.sock.left, conn.sock.spent = self._seconds - conn.sock.spent, 0.0
        super()._send_request(conn, *what, **how)


class _TimedSocket:
    """A socket of one exchange at a time; ``left`` seconds of waiting remain in this one."""

    def __init__(self, sock: Any, spent: float) -> None:
        self._sock = sock
        self.left, self.spent = 0.0, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Ignore the limit of each wait: what is left of the exchange is never longer."""

    def sendall(self, data: bytes) -> None:
        """Send it all in the time that is left."""
        self._timed(self._sock.sendall, data)

    def recv(self, size: int) -> bytes:
        """Return what comes first in the time that is left."""
        received: bytes = self._timed(self._sock.recv, size)
        return received

    def _timed(self, do: Any, argument: Any) -> Any:
        if self.left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(self.left)
        started = time.monotonic()
        try:
            return do(argument)
        finally:
            self.left -= time.monotonic() - started

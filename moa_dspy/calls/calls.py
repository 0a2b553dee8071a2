"""Single flight: of those who want the same at once, one asks and the others wait."""

# DOCS: calls/_turns: Single flight among processes: whoever holds the claim of a key asks, the others look again. | calls/_calls: The one place that decides where an answer comes from: memory, file, or the endpoint.

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

from moa_dspy.calls.attempts import Attempts, OutagePolicy, facts_of
from moa_dspy.calls.budget import CallEstimate, Ledger
from moa_dspy.calls.call import (
    Call,
    CallBackend,
    MemoryCalls,
    SharedBackend,
    WritableBackend,
    call_key,
    canonical_json,
)
from moa_dspy.calls.request import AgentCalls, CallRequest
from moa_dspy.calls.retry import Limiters
from moa_dspy.calls.scope import Clock, Deadline, DeadlineError, current_scope
from moa_dspy.calls.steps import ASender, CallPlan, Sender, Sleep, Wait, Work, arun_plan, run_plan
from moa_dspy.calls.store.leases import pauses
from moa_dspy.errors import UnknownCallError

Waiting: TypeAlias = Future[None]
"""Done when it has landed; what came of it is looked up, as anybody else would."""


class SingleFlight:
    """Keys that are being asked for in this process."""

    def __init__(self) -> None:
        self._flights: dict[str, Waiting] = {}
        self._lock = threading.Lock()

    def board(self, key: str) -> tuple[Waiting, bool]:
        """Return the flight of ``key``, and whether it is new: who began it must land it."""
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                return flight, False
            flight = self._flights[key] = Future()
            # A running future cannot be cancelled by a task that waits for it.
            flight.set_running_or_notify_cancel()
        return flight, True

    def land(self, key: str, flight: Waiting) -> None:
        """End a flight; everybody who waits for it goes on."""
        with self._lock:
            del self._flights[key]
        flight.set_result(None)


def claim_turn(
    shelf: SharedBackend,
    key: str,
    patience: Deadline,
    *,
    look: Callable[[], Call | None],
    make: Callable[[], CallPlan],
) -> CallPlan:
    """Say how to get the call of ``key``: made elsewhere meanwhile, or by ``make``, claimed."""
    claiming = Work(partial(shelf.claim, key))
    try:
        for pause in pauses():
            yield claiming
            if claiming.result:
                break
            yield Sleep(patience, pause)
            if (call := look()) is not None:
                return call
        # It may have been answered between the last look and the claim.
        return look() or (yield from make())
    finally:
        if claiming.result:
            shelf.release(key)


class Calls:
    """Answers requests from a store, a recording or the endpoint, each key once at a time.

    Args:
        store: Keeps new answers; None keeps them in memory only.
        recording: Read-only answers that were made elsewhere.
        replay_only: Whether an unknown request is an error instead of a request.
        ledger: Counts and limits all that is spent; ``spending_under`` adds others.
        clock: What time it is.

    Attributes:
        endurance: May be set: then a failure for the moment is no call, and is tried again,
            whatever ``num_retries`` says, until the endpoint answers.
    """

    def __init__(
        self,
        store: WritableBackend | None = None,
        *,
        recording: CallBackend | None = None,
        replay_only: bool = False,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store: WritableBackend = store if store is not None else MemoryCalls()
        self._shared = self.store if isinstance(self.store, SharedBackend) else None
        self.recording = recording
        self.replay_only = replay_only
        self.ledger = ledger or Ledger()
        self.clock = clock or Clock()
        self.limiters = Limiters()
        self.endurance: OutagePolicy | None = None
        self._flights = SingleFlight()

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return self

    def ask(
        self, caller: AgentCalls, request: dict[str, Any], *, sample: int | None = None
    ) -> CallRequest:
        """Describe a request (plain JSON data).

        Args:
            caller: Who asks.
            request: What is sent, without the model's name.
            sample: Index of the independent sample; None is that of the current scope.
        """
        config = request.get("config", {})
        sample = current_scope().sample if sample is None else sample
        # A greedy agent gives one answer however often it is asked: asking twice is paying twice.
        sample = 0 if config.get("temperature") == 0 else sample
        text = canonical_json(request)
        longest = config.get("max_tokens")
        prompt, completion = len(text.encode("utf-8", "replace")), longest or 0
        usd = caller.usd(prompt, completion)
        estimate = CallEstimate(prompt + completion, usd, is_bounded=longest is not None)
        return CallRequest(caller, call_key(caller.identity, sample, text), sample, text, estimate)

    def count_reuse(self) -> None:
        """Count one answer that was known already, in every ledger that counts here."""
        for ledger in self._ledgers():
            ledger.count_reuse()

    def _ledgers(self) -> dict[Ledger, float]:
        scoped = current_scope().ledgers
        return {**scoped, self.ledger: scoped.get(self.ledger, 1.0)}

    def known(self, ask: CallRequest) -> Call | None:
        """Return the stored or recorded call and log it as reused, or None.

        A recorded failure is an answer in a replay; elsewhere it is tried again.

        Raises:
            UnknownCallError: In a replay, when nobody recorded this request.
        """
        call = self.store.get(ask.key)
        if call is None and self.recording is not None:
            call = self.recording.get(ask.key)
        if call is not None and (call.failure is None or self.replay_only):
            self.count_reuse()
            current_scope().log.append(facts_of(call, is_reused=True))
            return call
        if self.replay_only:
            example = current_scope().example
            where = f" for example {example!r}" if example is not None else ""
            raise UnknownCallError(
                f"The recording has no call of agent {ask.caller.agent!r}{where} "
                f"(sample {ask.sample}, key {ask.key[:12]})."
            )
        return None

    def answer(self, ask: CallRequest, send: Sender) -> Call:
        """Return the call for ``ask``, making it with ``send`` only if nobody has.

        Raises:
            DeadlineError: If the scope's time ended before a request was sent.
        """
        return self.known(ask) or run_plan(self.plan(ask), send)

    async def aanswer(self, ask: CallRequest, send: ASender) -> Call:
        """``answer`` for coroutines."""
        return self.known(ask) or await arun_plan(self.plan(ask), send)

    def plan(self, ask: CallRequest) -> CallPlan:
        """Say what to do until there is a call for ``ask``, which was not known just now."""
        patience = Deadline.of(current_scope(), self.clock)
        making = Attempts(ask, patience, self.store, self._shared, self._ledgers(), self.endurance)
        try:
            while True:
                flight, is_mine = self._flights.board(ask.key)
                if not is_mine:
                    yield Wait(patience, flight)
                    if (call := self.known(ask)) is not None:
                        return call
                    continue
                try:
                    # It may have landed since the look before.
                    return self.known(ask) or (yield from self._turn(making))
                finally:
                    self._flights.land(ask.key, flight)
        except DeadlineError as error:
            making.give_up(error)
            raise

    def _turn(self, making: Attempts) -> CallPlan:
        shelf, ask = making.shared, making.ask
        if shelf is None:
            return (yield from making.plan())
        look = partial(self.known, ask)
        return (yield from claim_turn(shelf, ask.key, making.patience, look=look, make=making.plan))

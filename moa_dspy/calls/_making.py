"""The making of one call: attempts, each paid and stored, until one is answered."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from itertools import count

from moa_dspy.calls._attempt import Attempt, facts_of
from moa_dspy.calls._call import Call
from moa_dspy.calls._caller import Ask
from moa_dspy.calls._clock import Clock
from moa_dspy.calls._endurance import Endurance
from moa_dspy.calls._patience import DeadlineError, Patience
from moa_dspy.calls._scope import current_scope
from moa_dspy.calls._shelf import SharedShelf, WritableShelf
from moa_dspy.calls._steps import Plan, Send, Sleep, Step, Wait, Work
from moa_dspy.calls.budgets._ledger import Ledger
from moa_dspy.calls.store._shared_limits import SharedLimits, admitted
from moa_dspy.errors import MoaError


@dataclass(frozen=True, slots=True)
class Making:
    """Makes the call of ``ask``; ``plan`` says how and does nothing by itself.

    Attributes:
        ask: What is asked.
        patience: How long the asker waits.
        store: Keeps what comes of it.
        shared: The store again if other processes use it too, else None.
        ledger: Counts what is spent.
        endurance: Says what is tried again instead of the caller's policy; None is that.
    """

    ask: Ask
    patience: Patience
    store: WritableShelf
    shared: SharedShelf | None
    ledger: Ledger
    endurance: Endurance | None = None

    @property
    def _clock(self) -> Clock:
        return self.patience.clock

    def plan(self) -> Plan:
        """Try as often as the caller's policy says, but not beyond the asker's patience."""
        last: Exception | None = None
        pause = 0.0
        for number in count(1):
            send = Send()
            try:
                if last is not None:
                    yield Sleep(self.patience, pause)
                return (yield from self._attempt(number, send))
            except DeadlineError:
                if last is None:
                    raise
                raise last from last.__cause__
            except Exception as error:
                wait = self._wait_seconds(error, number)
                if wait is None or send.has_shown or wait >= self.patience.left_seconds:
                    raise
                last, pause = error, wait
        raise AssertionError("attempts end by themselves")

    def _wait_seconds(self, error: Exception, number: int) -> float | None:
        caller = self.ask.caller
        if (limits := self._limits) is not None:
            limits.note(error, caller.limiter.endpoint)
        if self.endurance is not None:
            return self.endurance.wait_seconds(error, self.ask, attempt=number)
        return caller.retries.wait_seconds(error, attempt=number, key=self.ask.key)

    @property
    def _limits(self) -> SharedLimits | None:
        return None if self.shared is None else getattr(self.shared, "limits", None)

    def give_up(self, error: DeadlineError) -> None:
        """Note that nothing was sent: a replay must come to the same end."""
        unsent = Attempt(self.ask, 0, self._clock, started=self.patience.started)
        self._keep(unsent.failed(error))

    def _attempt(self, number: int, send: Send) -> Plan:
        limiter = self.ask.caller.limiter
        ticket = limiter.enter()
        try:
            if not ticket.done():
                yield Wait(self.patience, ticket)
            self.patience.check()
            paid = partial(self._paid, number, send)
            if (limits := self._limits) is None or not limits.has_say(limiter):
                return (yield from paid())
            return (yield from admitted(limits, limiter, self.patience, make=paid))
        finally:
            limiter.leave(ticket)

    def _paid(self, number: int, send: Send) -> Plan:
        reserving = Work(partial(self.ledger.reserve, self.ask.estimate, key=self.ask.key))
        try:
            yield from self._worked(reserving)
        except BaseException:
            if reserving.result is not None:
                self.ledger.cancel(reserving.result)
            raise
        ticket = reserving.result
        attempt = Attempt(self.ask, number, self._clock, started=self._clock.monotonic())
        try:
            call = attempt.answered((yield send))
        except BaseException as error:
            if not isinstance(error, MoaError) and not self._is_passing(error, number):
                self._keep(attempt.failed(error))
            self.ledger.settle(ticket, tokens=0, usd=0.0, seconds=attempt.seconds)
            raise
        if self.endurance is not None:
            self.endurance.answered(self.ask)
        storing = Work(partial(self._settled, call, ticket))
        yield from self._worked(storing)
        kept: Call = storing.result
        return kept

    def _is_passing(self, error: BaseException, number: int) -> bool:
        endurance = self.endurance
        return endurance is not None and endurance.is_passing(error, attempt=number)

    def _worked(self, work: Work) -> Generator[Step, None, None]:
        """Have ``work`` done; only that on a shared store may take long enough for a thread."""
        if self.shared is not None:
            yield work
        else:
            work.run()

    def _settled(self, call: Call, ticket: str) -> Call:
        # Stored before it is settled: whoever dies in between has lost nothing.
        try:
            return self._keep(call)
        finally:
            tokens = call.prompt_tokens + call.completion_tokens
            self.ledger.settle(ticket, tokens=tokens, usd=call.usd, seconds=call.seconds)

    def _keep(self, call: Call) -> Call:
        kept = self.store.put(call) or call
        current_scope().log.append(facts_of(call, is_reused=False))
        return kept

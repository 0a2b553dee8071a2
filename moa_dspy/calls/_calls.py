"""The one place that decides where an answer comes from: memory, file, or the endpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

from moa_dspy.calls._attempt import facts_of
from moa_dspy.calls._call import Call, call_key, canonical_json
from moa_dspy.calls._caller import Ask, Caller
from moa_dspy.calls._clock import Clock
from moa_dspy.calls._endurance import Endurance
from moa_dspy.calls._flights import Flights
from moa_dspy.calls._limits import Limiters
from moa_dspy.calls._making import Making
from moa_dspy.calls._patience import DeadlineError, Patience
from moa_dspy.calls._scope import current_scope
from moa_dspy.calls._shelf import Memory, SharedShelf, Shelf, WritableShelf
from moa_dspy.calls._steps import ASender, Plan, Sender, Wait, afollow, follow
from moa_dspy.calls._turns import take_turn
from moa_dspy.calls.budgets._budget import Estimate
from moa_dspy.calls.budgets._ledger import Ledger
from moa_dspy.errors import UnknownCallError


class Calls:
    """Answers requests from a store, a recording or the endpoint, each key once at a time.

    Args:
        store: Keeps new answers; None keeps them in memory only.
        recording: Read-only answers that were made elsewhere.
        replay_only: Whether an unknown request is an error instead of a request.
        ledger: Counts and limits what is spent.
        clock: What time it is.

    Attributes:
        endurance: May be set: then a failure for the moment is no call, and is tried again,
            whatever ``num_retries`` says, until the endpoint answers.
    """

    def __init__(
        self,
        store: WritableShelf | None = None,
        *,
        recording: Shelf | None = None,
        replay_only: bool = False,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store: WritableShelf = store if store is not None else Memory()
        self._shared = self.store if isinstance(self.store, SharedShelf) else None
        self.recording = recording
        self.replay_only = replay_only
        self.ledger = ledger or Ledger()
        self.clock = clock or Clock()
        self.limiters = Limiters()
        self.endurance: Endurance | None = None
        self._flights = Flights()

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return self

    def ask(self, caller: Caller, request: dict[str, Any], *, sample: int | None = None) -> Ask:
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
        estimate = Estimate(prompt + completion, usd, is_bounded=longest is not None)
        return Ask(caller, call_key(caller.identity, sample, text), sample, text, estimate)

    def known(self, ask: Ask) -> Call | None:
        """Return the stored or recorded call and log it as reused, or None.

        A recorded failure is an answer in a replay; elsewhere it is tried again.

        Raises:
            UnknownCallError: In a replay, when nobody recorded this request.
        """
        call = self.store.get(ask.key)
        if call is None and self.recording is not None:
            call = self.recording.get(ask.key)
        if call is not None and (call.failure is None or self.replay_only):
            self.ledger.count_reuse()
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

    def answer(self, ask: Ask, send: Sender) -> Call:
        """Return the call for ``ask``, making it with ``send`` only if nobody has.

        Raises:
            DeadlineError: If the scope's time ended before a request was sent.
        """
        return self.known(ask) or follow(self.plan(ask), send)

    async def aanswer(self, ask: Ask, send: ASender) -> Call:
        """``answer`` for coroutines."""
        return self.known(ask) or await afollow(self.plan(ask), send)

    def plan(self, ask: Ask) -> Plan:
        """Say what to do until there is a call for ``ask``, which was not known just now."""
        patience = Patience.of(current_scope(), self.clock)
        making = Making(ask, patience, self.store, self._shared, self.ledger, self.endurance)
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

    def _turn(self, making: Making) -> Plan:
        shelf, ask = making.shared, making.ask
        if shelf is None:
            return (yield from making.plan())
        look = partial(self.known, ask)
        return (yield from take_turn(shelf, ask.key, making.patience, look=look, make=making.plan))

from __future__ import annotations

import asyncio
import threading

from moa_dspy.calls.lm.clients import PerLoop


class OfOneLoop:
    """An engine that only the loop that made it may use, and that says how often it was closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.n_closed = 0

    async def complete(self, request: str) -> str:
        assert asyncio.get_running_loop() is self.loop
        return request

    async def aclose(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.n_closed += 1


class Made(list[OfOneLoop]):
    """A factory that keeps what it made."""

    def __call__(self) -> OfOneLoop:
        self.append(OfOneLoop())
        return self[-1]


def test_an_event_loop_has_one_engine_and_closed_loops_have_none() -> None:
    made = Made()
    engines = PerLoop(made)

    async def twice() -> None:
        await asyncio.gather(engines.complete("a"), engines.complete("b"))

    for _ in range(3):
        asyncio.run(twice())
    assert len(made) == 3
    assert list(engines._engines.values()) == made[-1:]


def test_loops_that_run_at_the_same_time_each_have_their_own_engine() -> None:
    made, both = Made(), threading.Barrier(2)
    engines = PerLoop(made)

    async def meet() -> None:
        await engines.complete("a")
        both.wait(30)
        await engines.complete("b")

    threads = [threading.Thread(target=asyncio.run, args=(meet(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 2


def test_closing_closes_the_engine_of_the_running_loop_and_forgets_dead_ones() -> None:
    made = Made()
    engines = PerLoop(made)

    async def ask() -> None:
        await engines.complete("a")

    async def ask_and_close() -> None:
        await engines.complete("a")
        await engines.aclose()
        await engines.aclose()

    asyncio.run(ask())
    asyncio.run(ask_and_close())
    assert [engine.n_closed for engine in made] == [0, 1]
    assert engines._engines == {}


def test_an_engine_that_was_closed_is_made_again_when_it_is_asked() -> None:
    made = Made()
    engines = PerLoop(made)

    async def ask_close_ask() -> None:
        assert await engines.complete("a") == "a"
        engines.close()
        assert await engines.complete("b") == "b"

    asyncio.run(ask_close_ask())
    assert len(made) == 2

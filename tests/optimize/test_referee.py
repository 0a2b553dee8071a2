from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import Disagreement
from moa_dspy.optimize.measure import Measurer, Outcome
from moa_dspy.optimize.objectives import DiversityObjective, ScoreObjective, WinRateObjective
from moa_dspy.optimize.referee import Referee
from moa_dspy.optimize.selection import Limits
from moa_dspy.testing import Script, scripted_pool

Make = Callable[..., Any]


@pytest.fixture
def referee(rows: Make, measurer: Make) -> Callable[..., Referee]:
    """Return what makes a referee of scripted agents; the first one is the best."""

    def make(scripts: dict[str, Script], n_rows: int, **options: Any) -> Referee:
        pool = scripted_pool(scripts, usd_per_million_tokens=dict.fromkeys(scripts, 1e6))
        runner: Measurer = measurer(pool, n_threads=1)
        best = next(iter(scripts))
        return Referee(
            runner, rows("val", n_rows), best_single=best, diversity=Disagreement(), **options
        )

    return make


def judge(referee: Referee, text: str) -> Any:
    return referee.judge(Architecture.parse(text), "test", number=0)


def leader(referee: Referee) -> str | None:
    return referee.leader.architecture if referee.leader else None


def test_a_clear_loser_stops_at_the_first_look(referee: Make, fails_on: Make) -> None:
    # 0 of 30 against 30 of 30: no interval reaches 0. A third of 90 rows is 30.
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 90)
    judge(found, "good")
    record = judge(found, "bad > vote(bad)")
    assert (record.rows, record.is_stopped_early, record.score) == (30, True, 0)
    assert record.win_rate == 0


def test_what_costs_nothing_more_is_never_stopped(
    referee: Make, fails_on: Make, rows: Make
) -> None:
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 90)
    judge(found, "good")
    found._measurer.measure(Architecture.single("bad"), rows("val", 90))
    assert judge(found, "bad").rows == 90


def test_a_middling_loser_stops_at_the_second_look(referee: Make, fails_on: Make) -> None:
    def late(prompt: str) -> str:
        number = int(prompt.split()[-1])
        return "wrong" if 30 <= number < 60 else str(number)

    # Level on the first 30 rows, 30 losses on the next 30: stopped at 60 of 90.
    found = referee({"good": fails_on(), "late": late}, 90)
    judge(found, "good")
    assert judge(found, "late > vote(late)").rows == 60


@pytest.mark.parametrize(
    ("n_rows", "stops_at"),
    [
        # A third of 59 is 19 and 2 thirds are 39: only the second look is at 20 rows or more.
        (59, 39),
        (60, 20),
        # 2 thirds of 29 are 19: nobody looks.
        (29, 29),
    ],
)
def test_nobody_stops_below_20_rows(
    referee: Make, fails_on: Make, n_rows: int, stops_at: int
) -> None:
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, n_rows)
    judge(found, "good")
    assert judge(found, "bad > vote(bad)").rows == stops_at


class Coins:
    """A measurer of arms that are right with the same chance; nothing is asked."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._scores: dict[Architecture, list[float]] = {}

    def knows(self, architecture: Architecture, rows: Sequence[Any]) -> bool:
        return False

    def measure(self, architecture: Architecture, rows: Sequence[Any]) -> tuple[Outcome, ...]:
        arm = self._scores.setdefault(
            architecture, [float(self._rng.random() < 0.6) for _ in range(90)]
        )
        return tuple(Outcome(score, (), 1, 0.0, 0.0) for score in arm[: len(rows)])


def test_equal_arms_seldom_stop_wrongly(rows: Make) -> None:
    examples, rng, wrong = rows("val", 90), random.Random(0), 0
    for _ in range(200):
        coins: Any = Coins(rng)
        found = Referee(coins, examples, best_single="one", diversity=Disagreement())
        judge(found, "one")
        wrong += judge(found, "two").is_stopped_early
    # Two looks at one-sided 1 % each: at most 2 % of 200 is 4; 8 is two standard deviations more.
    assert wrong <= 8


def test_the_leader_has_the_best_score_of_all_that_were_measured_fully(
    referee: Make, fails_on: Make
) -> None:
    def starts_well(prompt: str) -> str:
        number = int(prompt.split()[-1])
        return str(number) if number < 30 else "wrong"

    found = referee({"b": fails_on(0, of=10), "a": fails_on(), "flash": starts_well}, 90)
    assert leader(found) is None
    judge(found, "b")
    assert leader(found) == "b"
    # Of 30 rows flash has all and b 27; of the next 30 it has none and b 27: stopped at 60.
    flash = judge(found, "flash > vote(flash)")
    assert (flash.rows, flash.score) == (60, 0.5)
    assert leader(found) == "b"
    judge(found, "a")
    judge(found, "a > vote(a)")
    assert leader(found) == "a"


def test_nobody_leads_who_could_not_be_picked(referee: Make, fails_on: Make) -> None:
    # A call is 2 + 1 tokens at 1 usd: alone 3 usd, two of them 6.
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 90, limits=Limits(usd=4))
    judge(found, "good + good > vote(good)")
    assert found.leader is None
    assert not judge(found, "bad > vote(bad)").is_stopped_early


def test_records_and_objectives_are_means_over_the_rows_that_were_measured(
    referee: Make, fails_on: Make
) -> None:
    # a is wrong on numbers 0 modulo 3, b on 1 modulo 3: with 3 rows, a wins 1, b wins 0, tie 2.
    found = referee({"a": fails_on(0), "b": fails_on(1)}, 3)
    record = judge(found, "b")
    assert (record.score, record.win_rate) == (pytest.approx(2 / 3), pytest.approx(0.5))
    both = judge(found, "a + b > vote(a)")
    # Texts differ on 0 and on 1; two calls of 3 and, where one says "wrong 0x", 4 tokens
    assert both.diversity == pytest.approx(2 / 3)
    assert (both.calls, both.usd) == (2, pytest.approx((7 + 7 + 6) / 3))
    values = found.values(both, [ScoreObjective(), WinRateObjective(), DiversityObjective()])
    assert values == [both.score, both.win_rate, both.diversity]

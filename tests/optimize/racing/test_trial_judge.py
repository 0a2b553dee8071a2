from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import Disagreement
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.objectives import (
    CallsObjective,
    DiversityObjective,
    ScoreObjective,
    UsdObjective,
    WinRateObjective,
)
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.trials import TrialJudge
from moa_dspy.testing import Script, scripted_pool

Make = Callable[..., Any]


@pytest.fixture
def referee(rows: Make, evaluator: Make) -> Callable[..., TrialJudge]:
    """Return what makes a referee of scripted agents; the first one is the best."""

    def make(scripts: dict[str, Script], n_rows: int, **options: Any) -> TrialJudge:
        pool = scripted_pool(scripts, usd_per_million_tokens=dict.fromkeys(scripts, 1e6))
        runner: Evaluator = evaluator(pool, num_threads=1)
        best = next(iter(scripts))
        return TrialJudge(
            runner, rows("val", n_rows), best_single=best, diversity=Disagreement(), **options
        )

    return make


def judge(referee: TrialJudge, text: str) -> Any:
    return referee.judge(Architecture.parse(text), "test", number=0)


def leader(referee: TrialJudge) -> str | None:
    return referee.leader.architecture if referee.leader else None


def test_a_clear_loser_stops_at_the_first_look(referee: Make, fails_on: Make) -> None:
    # 20 losses of 20: 2^-21 is below 0.05 / (4 looks x 780 pairs). A fifth of 100 rows is 20.
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 100)
    judge(found, "good")
    record = judge(found, "bad > vote(bad)")
    assert (record.rows, record.is_stopped_early, record.score) == (20, True, 0)
    assert record.win_rate == 0


def test_what_costs_nothing_more_is_never_stopped(
    referee: Make, fails_on: Make, rows: Make
) -> None:
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 90)
    judge(found, "good")
    found._evaluator.measure(Architecture.single("bad"), rows("val", 90))
    assert judge(found, "bad").rows == 90


def test_a_middling_loser_stops_at_the_second_look(referee: Make, fails_on: Make) -> None:
    def late(prompt: str) -> str:
        number = int(prompt.split()[-1])
        return "wrong" if 20 <= number < 40 else str(number)

    # Level on the first 20 rows, 20 losses on the next 20: stopped at 40 of 100.
    found = referee({"good": fails_on(), "late": late}, 100)
    judge(found, "good")
    assert judge(found, "late > vote(late)").rows == 40


def test_more_arms_ask_for_more_evidence(referee: Make, fails_on: Make) -> None:
    # 15 losses of the first 40 rows: 2^-16 = 1.5e-5. Level 0.05 / (4 x 780) = 1.6e-5 with 40
    # arms, 0.05 / (4 x 820) = 1.5244e-5, just below 1.5259e-5, with 41.
    def some(prompt: str) -> str:
        number = int(prompt.split()[-1])
        return "wrong" if number % 20 < 8 and number < 35 and number != 27 else str(number)

    for n_arms, rows in ((40, 40), (41, 100)):
        found = referee({"good": fails_on(), "some": some}, 100, n_arms=n_arms)
        judge(found, "good")
        assert judge(found, "some > vote(some)").rows == rows


def test_any_that_was_measured_fully_stops_a_loser(referee: Make, fails_on: Make) -> None:
    # The leader has 80 of 100 rows but is tied with the arm on the first 20, where both fail.
    def after(n: int) -> Script:
        return lambda prompt: str(k) if (k := int(prompt.split()[-1])) >= n else "wrong"

    first = {"second": lambda p: str(k) if (k := int(p.split()[-1])) < 40 else "wrong"}
    found = referee({"leads": after(20), **first, "bad": fails_on(0, 1, 2)}, 100)
    judge(found, "leads")
    judge(found, "second")
    assert leader(found) == "leads"
    assert judge(found, "bad > vote(bad)").rows == 20


@pytest.mark.slow
def test_the_cheaper_goes_on_where_cost_is_an_objective(referee: Make, fails_on: Make) -> None:
    # 2 calls against 1: what wins every row does not stop what is cheaper.
    scripts = {"good": fails_on(), "bad": fails_on(0, 1, 2)}
    for objectives, rows in (
        ([WinRateObjective()], 20),
        ([WinRateObjective(), DiversityObjective()], 20),
        ([WinRateObjective(), CallsObjective()], 100),
    ):
        found = referee(scripts, 100, objectives=objectives)
        judge(found, "good + good > select")
        record = judge(found, "bad > vote(bad)")
        assert (record.calls, record.rows) == (1, rows)


def test_what_is_worse_and_dearer_stops_with_several_objectives(
    referee: Make, fails_on: Make
) -> None:
    objectives = [WinRateObjective(), CallsObjective(), UsdObjective()]
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 100, objectives=objectives)
    judge(found, "good")
    assert judge(found, "bad + bad > vote(bad)").rows == 20


@pytest.mark.parametrize(
    ("n_rows", "stops_at"),
    [
        # A fifth of 99 is 19 and 2 fifths are 39: only the second look is at 20 rows or more.
        (99, 39),
        (100, 20),
        # 4 fifths of 24 are 19: nobody looks.
        (24, 24),
    ],
)
def test_nobody_stops_below_20_rows(
    referee: Make, fails_on: Make, n_rows: int, stops_at: int
) -> None:
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, n_rows)
    judge(found, "good")
    assert judge(found, "bad > vote(bad)").rows == stops_at


class Coins:
    """A evaluator of arms that are right with the same chance; nothing is asked."""

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
    examples, rng, wrong, names = rows("val", 90), random.Random(0), 0, "abcd"
    for _ in range(100):
        coins: Any = Coins(rng)
        found = TrialJudge(
            coins, examples, best_single="a", diversity=Disagreement(), n_arms=len(names)
        )
        wrong += any([judge(found, name).is_stopped_early for name in names])
    # At most 5 % of 100 races is 5; 10 is more than two standard deviations above.
    assert wrong <= 10


def test_the_leader_has_the_best_score_of_all_that_were_measured_fully(
    referee: Make, fails_on: Make
) -> None:
    def starts_well(prompt: str) -> str:
        number = int(prompt.split()[-1])
        return str(number) if number < 40 else "wrong"

    found = referee({"b": fails_on(0, of=10), "a": fails_on(), "flash": starts_well}, 100)
    assert leader(found) is None
    judge(found, "b")
    assert leader(found) == "b"
    # Of 40 rows flash has all and b 36; of the next 40 it has none and b 36: stopped at 80.
    flash = judge(found, "flash > vote(flash)")
    assert (flash.rows, flash.score) == (80, 0.5)
    assert leader(found) == "b"
    judge(found, "a")
    judge(found, "a > vote(a)")
    assert leader(found) == "a"


def test_nobody_leads_who_was_stopped(referee: Make, fails_on: Make) -> None:
    # good has the first 20 of 100 rows and no other; low has 5 of those, and stops with 5 of 20.
    def first(n: int) -> Script:
        return lambda prompt: str(k) if (k := int(prompt.split()[-1])) < n else "wrong"

    found = referee({"good": first(20), "low": first(5)}, 100)
    judge(found, "good")
    record = judge(found, "low > vote(low)")
    assert (record.rows, record.score) == (20, 0.25)
    assert found.leader is not None
    assert found.leader.score == 0.2


def test_nobody_leads_who_could_not_be_picked(referee: Make, fails_on: Make) -> None:
    # A call is 2 + 1 tokens at 1 usd: alone 3 usd, two of them 6.
    found = referee({"good": fails_on(), "bad": fails_on(0, 1, 2)}, 90, limits=Limits(usd=4))
    judge(found, "good + good > select")
    assert found.leader is None
    assert not judge(found, "bad > vote(bad)").is_stopped_early


def test_records_and_objectives_are_means_over_the_rows_that_were_measured(
    referee: Make, fails_on: Make
) -> None:
    # a is wrong on numbers 0 modulo 3, b on 1 modulo 3: with 3 rows, a wins 1, b wins 0, tie 2.
    objectives = [ScoreObjective(), WinRateObjective(), DiversityObjective()]
    found = referee({"a": fails_on(0), "b": fails_on(1)}, 3, objectives=objectives)
    record = judge(found, "b")
    assert (record.score, record.win_rate) == (pytest.approx(2 / 3), pytest.approx(0.5))
    both = judge(found, "a + b > vote(a)")
    # Texts differ on 0 and on 1, b's being known. a decides a tie, so b need not be asked: one
    # call of 3 tokens and, where it says "wrong 0x", 4.
    assert both.diversity == pytest.approx(2 / 3)
    assert (both.calls, both.usd) == (1, pytest.approx((4 + 3 + 3) / 3))
    # a + b: on 0 a is wrong and decides the tie; on 1 and 2 a is right
    blocks: list[tuple[list[float], list[float]]] = []
    vote = Architecture.parse(both.architecture)
    found.judge(vote, "model", number=2, report=lambda *block: blocks.append(block))
    assert blocks == [([0.0, 1.0, 1.0], [both.score, both.win_rate, both.diversity])]

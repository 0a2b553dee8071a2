"""What a vote loses that stops before it is decided, and the choice of what costs less."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.objectives import cheapest_as_good, stopping_vote
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import (
    CandidateScores,
    Choice,
    Evidence,
    architecture_of,
    gains_over,
)
from moa_dspy.optimize.votes import Ballots
from moa_dspy.optimize.votes.ballots import StopRule, stopped_scores
from moa_dspy.optimize.votes.weights import stop_early
from moa_dspy.waves import Waves
from tests.optimize.votes.worlds import world

LEADS: tuple[StopRule, ...] = tuple(("lead", share) for share in (0.25, 0.5, 0.75))


def test_three_right_of_five_by_hand() -> None:
    # Three rows of five members: all say 0; the first two differ; the first is alone.
    codes = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]], np.int16)
    scores = (codes == 0).astype(float)
    stops: list[StopRule] = [("lead", 0.2), ("lead", 0.5), ("agree", 2)]
    won, asked = stopped_scores(codes, scores, np.ones(5), [0, 1, 2, 3, 4], stops)
    # A fifth: one leads by 1 of 4. A half: two by 2 of 3; after 1 : 1 one by 1 of 2.
    assert asked[:3].tolist() == [[1, 1, 1], [2, 3, 3], [2, 5, 4]]
    # The second row: 0 has two of three, and loses to 1 with three of five.
    assert won.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 1]]


def test_leads_over_many_rows_are_those_of_the_waves() -> None:
    rng = random.Random(0)
    for n in range(2, 8):
        weights = [rng.choice([1, 1, 2, 3]) for _ in range(n)]
        rows = [[rng.choice([-1, 0, 0, 1, 2]) for _ in range(n)] for _ in range(200)]
        codes = np.array(rows, np.int16).T
        scores = np.array([[rng.random() for _ in row] for row in rows]).T
        won, asked = stopped_scores(codes, scores, np.array(weights), range(n), LEADS)
        for i, (_, share) in enumerate(LEADS):
            waves = Waves(tuple(weights), tuple(range(n)), lead=Fraction(share))
            for column, row in enumerate(rows):
                n_asked = _asked_by_waves(waves, row)
                assert asked[i, column] == n_asked
                assert won[i, column] == _vote(row, weights, scores[:, column], n_asked)
        for column, row in enumerate(rows):
            assert won[-1, column] == _vote(row, weights, scores[:, column], n)
            # The whole vote asks until the rest cannot even draw an earlier answer level.
            assert asked[-1, column] == _asked_by_waves(Waves(tuple(weights), tuple(range(n))), row)


def _asked_by_waves(waves: Waves, row: list[int]) -> int:
    said: dict[int, int | None] = {}
    while due := waves.due(said):
        said |= {p: None if row[p] < 0 else row[p] for p in due}
    return len(said)


def _vote(row: list[int], weights: list[int], scores: np.ndarray, n: int) -> float:
    """Return the score of the answer with most weight of the first ``n``, in plain Python."""
    totals: dict[int, int] = {}
    for code, weight in zip(row[:n], weights[:n], strict=True):
        if code >= 0:
            totals[code] = totals.get(code, 0) + weight
    # A dict keeps the order in which answers were given: the first of equals wins.
    best = max(totals, key=totals.__getitem__, default=None)
    return 0.0 if best is None else float(scores[row.index(best)])


def fifths(n_rows: int = 60) -> Ballots:
    """Five agents, each wrong on its own fifth of the rows, with an answer of its own."""
    codes = np.zeros((5, n_rows), np.int16)
    for agent in range(5):
        codes[agent, agent::5] = 1
    return Ballots(tuple("abcde"), codes, (codes == 0).astype(np.float64))


def evidence_of(ballots: Ballots, *more: CandidateScores) -> Evidence:
    singles = dict(zip(ballots.agents, ballots.scores, strict=True))
    measured = [
        CandidateScores(Architecture.single(name), scores, calls=1, usd=0.0)
        for name, scores in singles.items()
    ]
    return Evidence(
        singles=singles,
        measured=(*measured, *more),
        ballots=ballots,
        widths=(2, len(ballots.agents)),
        admits=lambda members: True,
        shrink=lambda *_: ([], []),
        seed=0,
    )


def test_where_nothing_is_lost_the_fewest_are_asked() -> None:
    evidence = evidence_of(fifths())
    vote = architecture_of(tuple("abcde"), evidence.ranking)
    stops: list[StopRule] = [("lead", 0.6), ("lead", 0.5), ("agree", 2)]
    # Wrong answers are never shared, so two of one answer are right. A lead of a half asks two,
    # and a third where they differ; the others go on to two more.
    found = stopping_vote(evidence, vote, stops, min_gain=0.03)
    assert found == Architecture.parse("a + b + c + d + e > vote(a; lead=0.5)")
    (group,) = [stopping_vote(evidence, vote, [("agree", 2)], min_gain=0.03)]
    assert group == Architecture.parse("a + b + c + d + e > vote(a; agree=2)")


def test_a_rule_that_loses_is_not_admitted() -> None:
    # One agent decides at a fifth of the weight to come, and is wrong on a fifth of the rows.
    evidence = evidence_of(fifths())
    vote = architecture_of(tuple("abcde"), evidence.ranking)
    assert stopping_vote(evidence, vote, [("lead", 0.2)], min_gain=0.03) is None
    found = stopping_vote(evidence, vote, [("lead", 0.2)], min_gain=1.0)
    assert found is None  # a sixth of 100 points is less than a fifth
    # Half of two are one, and nothing is spared over those who cannot change the answer.
    pair = architecture_of(("a", "b"), evidence.ranking)
    assert stopping_vote(evidence, pair, LEADS, min_gain=0.03) is None


def test_where_all_are_asked_at_once_only_a_group_that_agrees_saves_calls() -> None:
    # Without an early stop the whole vote asks five. Wrong answers are never shared, so two that
    # agree are right, as on three fifths of the rows; on the others all five are asked.
    ballots = fifths()
    evidence = evidence_of(ballots)
    vote = architecture_of(tuple("abcde"), evidence.ranking)
    stops: list[StopRule] = [("lead", 0.5), ("agree", 2)]
    assert stopping_vote(evidence, vote, stops[:1], min_gain=0.03, asks_all=True) is None
    found = stopping_vote(evidence, vote, stops, min_gain=0.03, asks_all=True)
    assert found == Architecture.parse("a + b + c + d + e > vote(a; agree=2)")
    inputs = (ballots.codes, ballots.scores, np.ones(5), range(5), stops[1:])
    won, asked = stopped_scores(*inputs, asks_all=True)
    assert asked[:, :5].tolist() == [[5, 5, 2, 2, 2], [5] * 5]
    assert won.tolist() == stopped_scores(*inputs)[0].tolist()


def test_a_group_that_does_not_begin_with_the_decider_is_not_judged_on_redrawn_answers() -> None:
    # The program asks a and b first, and c decides ties.
    measured = [
        CandidateScores(Architecture.parse(text), np.ones(60), calls=2, usd=0.0)
        for text in ("a + b + c + d > vote(c; agree=2)", "a + b + c + d > vote(a; agree=2)")
    ]
    evidence = evidence_of(fifths(), *measured).counted(6_000)
    gains = gains_over(evidence, ("a",), pseudo=6_000)
    assert [entry.architecture in gains for entry in measured] == [False, True]


def test_larger_groups_and_leads_lose_less_and_ask_more() -> None:
    ballots = world(9, 200, seed=3)
    stops: list[StopRule] = [("agree", 2), ("agree", 3), ("agree", 4), *LEADS]
    found = stop_early(ballots, ballots.agents, stops, {}, seed=0)
    assert list(found.calls[:3]) == sorted(found.calls[:3])
    assert list(found.calls[3:]) == sorted(found.calls[3:])
    assert list(found.errors[3:]) == sorted(found.errors[3:], reverse=True)
    assert found.calls.max() <= found.exact_calls
    again = stop_early(ballots, ballots.agents, stops, dict.fromkeys(ballots.agents, 2), seed=0)
    assert np.array_equal(again.gains, found.gains)


def record(arch: Architecture, calls: float, usd: float | None = None) -> TrialRecord:
    return TrialRecord(0, str(arch), "votes", 0.5, 0.5, 0.0, calls, usd, 1.0, 60, False)


@pytest.mark.parametrize(("cost", "has_found"), [("calls", True), ("usd", False)])
def test_the_cheapest_that_is_no_worse_than_the_pick(cost: str, has_found: bool) -> None:
    ballots = fifths()
    ones, right = ballots.scores, np.ones(60)
    ranking = evidence_of(ballots).ranking
    vote = architecture_of(tuple("abcde"), ranking)
    stops = Architecture.parse(f"{' + '.join('abcde')} > vote(a; lead=0.5)")
    hasty = Architecture.parse(f"{' + '.join('abcde')} > vote(a; lead=0.2)")
    evidence = evidence_of(
        ballots,
        CandidateScores(vote, right, calls=3.6, usd=0.0),
        CandidateScores(stops, right, calls=2.4, usd=0.0),
        CandidateScores(hasty, ones[0], calls=1.0, usd=0.0),
    )
    measured = {
        candidate.architecture: record(candidate.architecture, candidate.calls)
        for candidate in evidence.measured
    }
    choice = Choice(vote, vote, (), ranking)
    found = cheapest_as_good(evidence, choice, measured, cost=cost, min_gain=0.03, pseudo=3000)
    # Neither a single agent, which is wrong on a fifth, nor who asks one; an unknown cost is none.
    assert found == (measured[stops] if has_found else None)
    itself = Choice(stops, vote, (), ranking)
    assert cheapest_as_good(evidence, itself, measured, cost="calls", min_gain=0.03) is None

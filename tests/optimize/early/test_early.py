from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.optimize.early_facts import EarlyFacts, StudyEstimate, early_facts
from moa_dspy.optimize.votes import Ballots

STRONG = [1.0] * 80 + [0.0] * 20
WEAK = [0.0] * 60 + [1.0] * 30 + [0.0] * 10


def test_facts_of_two_agents_counted_by_hand() -> None:
    found = early_facts({"weak": WEAK, "strong": STRONG})
    # strong solves rows 0-79, weak 60-89: together 90, of which 10 only weak.
    assert (found.leader, found.leader_score, found.runner_up) == ("strong", 0.8, "weak")
    assert found.ceiling == pytest.approx(0.9)
    assert found.rescued == pytest.approx(0.1)
    assert found.unsolved.estimate == pytest.approx(0.1)
    assert found.lead is not None
    assert found.lead.estimate == pytest.approx(0.5)
    assert found.is_dominated
    assert found.vote_ceiling is None
    assert found.n_rows == 100


def test_equal_agents_do_not_dominate_and_the_first_leads() -> None:
    found = early_facts({"a": STRONG, "b": STRONG[::-1]})
    assert found.leader == "a"
    assert not found.is_dominated
    assert found.rescued == pytest.approx(0.2)


def test_a_leader_must_lead_every_agent() -> None:
    found = early_facts({"weak": WEAK, "strong": STRONG, "twin": STRONG})
    assert found.runner_up == "twin"
    assert not found.is_dominated


def test_one_agent_has_no_rival() -> None:
    found = early_facts({"a": STRONG})
    assert (found.runner_up, found.lead, found.rescued) == (None, None, 0.0)
    assert not found.is_dominated
    assert found.ceiling == found.leader_score


def test_a_vote_is_bounded_where_there_are_ballots() -> None:
    scores = {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0]}
    answers = {name: [("r" if s else "x",) for s in row] for name, row in scores.items()}
    found = early_facts(scores, ballots=Ballots.of(answers, scores), max_width=3)
    assert found.ceiling == 1.0
    # Two voters tie on two rows, and the one that decides is right on one of them.
    assert found.vote_ceiling == pytest.approx(1 / 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 20), st.randoms(use_true_random=False))
def test_facts_are_ordered_and_blind_to_the_order_of_agents(
    n: int, rows: int, rng: random.Random
) -> None:
    scores = {name: [rng.choice([0.0, 0.5, 1.0]) for _ in range(rows)] for name in "abcde"[:n]}
    answers = {name: [(str(score),) for score in row] for name, row in scores.items()}
    found = early_facts(scores, ballots=Ballots.of(answers, scores), max_width=3)
    assert found.vote_ceiling is not None
    assert found.leader_score <= found.vote_ceiling + 1e-6
    assert found.vote_ceiling <= found.ceiling + 1e-6
    assert found.rescued + found.unsolved.estimate <= 1
    names = sorted(scores, reverse=True)
    turned = early_facts({name: scores[name] for name in names})
    assert (turned.ceiling, turned.unsolved) == (found.ceiling, found.unsolved)
    assert turned.leader_score == found.leader_score


def test_facts_survive_json() -> None:
    full = early_facts({"weak": WEAK, "strong": STRONG}, estimate=StudyEstimate(1, 0.5, 2.0, "usd"))
    alone = early_facts({"a": STRONG})
    for facts in (full, alone):
        assert EarlyFacts.from_json(facts.to_json()) == facts


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(MetricError, match="same examples"):
        early_facts({"a": [1.0], "b": [1.0, 0.0]})

from __future__ import annotations

import pytest

from moa_dspy.diversity import Disagreement
from moa_dspy.optimize.criteria import Criteria

# Four examples. a is right on all, b on half, c on a quarter; a and c never agree.
SCORES = {"a": [1, 1, 1, 1], "b": [1, 1, 0, 0], "c": [0, 0, 0, 1]}
TEXTS = {
    "a": ["1", "2", "3", "4"],
    "b": ["1", "2", "x", "y"],
    "c": ["u", "v", "x", "w"],
}


def criteria(weight: float = 0.25) -> Criteria:
    return Criteria(SCORES, TEXTS, metric=Disagreement(), weight=weight)


def test_performance_is_the_mean_of_the_members_and_diversity_that_of_the_pairs() -> None:
    # Disagreement: ab 2 of 4, ac 4 of 4, bc 3 of 4; scores 1, 1/2, 1/4.
    found = criteria().judge(["a", "b", "c"])
    assert found.performance == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert found.diversity == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert found.layer == ("a", "b", "c")


def test_copies_add_no_diversity() -> None:
    # Pairs of a, a, b: aa 0, ab 1/2, ab 1/2
    assert criteria().judge(["a", "a", "b"]).diversity == pytest.approx(1 / 3)
    assert criteria().judge(["a", "a"]).diversity == 0


def test_one_seat_has_no_pair() -> None:
    assert (criteria().judge(["b"]).performance, criteria().judge(["b"]).diversity) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("weight", "order"),
    [
        # 0: ab 0.75, ac 0.625, bc 0.375
        (0.0, ["ab", "ac", "bc"]),
        # 0.25: ab 0.75 + 0.125 = 0.875, ac 0.625 + 0.25 = 0.875, bc 0.375 + 0.1875: names decide
        (0.25, ["ab", "ac", "bc"]),
        # 1: ab 1.25, ac 1.625, bc 1.125
        (1.0, ["ac", "ab", "bc"]),
    ],
)
def test_rank_weighs_performance_against_diversity(weight: float, order: list[str]) -> None:
    ranked = criteria(weight).rank(["bc", "ac", "ab"])
    assert ["".join(candidate.layer) for candidate in ranked] == order


def test_best_agents_come_first_and_equal_ones_in_the_given_order() -> None:
    scores = {"z": [1.0, 0.0], "b": [1.0, 1.0], "a": [0.0, 1.0]}
    texts = {name: ["", ""] for name in scores}
    assert Criteria(scores, texts, metric=Disagreement()).best_agents() == ["b", "z", "a"]

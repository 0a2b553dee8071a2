from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import StudyError
from moa_dspy.optimize.allocation import Allocation, adjusted_means, contested, ranking


class Agents:
    """Agents that are right with a known chance; remembers who was asked what."""

    def __init__(self, chances: dict[str, float], n_rows: int) -> None:
        generator = np.random.default_rng(0)
        self.scores = {
            name: (generator.random(n_rows) < chance).astype(float)
            for name, chance in chances.items()
        }
        self.asked: list[tuple[str, int]] = []

    def ask(self, name: str, places: Sequence[int]) -> list[float]:
        self.asked += [(name, place) for place in places]
        return [float(self.scores[name][place]) for place in places]


@given(n_agents=st.integers(1, 12), n_rows=st.integers(1, 70), share=st.floats(0.34, 1))
def test_no_cell_is_asked_twice_and_the_share_is_kept(
    n_agents: int, n_rows: int, share: float
) -> None:
    agents = Agents({f"m{i}": 0.5 for i in range(n_agents)}, n_rows)
    found = Allocation(share).run(list(agents.scores), n_rows, agents.ask)
    assert len(set(agents.asked)) == len(agents.asked) == sum(map(len, found.values()))
    # What all agents get at first, rounded up, comes in any case.
    first = n_agents * -(-n_rows // 3)
    assert first <= len(agents.asked) <= max(share * n_agents * n_rows, first)


def test_a_full_share_measures_everything() -> None:
    agents = Agents({"a": 0.9, "b": 0.2}, 30)
    found = Allocation(1.0).run(["a", "b"], 30, agents.ask)
    assert {name: list(by_place.values()) for name, by_place in found.items()} == {
        name: values.tolist() for name, values in agents.scores.items()
    }


def test_the_leader_gets_all_rows_and_those_far_from_a_place_the_fewest() -> None:
    # Of the best 3: c and d stand at the end of the vote; f to j are far below it.
    chances = {"a": 0.95, "b": 0.7, "c": 0.52, "d": 0.48} | dict.fromkeys("fghij", 0.05)
    agents = Agents(chances, 120)
    found = Allocation(0.6, n_best=3).run(list(chances), 120, agents.ask)
    assert len(found["a"]) == 120
    assert all(len(found[name]) == 40 for name in "fghij")
    assert min(len(found["c"]), len(found["d"])) > 100
    assert ranking(found, 120)[:2] == ("a", "b")


def test_who_stands_next_to_the_cut_is_asked_before_who_does_not() -> None:
    # Means 1, .6, .4, 0 on the same rows, 2 members: the cut is .5, the middle of the first .8
    scores = np.array([[1.0] * 10, [1.0] * 6 + [0.0] * 4, [1.0] * 4 + [0.0] * 6, [0.0] * 10])
    assert contested(scores, n_best=2) == [0, 1, 2, 3]
    # c on half the rows is less clear than b on all of them, at the same distance.
    scores[2] = [1.0, 1.0, 0.0, 0.0, 0.0, *[np.nan] * 5]
    assert contested(scores, n_best=2)[:2] == [0, 2]


def test_harder_rows_are_allowed_for() -> None:
    # b is right as often as a on the rows of both, and was not asked the hard ones.
    a = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    b = [1.0, 0.0, 1.0, 0.0, *[np.nan] * 4]
    means = adjusted_means(np.array([a, b]))
    assert means[0] == pytest.approx(means[1])
    assert means[0] == pytest.approx(0.25)


def test_full_rows_give_plain_means() -> None:
    scores = np.random.default_rng(0).random((5, 40))
    assert adjusted_means(scores) == pytest.approx(scores.mean(axis=1))


def test_refuses_a_share_that_all_agents_alone_would_use() -> None:
    with pytest.raises(StudyError, match=r"`share` must be above 0\.33 .* but got 0\.3 and 7\."):
        Allocation(0.3)
    with pytest.raises(StudyError, match=r"at least 1, but got 0\.5 and 0\."):
        Allocation(0.5, n_best=0)

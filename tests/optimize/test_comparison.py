"""The comparison on test where a budget ends in it, and what it says of what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Ledger
from moa_dspy.data import RecordedResponses
from moa_dspy.data.splits import make_splits
from moa_dspy.errors import BudgetReachedError
from moa_dspy.optimize import ModelSearch
from moa_dspy.optimize.comparison import Baseline, compare_on_test, compared_baselines
from moa_dspy.optimize.metric import Outcome
from moa_dspy.optimize.progress import Progress, Snapshot
from moa_dspy.optimize.result import ComparedSystems
from moa_dspy.pool import Pool
from moa_dspy.testing import recorded_pool, scripted_pool

Make = Callable[..., Any]
ENDED = "The budget of 9 calls is reached."
VOTE = Architecture.parse("a + b > vote(a)")
POOL = scripted_pool({"a": str, "b": str}, temperature=0.7)


class Ending:
    """Measures all rows of val, and of test those in ``reach``, more at each request."""

    judging = None

    def __init__(self, reach: Mapping[str, Sequence[int]]) -> None:
        self.left = {name: list(numbers) for name, numbers in reach.items()}
        self.n_known: dict[str, int] = {}

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        n = self.n_known.get(str(architecture), 0)
        return all(r.id.startswith("val") or int(r.id.split("-")[1]) < n for r in rows)

    def measure(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> list[Outcome]:
        if not self.knows(architecture, rows):
            left = self.left.get(str(architecture))
            self.n_known[str(architecture)] = left.pop(0) if left else 0
        if not self.knows(architecture, rows):
            raise BudgetReachedError(ENDED)
        # Even numbers are solved: of 1 row 100 %, of 2 rows 50 %.
        return [Outcome(float(int(r.id.split("-")[1]) % 2 == 0), ("x",), 1, 0.0, 1.0) for r in rows]


def compared(
    rows: Make, pick: Architecture, reach: Mapping[str, Sequence[int]], *, shows: Any = None
) -> ComparedSystems:
    options = ModelSearch(lambda *_: 1.0, POOL, n_trials=4).options
    progress = Progress(shows or (lambda _: None), Ledger(), 4)
    splits = make_splits([], rows("val", 10), rows("test", 10), seed=0)
    single, none = Architecture.single("a"), Baseline("random", None, "no trial")
    baselines = compared_baselines(options, ["a", "b"], pick, single, none)
    return compare_on_test(
        options,
        Ending(reach),  # type: ignore[arg-type]  # measures from a list
        splits,
        progress,
        baselines,
        ["a", "b"],
        may_announce=False,
    )


def test_rows_that_a_budget_left_out_are_counted(rows: Make) -> None:
    found = compared(rows, VOTE, {"a": [10], str(VOTE): [3]}).test
    assert found["best_single"].part == "" == found["self_moa"].part
    assert found["pick"].part == "3 of 10 rows"
    assert found["pick"].note == f"3 of 10 rows: {ENDED}"
    assert (found["pick"].n_rows, found["pick"].n_missing) == (3, 7)


def test_a_pick_that_is_the_best_single_agent_has_one_score(rows: Make) -> None:
    # The request for the pick finds more rows than that for the best single agent before it.
    found = compared(rows, Architecture.single("a"), {"a": [1, 2]}).test
    assert found["pick"].score == found["best_single"].score == 0.5
    assert found["pick"].part == found["best_single"].part == "2 of 10 rows"


@pytest.mark.parametrize(
    ("pick", "reach", "said"),
    [
        (
            "a",
            {},
            f"Keep the single model: the search chose a; no test row was answered by a. {ENDED}",
        ),
        # The single model has answered: it is the two that have no row in common.
        (str(VOTE), {"a": [10]}, f"no test row was answered by both {VOTE} and a; about "),
    ],
)
def test_without_common_rows_it_is_said_which_are_missing(
    rows: Make, pick: str, reach: Mapping[str, Sequence[int]], said: str
) -> None:
    assert said in compared(rows, Architecture.parse(pick), reach).verdict.text


def test_a_system_that_is_named_as_its_agent_is_named_once(rows: Make) -> None:
    shown: list[Snapshot] = []
    compared(rows, VOTE, {"a": [10], str(VOTE): [10], "b": [10]}, shows=shown.append)
    # The oracle measures each agent under its own name.
    assert [s.current for s in shown][-2:] == ["a", "b"]
    assert shown[1].current == f"pick: {VOTE}"


@pytest.mark.parametrize(
    ("pool", "note"),
    [
        (
            recorded_pool(RecordedResponses({"a": {"1": "x"}, "b": {"1": "y"}}, {"1": "Why?"})),
            "the table has one answer of a per question",
        ),
        (
            scripted_pool({"a": str, "b": str}, temperature=0.0),
            "a is greedy: asked as often as the pick, it says the same each time",
        ),
    ],
)
def test_only_an_agent_of_known_temperature_is_called_greedy(pool: Pool, note: str) -> None:
    options = ModelSearch(lambda *_: 1.0, pool, n_trials=4).options
    single, none = Architecture.single("a"), Baseline("random", None)
    found = compared_baselines(options, ["a", "b"], VOTE, single, none)
    assert {row.name: row.note for row in found}["self_moa"] == note

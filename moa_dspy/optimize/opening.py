"""What every study asks first, and what it must keep back for its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.errors import BudgetReachedError, PoolError, StudyError
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.measure import Measurer
from moa_dspy.optimize.outcome import Outcome

N_PROBED: Final = 3
"""Questions that an agent may fail at the start: one may be too long for it, or be filtered."""


def probe(context: SearchContext, measurer: Measurer, rows: Sequence[dspy.Example]) -> None:
    """Ask every agent one question: a dead agent, or a broken metric, ends the study here.

    Args:
        context: Names the agents.
        measurer: Asks them.
        rows: Of val; one that fails on the first is asked the next, up to three.

    Raises:
        PoolError: If an agent answers none, before the next one is asked.
    """
    for name in context.space.agents:
        context.show("probe", current=name)
        failures = []
        for row in rows[:N_PROBED]:
            (outcome,) = measurer.measure(Architecture.single(name), [row])
            if outcome.failure is None:
                break
            failures.append(outcome.failure)
        else:
            raise PoolError(f"Agent {name!r} does not answer: {failures[0]}")


def measure_singles(
    context: SearchContext, measurer: Measurer, rows: Sequence[dspy.Example]
) -> dict[str, tuple[Outcome, ...]]:
    """Return the outcomes of each agent alone: layer 1 of every architecture.

    Raises:
        StudyError: If the budget ends before all are measured.
    """
    found = {}
    measurer.announce(map(Architecture.single, context.space.agents), rows)
    for name in context.space.agents:
        context.show("single agents", current=name)
        try:
            found[name] = measurer.measure(Architecture.single(name), rows)
        except BudgetReachedError as error:
            raise StudyError(
                f"{error} Single agents must be measured first; allow more, or fewer rows."
            ) from error
    return found


def test_share(
    budget: Budget,
    singles: Mapping[str, Sequence[Outcome]],
    *,
    n_test: int,
    n_threads: int,
    possible_calls: Iterable[float],
) -> float:
    """Return the part of the budget that the test needs, in [0, 1].

    On every test row the best single agent and the pick are asked, then, as far as it
    goes, all agents and the fixed rivals. It is computed from what single agents cost
    in production terms: stored answers on val say nothing about the test.

    Args:
        budget: The limits.
        singles: Outcomes of each agent alone.
        n_test: Test rows.
        n_threads: Examples measured at the same time; it scales wall time.
        possible_calls: Calls per row of each architecture that may become the pick.
    """
    outcomes = [outcome for found in singles.values() for outcome in found]
    n_asked = sum(outcome.calls for outcome in outcomes)
    needed = n_test * max(1.5 * len(singles), 1 + max(possible_calls, default=0))
    per_call = {
        "calls": 1.0,
        "tokens": sum(outcome.tokens for outcome in outcomes) / max(n_asked, 1),
        "usd": sum(outcome.usd for outcome in outcomes) / max(n_asked, 1),
        "seconds": sum(outcome.seconds for outcome in outcomes) / max(n_asked, 1) / n_threads,
    }
    shares = [
        needed * cost / limit
        for name, cost in per_call.items()
        if (limit := getattr(budget, name)) is not None
    ]
    return min(1.0, max(shares, default=0.0))

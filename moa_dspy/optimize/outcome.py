"""What one architecture came to on one example, and what follows for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The raw facts of one architecture on one example.

    Attributes:
        score: The metric, in [0, 1]; 0 where nothing was answered.
        layer: Texts that the last step read; of a single agent, its answer.
        calls: Requests, stored ones included.
        usd: In production terms.
        seconds: Critical path, in production terms.
        tokens: Prompt and completion tokens.
        failure: Why nothing was answered; None when something was.
        ballot: What a vote counts of a single agent's answer; None where there is no such thing.
    """

    score: float
    layer: tuple[str, ...]
    calls: int
    usd: float
    seconds: float
    tokens: int = 0
    failure: str | None = None
    ballot: tuple[str, ...] | None = None


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the metric per example."""
    return [outcome.score for outcome in outcomes]


def means(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return calls, usd, seconds and the share of failures per question."""
    n = len(outcomes)
    return {
        "calls": sum(o.calls for o in outcomes) / n,
        "usd": sum(o.usd for o in outcomes) / n,
        "seconds": sum(o.seconds for o in outcomes) / n,
        "failures": sum(o.failure is not None for o in outcomes) / n,
    }

"""The trials of a study: Optuna asks for architectures, each different one is measured once."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError, UnknownCallError
from moa_dspy.optimize.objectives import Objective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.space.space import SearchSpace

_MOST_REPEATS = 4
"""Known architectures in a row after which a new one is drawn instead of asked for.

An ask takes 10 ms after 100 trials and 40 after 1,000: few, so that a trial takes no longer
to choose than a model takes to answer.
"""

MOST_DRAWS = 2_000
"""Known architectures drawn in a row after which the space counts as exhausted."""

Try = Callable[[Architecture, str], TrialRecord]
"""Measures an architecture; the text says who proposed it."""


def make_study(objectives: Sequence[Objective], *, seed: int, sampler: Any = None) -> optuna.Study:
    """Return an in-memory study: a sampler that must not wait for a database after every ask."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        directions=[objective.direction for objective in objectives],
        sampler=sampler or _tpe(seed),
    )


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    # Without groups only what all trials share, the kind, is sampled jointly: five of six
    # proposals were then architectures that the study knew.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


@dataclass(slots=True)
class Trials:
    """Runs the search; ``records`` holds each measured architecture once, in order.

    Args:
        study: Made by ``make_study``.
        space: What may be proposed.
        ranking: Single agents, best first; it repairs layers that are too narrow or wide.
        canonical: Gives an architecture its final form, such as who decides ties.
        measure: Measures, and says what was found.
        values: Turns a record into the study's objective values.
        seed: Of the draws that follow when the sampler only repeats itself.
        announce: Is told of several that will be measured, before the first is.
        propose: Says what to measure next, or None; without it the study's sampler does.
    """

    study: optuna.Study
    space: SearchSpace
    ranking: Sequence[str]
    canonical: Callable[[Architecture], Architecture]
    measure: Try
    values: Callable[[TrialRecord], Sequence[float]]
    seed: int
    announce: Callable[[Sequence[Architecture]], None] = lambda _: None
    propose: Callable[[], Architecture | None] | None = None
    records: dict[Architecture, TrialRecord] = field(default_factory=dict)
    stopped_by: str | None = None

    def open_with(
        self, architectures: Iterable[Architecture], *, origin: str, limit: int | None = None
    ) -> None:
        """Measure given architectures now, inside the space or not; the sampler learns of them.

        Args:
            architectures: In the order of measuring; known ones are passed over.
            origin: Who proposed them.
            limit: Number of records at which to stop.
        """
        architectures = list(architectures)
        self._announce(architectures, limit)
        for architecture in architectures:
            if self.stopped_by or (limit is not None and len(self.records) >= limit):
                return
            canonical_form = self.canonical(architecture)
            if canonical_form in self.records:
                continue
            record = self._try(canonical_form, origin)
            params = self.space.params(architecture)
            if record is None or params is None:
                continue
            self.study.enqueue_trial(params)
            trial = self.study.ask()
            self.space.suggest(trial, self.ranking)
            self._tell(trial, record)

    def _announce(self, architectures: Sequence[Architecture], limit: int | None) -> None:
        canonical_form = dict.fromkeys(map(self.canonical, architectures))
        fresh = [one for one in canonical_form if one not in self.records]
        n_left = len(fresh) if limit is None else max(0, limit - len(self.records))
        if len(fresh) > 1 and not self.stopped_by:
            self.announce(fresh[:n_left])

    def run(self, n_trials: int) -> None:
        """Ask and measure until ``n_trials`` architectures are known, or none is left, or paid."""
        rng = random.Random(f"trials-{self.seed}")
        if self.propose is not None:
            self._run_proposed(n_trials, rng)
            return
        repeats = 0
        waiting: deque[Architecture] = deque()
        while len(self.records) < n_trials and not self.stopped_by:
            if repeats >= _MOST_REPEATS:
                fresh = self._draw(rng)
                if fresh is None:
                    return
                waiting.append(fresh)
                repeats = 0
            if waiting:
                self.open_with([waiting.popleft()], origin="random")
                continue
            trial = self.study.ask()
            architecture = self.canonical(self.space.suggest(trial, self.ranking))
            is_new = architecture not in self.records
            record = self._try(architecture, "sampler") if is_new else None
            if record is None:
                # What is known was told already: told again it would weigh more, and slow the next.
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                repeats += 1
            else:
                self._tell(trial, record)
                repeats = 0

    def _run_proposed(self, n_trials: int, rng: random.Random) -> None:
        """As ``run``; the study is told what was proposed to it, and what came of that."""
        assert self.propose is not None
        while len(self.records) < n_trials and not self.stopped_by:
            proposed, origin = self.propose(), "model"
            if proposed is None or self.canonical(proposed) in self.records:
                proposed, origin = self._draw(rng), "random"
            if proposed is None:
                return
            self.open_with([proposed], origin=origin)

    def _draw(self, rng: random.Random) -> Architecture | None:
        for _ in range(MOST_DRAWS):
            drawn = self.canonical(self.space.draw(rng))
            if drawn not in self.records:
                return drawn
        return None

    def _try(self, architecture: Architecture, origin: str) -> TrialRecord | None:
        try:
            record = self.measure(architecture, origin)
        except BudgetReachedError as error:
            self.stopped_by = str(error)
            return None
        except UnknownCallError:
            # A rival that nobody recorded is left out; a hole in the user's own space is an error.
            if origin == "baseline" and not self.space.holds(architecture):
                return None
            raise
        self.records[architecture] = record
        return record

    def _tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        trial.set_user_attr("architecture", record.architecture)
        trial.set_user_attr("rows", record.rows)
        trial.set_user_attr("score", record.score)
        self.study.tell(trial, list(self.values(record)))

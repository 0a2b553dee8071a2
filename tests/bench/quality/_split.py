"""One draw of the dev questions: what everybody chose, and what it is worth elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

import numpy as np

from moa_dspy.optimize.votes import Ballots
from moa_dspy.optimize.votes.weights import CrossFittedVotes, cross_fit
from tests.bench.quality._baselines import BASELINES, WIDEST, Dev, before
from tests.bench.quality._folder import Answers, Indices, Scores, read_folder
from tests.bench.quality._halving import halving
from tests.bench.quality._samplers import SAMPLERS, chance
from tests.bench.quality._search import N_TEST, N_TRAIN, Found, search
from tests.bench.quality._votes import (
    MOST,
    Weights,
    agreed,
    agreeing_scores,
    every_vote,
    vote_scores,
    weights_of,
)

FIRST_JUDGED: Final = 1_700
"""Questions before it are for whoever chooses, also for those who need more labels than others."""
FIRST_SEED: Final = 1_000
N_FIXED: Final = 5
"""Models of the set that nobody chose: it shows how much easier the dev questions are."""
Z: Final = 1.96
"""Standard errors to each end of a 95 % interval."""
Facts = dict[str, float]
read = lru_cache(maxsize=3)(read_folder)


@dataclass(frozen=True, slots=True)
class Task:
    """One pool, one dev size, one draw.

    Attributes:
        folder: Of the recorded answers.
        pool: "all", "middle" or "sub:SEED", a random sub-pool.
        dev: Labelled questions.
        split: Number of the draw.
        has_rivals: Whether the baselines choose as well.
        has_samplers: Whether Optuna's samplers do.
    """

    folder: Path
    pool: str
    dev: int
    split: int
    has_rivals: bool = True
    has_samplers: bool = True


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came of a task.

    Attributes:
        task: It.
        scores: Mean score on the judged questions by name, "ours" and "optimum" among them.
        facts: Of our search.
        halving: Scores of rules that saw more labels.
        errors: Standard error of each minus ours, of the sample of judged questions.
        verdict: Of our search.
        pool: Names of the models.
    """

    task: Task
    scores: dict[str, float]
    facts: Facts
    halving: Facts
    errors: dict[str, float]
    verdict: str
    pool: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """The answers of a pool, parted by one permutation."""

    pool: Answers
    order: Indices
    n: int

    @classmethod
    def of(cls, task: Task) -> Self:
        pool = read(task.folder).pool(task.pool)
        order = np.random.default_rng(FIRST_SEED + task.split).permutation(pool.n_questions)
        return cls(pool, order, task.dev)

    @property
    def start(self) -> int:
        return first_judged(self.pool.n_questions)

    @property
    def judged(self) -> Answers:
        return self.pool.at(self.order[self.start :])

    @property
    def dev(self) -> Dev:
        return Dev.of(self.pool.at(self.order[: self.n]))

    def search(self) -> Found:
        # Half of a small folder's judged questions at most are the search's own test.
        n_others = min(N_TRAIN + N_TEST, (len(self.order) - self.start) // 2)
        others = self.order[self.start : self.start + n_others]
        return search(self.pool, self.order[: self.n], others)

    @property
    def best_first(self) -> Answers:
        """The judged answers, in the order of the dev scores."""
        return self.judged.of([self.pool.names.index(name) for name in self.dev.best_first.names])

    def weights(self, members: dict[int, float]) -> Weights:
        """Return what each model of ``best_first`` counts."""
        names = self.dev.best_first.names
        return tuple(members.get(self.pool.names.index(name), 0.0) for name in names)


def run(task: Task) -> Drawn:
    """Choose on the dev questions, judge on those after the first 1,700."""
    draw = Draw.of(task)
    found, pool = draw.search(), draw.pool
    pick = draw.weights(found.pick)
    rows = {"ours": vote_scores(draw.best_first, pick)}
    rows["recommended"] = vote_scores(draw.best_first, draw.weights(found.recommended))
    rows |= _rivals(task, draw, pick) if task.has_rivals else {}
    truth = rows["ours"]
    own = {"control": _control(draw), "models": pool.n_models, **_stopped(draw, pick)}
    return Drawn(
        task,
        scores={name: float(scores.mean()) for name, scores in rows.items()},
        facts=_facts(found, truth) | own | _calibration(draw),
        halving=_halving(draw) if task.has_rivals else {},
        errors={name: error(scores - truth) for name, scores in rows.items()},
        verdict=found.verdict,
        pool=pool.names,
    )


def error(values: Scores) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def first_judged(n_questions: int) -> int:
    """Return after how many questions the judged ones begin: 1,700, or a third of fewer."""
    return FIRST_JUDGED if n_questions >= 1.5 * FIRST_JUDGED else n_questions // 3


def _facts(found: Found, truth: Scores) -> Facts:
    true = float(truth.mean())
    # The interval is for the score on all questions there are, and the truth is of a sample.
    low, high = (
        found.expected
        + np.sign(end - found.expected) * np.hypot(end - found.expected, Z * error(truth))
        for end in (found.low, found.high)
    )
    return {
        "reported_minus_truth": found.expected - true,
        "is_covered": float(low <= true <= high),
        "optimism": found.val - true,
        "optimism_reported": found.optimism,
        "members": len(found.pick),
        "calls": found.calls,
        "cells": found.cells,
        "seconds": found.seconds,
    }


def _rivals(task: Task, draw: Draw, pick: Weights) -> dict[str, Scores]:
    dev, table = draw.dev, draw.best_first
    chosen = {name: choose(dev) for name, choose in BASELINES.items()}
    chosen["today"] = before(dev)
    if task.has_samplers:
        chosen |= {name: choose(dev, seed=task.split) for name, choose in SAMPLERS.items()}
    chosen["random"] = chance(dev, seed=task.split)
    votes = every_vote(table.of(range(min(table.n_models, WIDEST))))
    chosen["optimum"] = votes.weights(int(votes.means.argmax()))
    found = {name: vote_scores(table, weights) for name, weights in chosen.items()}
    found["agree2_top7"] = agreeing_scores(table, chosen["top7"], first=2)
    if sum(weight > 0 for weight in pick) > 2:
        found["ours_agree2"] = agreeing_scores(table, pick, first=2)
    return found


def _stopped(draw: Draw, pick: Weights) -> Facts:
    """Return calls per question where the first two of the pick may agree, over all its calls."""
    n = sum(weight > 0 for weight in pick)
    if n < 3:
        return {"calls_agree2": 1.0}
    return {
        "calls_agree2": float((n - (n - 2) * agreed(draw.best_first, pick, first=2)).mean() / n)
    }


def _calibration(draw: Draw) -> Facts:
    """Return ``calibration_of`` the votes that the rule would compare."""
    best = draw.dev.best_first
    found = cross_fit(
        Ballots(best.names, best.codes, best.scores),
        widths=(2, MOST),
        seed=0,
        admits=lambda members: True,
        admits_weighted=lambda members: True,
    )
    return calibration_of(found, draw)


def calibration_of(found: CrossFittedVotes, draw: Draw) -> Facts:
    """Return ``errors_of`` every cross-fitted vote over the best one with equal say."""
    equal = [i for i, vote in enumerate(found.votes) if len(set(vote.values())) == 1]
    base = max(equal, key=lambda i: found.smoothed[i].mean())
    return errors_of(found.votes, found.gains(base), base, draw)


def errors_of(
    votes: Sequence[Mapping[str, float]], estimates: tuple[Scores, Scores], base: int, draw: Draw
) -> Facts:
    """Return the mean squared error of the gains of votes over one of them, stated and true.

    The luck of the judged questions is taken out.
    """
    gains, errors = estimates
    names = draw.dev.best_first.names
    weights = [tuple(vote.get(name, 0.0) for name in names) for vote in votes]
    rows = np.array([vote_scores(draw.best_first, vote) for vote in weights])
    gaps = np.delete(rows - rows[base], base, axis=0)
    true, luck = gaps.mean(1), gaps.var(1, ddof=1) / gaps.shape[1]
    squares = (np.delete(gains, base) - true) ** 2 - luck
    return {
        "gain_square": float(squares.mean()),
        "gain_stated": float((np.delete(errors, base) ** 2).mean()),
    }


def _control(draw: Draw) -> float:
    """Return how much better a set that nobody chose does on the dev questions."""
    dev, judged = draw.pool.at(draw.order[: draw.n]), draw.judged
    fixed = weights_of(range(min(N_FIXED, dev.n_models)), dev.n_models)
    return _mean(dev, fixed) - _mean(judged, fixed)


def _halving(draw: Draw) -> Facts:
    halved = halving(draw.pool, draw.order, n=draw.n)
    table = draw.judged.of(halved.models)
    found = {name: _mean(table, weights) for name, weights in halved.choices().items()}
    return {**found, "labels": halved.labels, "cells": halved.cells}


def _mean(table: Answers, weights: Weights) -> float:
    return float(vote_scores(table, weights).mean())

"""One draw of the dev questions: what everybody chose, and what it is worth elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from tests.bench.quality._baselines import BASELINES, Dev
from tests.bench.quality._folder import Answers, Indices, read_folder
from tests.bench.quality._halving import halving
from tests.bench.quality._samplers import SAMPLERS, chance
from tests.bench.quality._search import N_TEST, N_TRAIN, Found, search
from tests.bench.quality._votes import Weights, every_vote, vote_scores, weights_of

FIRST_JUDGED: Final = 1_700
"""Questions before it are for whoever chooses, also for those who need more labels than others."""
FIRST_SEED: Final = 1_000
N_FIXED: Final = 5
"""Models of the set that nobody chose: it shows how much easier the dev questions are."""
Facts = dict[str, float]
read = lru_cache(maxsize=1)(read_folder)


@dataclass(frozen=True, slots=True)
class Task:
    """One pool, one dev size, one draw.

    Attributes:
        folder: Of the recorded answers.
        pool: "all" or "middle".
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
    """

    task: Task
    scores: dict[str, float]
    facts: Facts
    halving: Facts


@dataclass(frozen=True, slots=True)
class _Draw:
    """The answers of a pool, parted by one permutation."""

    pool: Answers
    order: Indices
    n: int

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
        others = self.order[self.start : self.start + N_TRAIN + N_TEST]
        return search(self.pool, self.order[: self.n], others)

    def truth(self, found: Found) -> float:
        """Return the score of what was found; ties go by the dev scores."""
        names = self.dev.best_first.names
        models = [self.pool.names.index(name) for name in names]
        places = {models.index(member) for member in found.members}
        return _mean(self.judged.of(models), weights_of(places, len(models)))


def run(task: Task) -> Drawn:
    """Choose on the dev questions, judge on those after the first 1,700."""
    pool = read(task.folder).pool(task.pool)
    order = np.random.default_rng(FIRST_SEED + task.split).permutation(pool.n_questions)
    draw = _Draw(pool, order, task.dev)
    found = draw.search()
    truth = draw.truth(found)
    scores = {"ours": truth} | (_rivals(task, draw) if task.has_rivals else {})
    return Drawn(
        task,
        scores=scores,
        facts=_facts(found, truth) | {"control": _control(draw), "models": pool.n_models},
        halving=_halving(draw) if task.has_rivals else {},
    )


def first_judged(n_questions: int) -> int:
    """Return after how many questions the judged ones begin: 1,700, or a third of fewer."""
    return FIRST_JUDGED if n_questions >= 1.5 * FIRST_JUDGED else n_questions // 3


def _facts(found: Found, truth: float) -> Facts:
    return {
        "reported_minus_truth": found.expected - truth,
        "is_covered": float(found.low <= truth <= found.high),
        "optimism": found.val - truth,
        "optimism_reported": found.optimism,
        "members": len(found.members),
        "cells": found.cells,
        "seconds": found.seconds,
    }


def _rivals(task: Task, draw: _Draw) -> dict[str, float]:
    dev = draw.dev
    table = draw.judged.of([draw.pool.names.index(name) for name in dev.best_first.names])
    chosen = {name: choose(dev) for name, choose in BASELINES.items()}
    if task.has_samplers:
        chosen |= {name: choose(dev, seed=task.split) for name, choose in SAMPLERS.items()}
    chosen["random"] = chance(dev, seed=task.split)
    votes = every_vote(table)
    chosen["optimum"] = votes.weights(int(votes.means.argmax()))
    return {name: _mean(table, weights) for name, weights in chosen.items()}


def _control(draw: _Draw) -> float:
    """Return how much better a set that nobody chose does on the dev questions."""
    dev, judged = draw.pool.at(draw.order[: draw.n]), draw.judged
    fixed = weights_of(range(min(N_FIXED, dev.n_models)), dev.n_models)
    return _mean(dev, fixed) - _mean(judged, fixed)


def _halving(draw: _Draw) -> Facts:
    halved = halving(draw.pool, draw.order, n=draw.n)
    table = draw.judged.of(halved.models)
    found = {name: _mean(table, weights) for name, weights in halved.choices().items()}
    return {**found, "labels": halved.labels, "cells": halved.cells}


def _mean(table: Answers, weights: Weights) -> float:
    return float(vote_scores(table, weights).mean())

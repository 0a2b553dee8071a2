"""Our own search on recorded answers: ``ModelSearch.compile`` with its defaults, and no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize import ModelSearch, SearchSpace, StudyResult
from moa_dspy.optimize.shares import N_PROBED
from tests.bench.quality._folder import Answers, Indices
from tests.bench.quality._replay import Replay
from tests.bench.quality._votes import MOST

N_TRAIN: Final = 2
"""Rows for prompts, which a replay has none of."""
N_TEST: Final = 300
"""Rows of the search's own test, which decides between pick and best single model."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one search said.

    Attributes:
        pick: What the answer of each member counts, by row of the answers.
        recommended: The same of what ``compile`` returns.
        verdict: Its kind.
        calls: Of a question of the pick on dev.
        expected: The score it reports, to be held against the truth.
        low: Lower end of its 95 % interval.
        high: Upper end.
        val: Dev score of the pick, as the search reports it.
        optimism: How much it says that this flatters.
        cells: Answers to dev questions that were looked at.
        seconds: Of the search.
    """

    pick: dict[int, float]
    recommended: dict[int, float]
    verdict: str
    calls: float
    expected: float
    low: float
    high: float
    val: float
    optimism: float
    cells: int
    seconds: float


def search(answers: Answers, dev: Indices, others: Indices) -> Found:
    """Run the search on the dev questions.

    Args:
        answers: Of the pool's models.
        dev: Its valset.
        others: Questions for its train and test rows, at least 3; nothing is chosen on them.
    """
    started = time.perf_counter()
    result, replay = study(answers, dev, others)
    seconds = time.perf_counter() - started
    return _found(result, replay.names, replay.n_asked(dev), seconds)


def study(
    answers: Answers, dev: Indices, others: Indices, **options: Any
) -> tuple[StudyResult, Replay]:
    """Return the result of ``search``, and what was asked; ``options`` are of ``ModelSearch``."""
    replay = Replay.of(answers, np.concatenate([dev, others]))
    pool = replay.pool
    space = SearchSpace(tuple(pool), combines=("vote",), max_depth=1, max_width=MOST)
    model_search = ModelSearch(replay.recorded.metric(), pool, space=space, **options)
    model_search.compile(
        replay.student(Architecture.single(replay.names[0])),
        trainset=replay.rows(others[:N_TRAIN]),
        valset=replay.rows(_probed(answers, dev)),
        testset=replay.rows(others[N_TRAIN:]),
    )
    return model_search.result, replay


def _found(result: StudyResult, names: Sequence[str], cells: int, seconds: float) -> Found:
    row = result.val["pick"]
    expected, val = result.expected, row.score
    if expected is None or val is None or row.calls is None:
        raise RuntimeError(f"The search reports no expected score of {result.pick}.")
    return Found(
        pick=_weights(result.pick, names),
        recommended=_weights(result.recommended, names),
        verdict=result.verdict.kind,
        calls=row.calls,
        expected=expected.estimate,
        low=expected.low,
        high=expected.high,
        val=val,
        optimism=result.optimism,
        cells=cells,
        seconds=seconds,
    )


def _weights(arch: Architecture, names: Sequence[str]) -> dict[int, float]:
    members, weights = arch.layers[-1] if arch.layers else arch.agents, dict(arch.weights)
    return {names.index(name): weights.get(name, 1.0) for name in members}


def _probed(answers: Answers, dev: Indices) -> Indices:
    """Return the questions as they are; begun elsewhere where a model answers none of the first.

    The search probes every agent with three, and takes one that fails on all for dead.
    """
    for start in range(len(dev)):
        turned = np.roll(dev, -start)
        if (answers.codes[:, turned[:N_PROBED]] >= 0).any(axis=1).all():
            return turned
    return dev

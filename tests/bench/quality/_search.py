"""Our own search on recorded answers: ``ModelSearch.compile`` with its defaults, and no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace, StudyResult
from tests.bench.quality._folder import Answers, Indices
from tests.bench.quality._replay import Replay
from tests.bench.quality._votes import MOST

N_TRAIN: Final = 2
"""Rows for prompts, which a replay has none of."""
N_TEST: Final = 20
"""Rows of the search's own test, which chooses nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one search said.

    Attributes:
        members: Who votes, as rows of the answers.
        expected: The score it reports, to be held against the truth.
        low: Lower end of its 95 % interval.
        high: Upper end.
        val: Dev score of the pick, as the search reports it.
        optimism: How much it says that this flatters.
        cells: Answers to dev questions that were looked at.
        seconds: Of ``compile``.
    """

    members: tuple[int, ...]
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
    replay = Replay.of(answers, np.concatenate([dev, others]))
    pool = replay.pool
    space = SearchSpace(tuple(pool), combines=("vote",), max_depth=1, max_width=MOST)
    student = MixtureOfAgents(
        "question -> answer",
        Architecture.single(replay.names[0]),
        pool=pool,
        adapter=PlainChat(),
        normalise="text",
    )
    model_search = ModelSearch(replay.recorded.metric(), pool, space=space)
    started = time.perf_counter()
    model_search.compile(
        student,
        trainset=replay.rows(others[:N_TRAIN]),
        valset=replay.rows(_answered_first(answers, dev)),
        testset=replay.rows(others[N_TRAIN:]),
    )
    seconds = time.perf_counter() - started
    return _found(model_search.result, replay.names, replay.n_asked(dev), seconds)


def _found(result: StudyResult, names: Sequence[str], cells: int, seconds: float) -> Found:
    pick = result.pick
    members = pick.layers[-1] if pick.layers else (str(pick.aggregator),)
    expected, val = result.expected, result.val["pick"].score
    if expected is None or val is None:
        raise RuntimeError(f"The search reports no expected score of {pick}.")
    return Found(
        members=tuple(names.index(name) for name in members),
        expected=expected.estimate,
        low=expected.low,
        high=expected.high,
        val=val,
        optimism=result.optimism,
        cells=cells,
        seconds=seconds,
    )


def _answered_first(answers: Answers, dev: Indices) -> Indices:
    """Put first a question that all answered: the search probes every agent with the first."""
    n_answered = (answers.codes[:, dev] >= 0).sum(axis=0)
    best = int(n_answered.argmax())
    return np.concatenate([dev[best : best + 1], np.delete(dev, best)])

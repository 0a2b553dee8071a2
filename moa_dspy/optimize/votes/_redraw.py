from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.votes._answer_model import AnswerModel

REDRAWN: Final = 0.5
_CHUNK = 4096  # columns: small enough that the arrays of a chunk stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Urns:
    """From which every agent draws a new answer on every row.

    A draw is a number x in [0, 1); the count of limits below it says what was drawn: 0 the
    recorded answer, then the answers of the row, a lone answer, no answer.
    """

    limits: NDArray[np.float32]  # (draws - 1, agents, rows), rising along the first axis
    codes: NDArray[np.int16]  # (agents, rows, draws)
    scores: NDArray[np.float32]  # (agents, rows, draws)

    @classmethod
    def of(cls, model: AnswerModel, codes: NDArray[np.int16], scores: NDArray[np.float64]) -> Self:
        """Return the urns of the agents in ``codes``, the first of those in ``model``."""
        n_agents, n_rows = codes.shape
        n_answers = model.quality.shape[1]
        limits = np.empty((n_answers + 2, n_agents, n_rows), np.float32)
        shared = model.shared[:n_agents].cumsum(2).transpose(2, 0, 1)
        limits[0] = 1 - REDRAWN
        limits[1:-1] = 1 - REDRAWN + REDRAWN * shared
        # From above, so that an agent which always answers has a limit of 1 and stays so.
        limits[-1] = 1 - REDRAWN * model.lone[:n_agents] * model.silence[:n_agents, None]
        label = np.full((n_agents, n_rows, n_answers + 3), -1, np.int16)
        label[:, :, 0] = codes
        label[:, :, 1:-2] = np.arange(n_answers)
        label[:, :, -2] = n_answers + np.arange(n_agents)[:, None]
        worth = np.zeros(label.shape, np.float32)
        worth[:, :, 0] = scores
        worth[:, :, 1:-2] = model.quality
        worth[:, :, -2] = model.lone_score[:n_agents, None]
        return cls(limits, label, worth)

    def redraw(
        self, *, n_each: int, seed: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int16], NDArray[np.bool_]]]:
        """Yield rows (columns,), codes and whether right (agents, columns), chunk by chunk.

        Every row is redrawn ``n_each`` times; a column is one redrawn row. A graded score is
        its chance to be right: the mean stays, and equal answers of a column are alike.
        """
        random = np.random.default_rng(seed)
        n_agents, n_rows, n_draws = self.codes.shape
        step = max(1, _CHUNK // n_each)
        for start in range(0, n_rows, step):
            part = slice(start, min(start + step, n_rows))
            rows = np.arange(part.start, part.stop)
            x = random.random((n_agents, len(rows), n_each), np.float32)
            drawn = np.zeros(x.shape, np.int16)
            for limit in self.limits[:, :, part, None]:
                drawn += x > limit
            place = np.arange(n_agents * len(rows)).reshape(n_agents, len(rows), 1) * n_draws
            place = place + drawn
            codes, scores = self.codes[:, part].ravel(), self.scores[:, part].ravel()
            right = random.random((1, len(rows), n_each), np.float32) < scores.take(place)
            lines = (n_agents, len(rows) * n_each)
            yield rows.repeat(n_each), codes.take(place).reshape(lines), right.reshape(lines)

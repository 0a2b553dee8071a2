"""Recorded answers of single agents as ballots: codes and scores, per agent and row."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import DataError

_Answer = Hashable
_SAME_MEAN_DECIMALS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """The answers of every agent alone on the same rows, and their scores.

    Attributes:
        agents: Names, none twice.
        codes: (agents, rows); equal where the answers of a row are equal, -1 is no answer.
            Codes of different rows have nothing to do with each other.
        scores: (agents, rows), in [0, 1].

    Raises:
        DataError: no agent, no row, a name given twice, shapes that differ, or a score that
            is not a number in [0, 1].
    """

    agents: tuple[str, ...]
    codes: NDArray[np.int16]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check that the three fit together."""
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise DataError(f"`agents` must be different names, at least one; got {self.agents}.")
        if self.codes.ndim != 2 or self.codes.shape != self.scores.shape:
            raise DataError(
                "`codes` and `scores` must both be (agents, rows), but have the shapes "
                f"{self.codes.shape} and {self.scores.shape}."
            )
        if len(self.codes) != len(self.agents) or not self.codes.shape[1]:
            raise DataError(
                f"`codes` must have a line per agent ({len(self.agents)}) and at least one row, "
                f"but has the shape {self.codes.shape}."
            )
        if not bool(((self.scores >= 0) & (self.scores <= 1)).all()):
            raise DataError("Every score must be a number in [0, 1].")

    @classmethod
    def of(
        cls, answers: Mapping[str, Sequence[_Answer]], scores: Mapping[str, Sequence[float]]
    ) -> Self:
        """Return the ballots of agents whose ``answers`` stand in the order of the rows.

        Args:
            answers: By agent; None is a row that the agent did not answer.
            scores: By agent, in [0, 1].

        Raises:
            DataError: the agents or the numbers of rows of the two differ.
        """
        if set(answers) != set(scores):
            raise DataError(
                f"`answers` and `scores` must be of the same agents, but are of "
                f"{', '.join(sorted(answers))} and of {', '.join(sorted(scores))}."
            )
        lengths = {len(given) for given in (*answers.values(), *scores.values())}
        if len(lengths) > 1:
            raise DataError(f"Every agent must have the same rows; the counts are {lengths}.")
        rows = [_codes_of(row) for row in zip(*answers.values(), strict=True)]
        codes = np.array(rows, np.int16).reshape(len(rows), len(answers)).T
        values = np.array([scores[agent] for agent in answers], np.float64)
        return cls(tuple(answers), codes, values)

    def take(self, rows: NDArray[np.intp]) -> Self:
        """Return the same agents on some ``rows``, in the order given."""
        return type(self)(self.agents, self.codes[:, rows], self.scores[:, rows])

    def ranked(self) -> Self:
        """Return the agents best mean score first; the order they have breaks ties."""
        means = np.round(self.scores.mean(1), _SAME_MEAN_DECIMALS)
        order = np.argsort(-means, kind="stable")
        agents = tuple(self.agents[i] for i in order)
        return type(self)(agents, self.codes[order], self.scores[order])

    def vote(
        self, layer: Sequence[str], *, ranking: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return the score per row of the answer that most of ``layer`` gave.

        A row on which no agent of ``layer`` answered scores 0, whatever was recorded there.

        Args:
            layer: Names, in any order.
            ranking: Of the tied, the member that stands first here has its answer taken; None
                is the order of ``ranked``. Give it when these rows are judged by a ranking
                that was made on other rows.

        Raises:
            DataError: an empty layer, a name twice, or one that is unknown or not ranked.
        """
        places = {agent: i for i, agent in enumerate(ranking or self.ranked().agents)}
        unknown = set(layer) - (places.keys() & set(self.agents))
        if unknown or not layer or len(set(layer)) < len(layer):
            raise DataError(
                f"`layer` must be different agents of {', '.join(self.agents)}, "
                f"but got {tuple(layer)}."
            )
        seats = [self.agents.index(agent) for agent in sorted(layer, key=places.__getitem__)]
        codes, scores = self.codes[seats], self.scores[seats]
        backers = (codes[:, None] == codes).sum(1) * (codes >= 0)
        winner = backers.argmax(0)[None]
        won = np.take_along_axis(scores, winner, 0)[0]
        return np.where(backers.max(0) > 0, won, 0.0)


def _codes_of(row: Sequence[_Answer]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [-1 if answer is None else seen.setdefault(answer, len(seen)) for answer in row]

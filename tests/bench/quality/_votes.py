"""Plurality over recorded answers: of one weighted set, or of every set up to a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.bench.quality._folder import Answers, Indices, Scores

Bytes: TypeAlias = NDArray[np.uint8]
Masks: TypeAlias = NDArray[np.uint32]
Weights: TypeAlias = tuple[float, ...]
"""What the answer of each model of a ranking counts; 0 is not at all."""
MOST: Final = 7
"""Most members of a vote; what packs a count, a seat and a bit into one byte."""
_VOTE: Final = 16
_RIGHT: Final = 1


def ranked(answers: Answers) -> list[int]:
    """Return the models, best mean score first; the table's order breaks ties."""
    order = np.argsort(-answers.scores.mean(axis=1).round(12), kind="stable")
    return [int(row) for row in order]


def weights_of(members: set[int] | range, n_models: int) -> Weights:
    """Return one vote for each member, given by place in the ranking."""
    return tuple(int(place in members) for place in range(n_models))


def vote_scores(best_first: Answers, weights: Weights) -> Scores:
    """Return the score of the most frequent answer to each question.

    No answer is no vote; a tie goes to the tied answer of the model that stands first;
    an answer's score is that of the first model that gave it.
    """
    voters = [place for place, weight in enumerate(weights) if weight]
    codes, scores = best_first.codes[voters], best_first.scores[voters]
    counts = np.zeros(codes.shape)
    for voter, code in zip(voters, codes, strict=True):
        counts += weights[voter] * ((codes == code) & (code >= 0))
    winner = counts.round(6).argmax(axis=0)  # the first of equals
    columns = np.arange(codes.shape[1])
    won: Scores = np.where(counts[winner, columns] > 0, scores[winner, columns], 0.0)
    return won


def agreed(best_first: Answers, weights: Weights, *, first: int) -> NDArray[np.bool_]:
    """Return on which questions the ``first`` members give one answer: no more are asked."""
    voters = [place for place, weight in enumerate(weights) if weight][:first]
    codes = best_first.codes[voters]
    same: NDArray[np.bool_] = (codes == codes[0]).all(axis=0) & (codes[0] >= 0)
    return same


def agreeing_scores(best_first: Answers, weights: Weights, *, first: int) -> Scores:
    """Return the score where the others are asked only if the ``first`` members do not agree."""
    voters = [place for place, weight in enumerate(weights) if weight]
    alone = np.where(best_first.codes[voters[0]] >= 0, best_first.scores[voters[0]], 0.0)
    stops = agreed(best_first, weights, first=first)
    found: Scores = np.where(stops, alone, vote_scores(best_first, weights))
    return found


@dataclass(frozen=True, slots=True)
class EveryVote:
    """The mean score of each set of models; bit i of a mask is place i of the ranking.

    Attributes:
        masks: Increasing.
        means: In the same order.
        n_models: Of the ranking.
    """

    masks: Masks
    means: Scores
    n_models: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.bitwise_count(self.masks).astype(np.int64)

    @property
    def members(self) -> NDArray[np.float64]:
        """One row per set, 1.0 where a model is in it."""
        places = np.arange(self.n_models, dtype=np.uint32)
        return ((self.masks[:, None] >> places) & 1).astype(np.float64)

    def weights(self, index: int) -> Weights:
        mask = int(self.masks[index])
        return tuple(mask >> place & 1 for place in range(self.n_models))

    def mean(self, weights: Weights) -> float:
        """Return the mean score of a set that is among the masks."""
        mask = sum(1 << place for place, weight in enumerate(weights) if weight)
        return float(self.means[np.searchsorted(self.masks, np.uint32(mask))])


def every_vote(best_first: Answers, *, most: int = MOST) -> EveryVote:
    """Score every set of 1 to ``most`` models; 1 s for 63,000 sets of 18 on 10,000 questions."""
    tree = _Tree(best_first, min(most, best_first.n_models))
    tree.grow()
    order = np.argsort(tree.masks)
    masks, means = np.array(tree.masks, np.uint32), np.array(tree.means)
    return EveryVote(masks[order], means[order].round(12), best_first.n_models)


class _Tree:
    """Adds one model after the other, depth first, in the order of the ranking.

    The votes for one answer are a byte: how many they are, then how early the first of
    them sits, then whether they are right. So the greatest byte of a question wins, and
    a further member changes one answer's byte only.
    """

    def __init__(self, best_first: Answers, most: int) -> None:
        codes, scores = best_first.codes, best_first.scores
        self.most, (self.n_models, self.n) = most, codes.shape
        answered = codes >= 0
        self.same: Bytes = np.array(
            [np.where((codes == code) & (code >= 0), 255, 0) for code in codes], np.uint8
        )
        seats = [(_VOTE | (MOST - seat) << 1) for seat in range(most)]
        right = (scores == 1).astype(np.uint8)
        self.alone: Bytes = np.array(
            [np.where(answered, seat | right, 0) for seat in seats], np.uint8
        )
        self.is_graded = bool(((scores > 0) & (scores < 1)).any())
        # The last row is of nobody: where nobody answered, it wins.
        self.scores = np.vstack([scores, np.zeros(self.n)])
        self.path: Indices = np.full(MOST + 1, self.n_models)
        self.masks: list[int] = []
        self.means: list[float] = []

    def grow(self) -> None:
        nothing = np.zeros((self.n_models, self.n), np.uint8)
        self._grow(0, 0, 0, nothing, nothing[0])

    def _grow(self, seat: int, first: int, mask: int, votes: Bytes, best: Bytes) -> None:
        """Score the sets with one more member, of those from ``first`` on, and go on from each."""
        added = np.maximum(votes + np.uint8(_VOTE), self.alone[seat, first:])
        leading = np.maximum(added, best)
        for i in range(self.n_models - first):
            place = first + i
            self.path[seat] = place
            self.masks.append(mask | 1 << place)
            self.means.append(self._mean(leading[i]))
            if seat + 1 < self.most and place + 1 < self.n_models:
                reached = np.maximum(votes[i + 1 :], added[i] & self.same[place, place + 1 :])
                self._grow(seat + 1, place + 1, mask | 1 << place, reached, leading[i])
        self.path[seat] = self.n_models

    def _mean(self, leading: Bytes) -> float:
        if not self.is_graded:
            return float(np.count_nonzero((leading & _RIGHT).view(bool)) / self.n)
        seats = (MOST - ((leading >> 1) & MOST)).astype(np.intp)
        return float(self.scores[self.path[seats], np.arange(self.n)].mean())

"""Ways to choose a vote from dev answers, each a few lines; what a search has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.votes import SHORTLIST, Ballots, SmoothedVotes, smooth
from moa_dspy.optimize.votes.weights import learned_weights
from tests.bench.quality._folder import Answers, Scores
from tests.bench.quality._votes import (
    MOST,
    EveryVote,
    Weights,
    every_vote,
    ranked,
    vote_scores,
    weights_of,
)

WIDEST: Final = 18
"""Models of which every set is tried."""
RIDGE: Final = 8.0
"""Of weights that a few lines would learn."""
BONUS: Final = 0.25
"""Of the mean pairwise disagreement, beside the mean accuracy."""


@dataclass(frozen=True)
class Dev:
    """The answers that everybody may look at; ``best_first`` is in the order of their scores."""

    best_first: Answers

    @classmethod
    def of(cls, answers: Answers) -> Dev:
        return cls(answers.of(ranked(answers)))

    @property
    def n_models(self) -> int:
        return self.best_first.n_models

    @cached_property
    def accuracy(self) -> Scores:
        """Mean score of each model."""
        means: Scores = self.best_first.scores.mean(axis=1).round(12)
        return means

    @cached_property
    def votes(self) -> EveryVote:
        """Of the best 18 models at most: there are 250 times as many sets of 39."""
        return every_vote(self.best_first.of(range(min(self.n_models, WIDEST))))

    def vote_mean(self, weights: Weights) -> float:
        """Return the dev score of a vote of one to seven models."""
        if not any(weights[WIDEST:]):
            return self.votes.mean(weights[:WIDEST])
        return float(vote_scores(self.best_first, weights).mean())

    @cached_property
    def mean_accuracy(self) -> Scores:
        """Of the members of each set in ``votes``."""
        members = self.votes.members
        accuracy = self.accuracy[: members.shape[1]]
        means: Scores = (members @ accuracy / self.votes.sizes).round(12)
        return means

    @cached_property
    def disagreement(self) -> Scores:
        """Mean share of questions on which two members differ, of each set in ``votes``."""
        members = self.votes.members
        codes = self.best_first.codes[: members.shape[1]]
        differ = np.array([(codes != code).mean(axis=1) for code in codes])
        pairs = ((members @ differ) * members).sum(axis=1)
        sizes = self.votes.sizes
        means: Scores = (pairs / np.maximum(sizes * (sizes - 1), 1)).round(12)
        return means


def top(dev: Dev, *, k: int) -> Weights:
    """The ``k`` models with the best dev scores."""
    return weights_of(range(min(k, dev.n_models)), dev.n_models)


def topk_by_dev(dev: Dev) -> Weights:
    """The top-k with the best dev vote; of equals the smallest."""
    tops = [top(dev, k=k) for k in range(1, min(MOST, dev.n_models) + 1)]
    return max(tops, key=dev.vote_mean)


def acc_plus_diversity(dev: Dev, *, k: int) -> Weights:
    """The greatest mean accuracy plus 0.25 disagreement of ``k`` models, exactly."""
    votes = dev.votes
    criterion = (dev.mean_accuracy + BONUS * dev.disagreement).round(12)
    criterion[votes.sizes != min(k, dev.n_models)] = -np.inf
    return votes.weights(_greatest(criterion, votes.means))


def exhaustive(dev: Dev, *, most: int = MOST) -> Weights:
    """The best dev vote of any set; of equals the greater mean accuracy."""
    votes = dev.votes
    means = np.where(votes.sizes <= most, votes.means, -np.inf)
    return votes.weights(_greatest(means, dev.mean_accuracy))


def caruana(dev: Dev, *, rounds: int = MOST) -> Weights:
    """Adds the model that helps the vote most, again and again; the best of all rounds.

    Of equal models, it adds that which was taken least so far, then the better one.
    """
    weights: Weights = (0,) * dev.n_models
    found: list[tuple[float, Weights]] = []
    for _ in range(rounds):
        weights = max(_one_more(weights), key=lambda w: _gain(dev, weights, w))
        found.append((float(vote_scores(dev.best_first, weights).mean().round(12)), weights))
    return max(found, key=lambda pair: pair[0])[1]


def _one_more(weights: Weights) -> list[Weights]:
    places = range(len(weights))
    return [tuple(w + (i == place) for i, w in enumerate(weights)) for place in places]


def _gain(dev: Dev, was: Weights, after: Weights) -> tuple[float, float]:
    (taken,) = [b for b, a in zip(was, after, strict=True) if a > b]
    return float(vote_scores(dev.best_first, after).mean().round(12)), -taken


def _greatest(values: NDArray[np.float64], then: NDArray[np.float64]) -> int:
    return int(np.lexsort((-then, -values))[0])


def weighted(dev: Dev, *, k: int, part: float) -> Weights:
    """The ``k`` best models, their weights by a conditional logit to ``part``, else equal."""
    best = dev.best_first.of(range(min(k, dev.n_models)))
    learned, _ = learned_weights(Ballots(best.names, best.codes, best.scores), ridge=RIDGE)
    found = (part * learned + 1 - part).round(4).tolist()
    return tuple(found) + (0.0,) * (dev.n_models - len(found))


def before(dev: Dev) -> Weights:
    """The rule of the search before it cross-fitted: smoothed gains over an incumbent.

    The incumbent is the vote of the best seven that score 0.55 of the best one at least;
    it is left for a gain of more than 1.645 of its errors on redrawn answers.
    """
    best = dev.best_first
    votes = smooth(Ballots(best.names, best.codes, best.scores), widths=(2, MOST), seed=0)
    picked = picked_before(votes, dev)
    return weights_of({best.names.index(name) for name in picked}, dev.n_models)


def picked_before(votes: SmoothedVotes, dev: Dev) -> tuple[str, ...]:
    """Return the members that ``before`` picks."""
    n = min(MOST, SHORTLIST, sum(mean >= 0.55 * dev.accuracy[0] for mean in dev.accuracy))
    incumbent = votes.layers.index(dev.best_first.names[: max(n, 1)])
    gaps = votes.per_row.astype(np.float64) - votes.per_row[incumbent]
    # Its errors were those of the redrawn rows alone, which are too small.
    gains, errors = gaps.mean(1), gaps.std(1, ddof=1) / np.sqrt(gaps.shape[1])
    cautious = (gains - 1.645 * errors).round(12)
    sizes = [len(layer) for layer in votes.layers]
    return votes.layers[int(np.lexsort((np.array(sizes), -cautious))[0])]


BASELINES: dict[str, Callable[[Dev], Weights]] = {
    "best_single": partial(top, k=1),
    **{f"top{k}": partial(top, k=k) for k in (3, 5, 7)},
    "topk_by_dev": topk_by_dev,
    **{f"acc_plus_diversity_k{k}": partial(acc_plus_diversity, k=k) for k in (3, 5, 7)},
    "caruana7": caruana,
    "exhaustive": exhaustive,
    "weighted7": partial(weighted, k=MOST, part=1.0),
    "half_weighted7": partial(weighted, k=MOST, part=0.5),
    "weighted_all": partial(weighted, k=100, part=1.0),
}

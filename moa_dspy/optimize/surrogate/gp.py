"""The Gaussian process that predicts scores of architectures, and the features that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import log
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import COMBINES, Architecture

FeatureMatrix = NDArray[np.float64]
MOST_LAYERS: Final = 3

BLOCKS: Final = ("performance", "diversity", "structure", "members", "earlier")
"""Linear parts of the surrogate model, each with a weight: the paper's two criteria come first."""


@dataclass(frozen=True)
class Traits:
    """Computes features of architectures from the single agents' answers alone.

    Attributes:
        scores: Mean score of each agent alone, in [0, 1].
        pair: Diversity of the answers of two agents, in [0, 1]; 0 for samples of one.
        prompts: Names of the prompts that an aggregator may have.
        combines: Kinds of last step that have a feature each.
    """

    scores: Mapping[str, float]
    pair: Callable[[str, str], float]
    prompts: Sequence[str] = ()
    combines: Sequence[str] = ("synthesize", "select", "vote")
    _known: dict[Architecture, dict[str, tuple[float, ...]]] = field(
        default_factory=dict, compare=False
    )

    def blocks(self, architectures: Sequence[Architecture]) -> dict[str, FeatureMatrix]:
        """Return one (architectures, features) matrix per block."""
        rows = [self._of(arch) for arch in architectures]
        return {block: np.array([row[block] for row in rows], np.float64) for block in BLOCKS}

    def _of(self, arch: Architecture) -> dict[str, tuple[float, ...]]:
        if arch not in self._known:
            self._known[arch] = {
                "performance": self._performance(arch),
                "diversity": self._diversity(arch),
                "structure": self._structure(arch),
                "members": self._members(arch),
                "earlier": self._earlier(arch),
            }
        return self._known[arch]

    def _performance(self, arch: Architecture) -> tuple[float, ...]:
        """Scores: mean, best and first of the last layer; mean of the first layer; the writer's."""
        first, last = (
            (arch.layers[0], arch.layers[-1]) if arch.layers else ((arch.aggregator,),) * 2
        )
        read = [self.scores[str(name)] for name in last]
        # A vote, or a consensus without a model, has no writer.
        writer = self.scores[str(arch.aggregator)] if arch.aggregator_calls_a_model else max(read)
        proposes = fmean(self.scores[str(name)] for name in first)
        # The order by name carries no information.
        asks = arch.order and arch.aggregator_calls_a_model
        reads_first = self.scores[arch.order[0]] if asks else fmean(read)
        return fmean(read), max(read), reads_first, proposes, writer

    def _diversity(self, arch: Architecture) -> tuple[float, ...]:
        """Means over pairs of agents of the last layer, and of the first layer."""
        return (
            (self._mean_pair(arch.layers[-1]), self._mean_pair(arch.layers[0]))
            if arch.layers
            else (0.0, 0.0)
        )

    def _mean_pair(self, layer: Sequence[str]) -> float:
        pairs = [(a, b) for i, a in enumerate(layer) for b in layer[i + 1 :]]
        return fmean(self.pair(a, b) for a, b in pairs) if pairs else 0.0

    def _structure(self, arch: Architecture) -> tuple[float, ...]:
        depth = [float(arch.depth == d) for d in range(1, MOST_LAYERS + 1)]
        combine = [float(bool(arch.layers) and arch.combine == name) for name in self.combines]
        width = log(len(arch.layers[-1])) if arch.layers else 0.0
        copies = sum(len(layer) - len(set(layer)) for layer in arch.layers)
        prompts = [float(arch.prompt == name) for name in self.prompts]
        asks = float(arch.aggregator_calls_a_model and bool(arch.layers))
        return (*depth, *combine, width, float(copies), asks, float(bool(arch.order)), *prompts)

    def _members(self, arch: Architecture) -> tuple[float, ...]:
        """Share of each agent in the last layer, and 1 for the agent that writes the answer."""
        shares = self._shares(arch.layers[-1] if arch.layers else ())
        writes = [
            float(arch.aggregator == name and arch.aggregator_calls_a_model and bool(arch.layers))
            for name in self.scores
        ]
        return (*shares, *writes)

    def _earlier(self, arch: Architecture) -> tuple[float, ...]:
        """Share of each agent in the layers before the last one."""
        before = arch.layers[:-1][: MOST_LAYERS - 1]
        layers = [*before, *[()] * (MOST_LAYERS - 1 - len(before))]
        return tuple(share for layer in layers for share in self._shares(layer))

    def _shares(self, layer: Sequence[str]) -> list[float]:
        return [layer.count(name) / max(len(layer), 1) for name in self.scores]


LENGTH = 3.0
"""Length scale: differences at which the kernel is 1/e; a replaced seat is two differences."""


class SeatCounts:
    """Counts of the agents by seat, for the number of differences between two architectures."""

    def __init__(self, agents: Sequence[str], prompts: Sequence[str] = ()) -> None:
        self._agents, self._prompts = tuple(agents), tuple(prompts)
        self._known: dict[Architecture, tuple[float, ...]] = {}

    @property
    def n_earlier(self) -> int:
        """Number of columns of the layers before the last one; these columns come first."""
        return (MOST_LAYERS - 1) * len(self._agents)

    def counts(self, architectures: Sequence[Architecture]) -> FeatureMatrix:
        """Return (architectures, columns); differences are counted by the L1 distance."""
        for arch in architectures:
            if arch not in self._known:
                self._known[arch] = self._of(arch)
        return np.array([self._known[other] for other in architectures], np.float64)

    def _of(self, arch: Architecture) -> tuple[float, ...]:
        earlier = arch.layers[:-1][: MOST_LAYERS - 1]
        layers = [*earlier, *[()] * (MOST_LAYERS - 1 - len(earlier))]
        last = [float(arch.layers[-1].count(name)) if arch.layers else 0.0 for name in self._agents]
        seats = [float(layer.count(name)) for layer in layers for name in self._agents]
        asks = arch.aggregator_calls_a_model
        writer = [float(asks and arch.aggregator == name) for name in self._agents]
        combine = [float(bool(arch.layers) and arch.combine == name) for name in COMBINES]
        prompt = [float(arch.prompt == name) for name in self._prompts]
        first = [float(asks and arch.order[:1] == (name,)) for name in self._agents]
        return (*seats, *last, *writer, *combine, *prompt, *first)


def nearness(rows: FeatureMatrix, columns: FeatureMatrix) -> FeatureMatrix:
    """Return exp(-differences / LENGTH), (rows, columns): a product of kernels, so a kernel."""
    gaps = np.zeros((len(rows), len(columns)))
    most = int(max(rows.max(initial=0), columns.max(initial=0)))
    for count in range(1, most + 1):
        # Two counts differ by the number of thresholds between them. These are whole numbers,
        # which a product of matrices gives exactly.
        left, right = (rows >= count).astype(np.float64), (columns >= count).astype(np.float64)
        gaps += left.sum(1)[:, None] + right.sum(1) - 2 * (left @ right.T)
    by_gap: FeatureMatrix = np.exp(-np.arange(gaps.max(initial=0) + 1) / LENGTH)
    return by_gap[gaps.astype(np.intp)]


PARTS = (*BLOCKS, "near", "end")
"""Parts of a score, beside the mean and the part of the architecture alone."""
_SMALLEST_SPREAD = 0.02


@dataclass(frozen=True)
class Kernels:
    """The kernel of each part; the weight of a part is its standard deviation.

    Attributes:
        traits: Features of the linear parts.
        seats: Counts for the parts ``near`` and ``end``, which use no features.
    """

    traits: Traits
    seats: SeatCounts

    @classmethod
    def of(cls, traits: Traits) -> Kernels:
        """Return the kernels over the agents of ``traits``."""
        return cls(traits, SeatCounts(tuple(traits.scores), traits.prompts))

    def parts(
        self, rows: Sequence[Architecture], columns: Sequence[Architecture]
    ) -> dict[str, FeatureMatrix]:
        """Return one (rows, columns) matrix per part."""
        left, right = self._scaled(rows), self._scaled(columns)
        products = {block: left[block] @ right[block].T for block in BLOCKS}
        near, end = self._nearness(rows, columns)
        return {**products, "near": near, "end": end}

    def compares_as(self, other: Kernels) -> bool:
        """True if both have the same facts about the agents."""
        return type(other) is Kernels and self.traits == other.traits

    def _nearness(
        self, rows: Sequence[Architecture], columns: Sequence[Architecture]
    ) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Compare whole architectures, and only their last layers and last steps."""
        left, right, cut = self.seats.counts(rows), self.seats.counts(columns), self.seats.n_earlier
        end = nearness(left[:, cut:], right[:, cut:])
        return nearness(left[:, :cut], right[:, :cut]) * end, end

    def own(self, architectures: Sequence[Architecture]) -> dict[str, FeatureMatrix]:
        """Return each architecture compared with itself, one vector per part."""
        scaled = self._scaled(architectures)
        squares = {block: (scaled[block] ** 2).sum(1) for block in BLOCKS}
        alike = np.ones(len(architectures))
        return {**squares, "near": alike, "end": alike}

    def _scaled(self, architectures: Sequence[Architecture]) -> Mapping[str, FeatureMatrix]:
        """Centre and scale the features by the pool's own spread, which no trial changes."""
        blocks = self.traits.blocks(architectures)
        scores = np.array(list(self.traits.scores.values()))
        spread = max(float(scores.std()), _SMALLEST_SPREAD)
        blocks["performance"] = (blocks["performance"] - scores.mean()) / spread
        blocks["diversity"] = blocks["diversity"] / self._pair_spread
        return {name: block / np.sqrt(block.shape[1]) for name, block in blocks.items()}

    @cached_property
    def _pair_spread(self) -> float:
        names = list(self.traits.scores)
        pairs = [self.traits.pair(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return max(float(np.mean(pairs)) if pairs else 0.0, _SMALLEST_SPREAD)


def means_and_noise(scores: FeatureMatrix) -> tuple[FeatureMatrix, FeatureMatrix]:
    """Return each architecture's score, as if all rows were measured, and its error variance.

    ``scores`` is (architectures, rows), NaN where a trial was stopped. Rows differ in
    difficulty, which all architectures share, so row effects are fitted: an architecture that
    was measured on easy rows only is not overestimated, and the error is that of differences. The
    sample covariance of the architectures is not used: with more architectures than rows it is
    singular, and attributes all variance to noise.
    """
    is_known = ~np.isnan(scores)
    filled = np.where(is_known, scores, 0.0)
    n_rows, n_seen = is_known.sum(1), is_known.sum(0)
    row = filled.sum(0) / np.maximum(n_seen, 1)
    own = np.zeros(len(scores))
    for _ in range(20):
        own = np.where(is_known, scores - row, 0.0).sum(1) / np.maximum(n_rows, 1)
        row = np.where(is_known, scores - own[:, None], 0.0).sum(0) / np.maximum(n_seen, 1)
    left = np.where(is_known, scores - own[:, None] - row, 0.0)
    freedom = max(int(is_known.sum()) - len(scores) - scores.shape[1] + 1, 1)
    variance = float((left**2).sum()) / freedom
    mean_row = float(row[n_seen > 0].mean())
    return own + mean_row, np.maximum(variance, 1e-6) / np.maximum(n_rows, 1)


WEIGHTS: Final = (0.0, 0.01, 0.03, 0.1, 0.3)
"""Standard deviations, as shares of the score, that a part may have."""
OWN_WEIGHTS: Final = (0.01, 0.02, 0.04, 0.08)
"""The same for the part of the architecture alone; never 0, as no model is exact."""
FIRST_WEIGHT: Final = 0.03
_SWEEPS = 2
_OWN = "own"
_FEWEST_LEFT_OUT = 3
_MEAN_VARIANCE = 1.0
_BORDER = 1e9
"""A bound above any quadratic form, as each score has a variance of at least 1e-4."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Posterior mean and standard deviation of the true scores of architectures."""

    mean: FeatureMatrix
    sd: FeatureMatrix


class SurrogateModel:
    """A Gaussian process with a part per block of features, two by nearness, and an own part.

    Every part is Gaussian; the weights are learned by marginal likelihood, so the data decide the
    weight of diversity against performance. Scores of few rows are shrunk towards the prediction
    of the parts: empirical Bayes, or a Gaussian process with a linear mean
    (Rasmussen & Williams 2006, eq. 2.25 and 5.8). The model makes no calls.

    Args:
        kernels: Kernels of the parts.
        architectures: Measured architectures.
        scores: (architectures, rows), in [0, 1]; NaN where a trial was stopped.
        weights: Weights learned by a model of nearly the same data; None learns them.
    """

    def __init__(
        self,
        kernels: Kernels,
        architectures: Sequence[Architecture],
        scores: FeatureMatrix,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.kernels, self.architectures = kernels, tuple(architectures)
        self._parts = kernels.parts(self.architectures, self.architectures)
        self._y, self._noise = means_and_noise(scores)
        self.weights = dict(weights) if weights is not None else self._learned()
        self._factor, self._alpha = self._solved(self.weights)

    def predict(self, architectures: Sequence[Architecture]) -> Prediction:
        """Return the predicted scores of architectures, measured or not."""
        cross = self._cross(architectures)
        own = self._combined(self.kernels.own(architectures)) + self.weights[_OWN] ** 2
        # Imported here: importing scipy takes a second, which `import moa_dspy` should not.
        from scipy.linalg import solve_triangular

        reduced = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = own + _MEAN_VARIANCE - (reduced**2).sum(0)
        return Prediction(cross @ self._alpha, np.sqrt(np.maximum(variance, 1e-12)))

    def fitted(self) -> FeatureMatrix:
        """Return the means of the measured architectures, as ``predict`` does, but faster."""
        return np.asarray(self._prior(self.weights) @ self._alpha, np.float64)

    def left_out(self) -> FeatureMatrix:
        """Return the leave-one-out residual of each score.

        The weights stay the same, and no other fit is needed (Rasmussen & Williams 2006, eq. 5.12).
        """
        from scipy.linalg import solve_triangular

        half = solve_triangular(self._factor, np.eye(len(self._y)), lower=True, check_finite=False)
        return np.asarray(self._alpha / (half**2).sum(0), np.float64)

    def beats_mean(self, places: Sequence[int]) -> bool:
        """True if leave-one-out predictions of these scores beat the mean of the other scores.

        True by default with fewer than three scores, which are too few to tell.
        """
        if len(places) < _FEWEST_LEFT_OUT:
            return True
        missed, scores = self.left_out()[places], self._y[places]
        by_mean = (scores - scores.mean()) * len(places) / (len(places) - 1)
        # Rounded, like all values that are compared: the last digits depend on the machine.
        return round(float(missed @ missed), 10) < round(float(by_mean @ by_mean), 10)

    def gains(self, incumbent: Architecture) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Return the gain of each measured architecture over ``incumbent``, and its sd."""
        prior = self._prior(self.weights)
        reduced = np.linalg.solve(self._factor, prior)
        covariance = prior - reduced.T @ reduced
        mean = prior @ self._alpha
        at = self.architectures.index(incumbent)
        spread = np.diag(covariance)
        variance = spread + spread[at] - 2 * covariance[at]
        variance[at] = 0.0
        return mean - mean[at], np.sqrt(np.maximum(variance, 0.0))

    def explained(self) -> dict[str, float]:
        """Return the share of the differences between measured scores that each part explains.

        The scores are de-noised. Shares are in [0, 1]; the remainder is ``rest``. A part that is
        negatively correlated with the sum has share 0. Empty if all scores are equal.
        """
        fitted = {
            part: self.weights[part] ** 2 * (self._parts[part] @ self._alpha) for part in PARTS
        }
        whole = self._prior(self.weights) @ self._alpha
        centred = whole - whole.mean()
        variance = float(centred @ centred)
        if variance < 1e-12 * len(centred):
            return {}
        shares = {part: float(centred @ value) / variance for part, value in fitted.items()}
        kept = {part: min(max(shares[part], 0.0), 1.0) for part in BLOCKS}
        scale = max(sum(kept.values()), 1.0)
        named = {part: share / scale for part, share in kept.items()}
        return {**named, "rest": max(0.0, 1 - sum(named.values()))}

    def _combined(self, parts: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
        total: FeatureMatrix = sum(
            (self.weights[part] ** 2 * matrix for part, matrix in parts.items()),
            start=np.zeros_like(parts["near"]),
        )
        return total

    def _cross(self, architectures: Sequence[Architecture]) -> FeatureMatrix:
        cross = self._combined(self.kernels.parts(architectures, self.architectures))
        places = {other: place for place, other in enumerate(self.architectures)}
        for row, arch in enumerate(architectures):
            if arch in places:
                cross[row, places[arch]] += self.weights[_OWN] ** 2
        return cross + _MEAN_VARIANCE

    def _prior(self, weights: Mapping[str, float]) -> FeatureMatrix:
        prior = np.full_like(self._parts["near"], _MEAN_VARIANCE)
        for part, matrix in self._parts.items():
            if weights[part]:
                prior += weights[part] ** 2 * matrix
        prior.flat[:: len(prior) + 1] += weights[_OWN] ** 2
        return prior

    def _solved(self, weights: Mapping[str, float]) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Return the Cholesky factor and the weights of the observations."""
        covariance = self._covariance(weights)
        factor = np.asarray(np.linalg.cholesky(covariance), np.float64)
        return factor, np.asarray(np.linalg.solve(covariance, self._y), np.float64)

    def _covariance(self, weights: Mapping[str, float]) -> FeatureMatrix:
        covariance = self._prior(weights)
        covariance[np.diag_indices_from(covariance)] += self._noise + 1e-9
        return covariance

    def _likelihood(self, weights: Mapping[str, float]) -> float:
        """Return the log likelihood up to a constant, from one Cholesky factorisation.

        The covariance is bordered by the observations, so that the last row of the factor is the
        solution of the triangular system. Rounded, so that the order of trials breaks no ties.
        """
        n = len(self._y)
        bordered = np.empty((n + 1, n + 1))
        bordered[:n, :n] = self._covariance(weights)
        bordered[n, :n] = bordered[:n, n] = self._y
        bordered[n, n] = _BORDER
        factor = np.linalg.cholesky(bordered)
        half, diagonal = factor[n, :n], np.diag(factor)[:n]
        return round(-0.5 * float(half @ half) - float(np.log(diagonal).sum()), 6)

    def _learned(self) -> dict[str, float]:
        """Maximise the likelihood by coordinate ascent; ties go to the smaller weight."""
        weights: dict[str, float] = dict.fromkeys((*PARTS, _OWN), FIRST_WEIGHT)
        for _ in range(_SWEEPS):
            for part in weights:
                grid = OWN_WEIGHTS if part == _OWN else WEIGHTS
                tried = [(self._likelihood(weights | {part: value}), -value) for value in grid]
                weights[part] = -max(tried)[1]
        return weights


def finite(values: FeatureMatrix) -> FeatureMatrix:
    """Return the values of each column, the infinite as the best or worst that is not."""
    filled = np.zeros_like(values)
    for place, column in enumerate(values.T):
        if (seen := column[np.isfinite(column)]).size:
            filled[:, place] = np.clip(column, seen.min(), seen.max())
    return filled


def padded(rows: Sequence[FeatureMatrix]) -> FeatureMatrix:
    """Return rows of different lengths as one matrix, with nan where one has ended."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table

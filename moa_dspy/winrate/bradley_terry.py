"""Bradley-Terry strengths of systems, fitted to pairwise preferences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt, tanh
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import Interval, Vector, check_share

_MAX_STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class BradleyTerry:
    """Strengths in log-odds, with mean 0; P(a is preferred to b) = sigmoid(s_a - s_b)."""

    names: tuple[str, ...]
    strengths: Vector
    """In the order of ``names``; 1 more multiplies the odds by e."""
    covariance: Vector
    """Covariance of the strengths. Judgements are taken as independent, which is not exact where
    systems answered the same questions; with graded preferences the covariance is too large."""

    @property
    def standard_errors(self) -> Vector:
        """Standard error of each strength, as a distance from the mean of all."""
        errors: Vector = np.sqrt(np.diag(self.covariance))
        return errors

    def win_probability(self, a: str, b: str) -> float:
        """Return the probability that ``a`` is preferred to ``b``; ``b, a`` gives one minus it.

        Raises:
            MetricError: an unknown name.
        """
        i, j = self._places(a, b)
        return 0.5 + 0.5 * tanh(float(self.strengths[i] - self.strengths[j]) / 2)

    def difference(self, a: str, b: str, *, confidence: float = 0.95) -> Interval:
        """Bound the strength of ``a`` minus that of ``b``, by the normal approximation.

        Raises:
            MetricError: an unknown name, or a confidence outside (0, 1).
        """
        check_share(confidence, name="confidence")
        i, j = self._places(a, b)
        gap = float(self.strengths[i] - self.strengths[j])
        v = self.covariance
        variance = float(v[i, i] + v[j, j] - 2 * v[i, j])
        half = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(max(variance, 0.0))
        return Interval(gap, gap - half, gap + half, confidence)

    def _places(self, a: str, b: str) -> tuple[int, int]:
        for name in (a, b):
            if name not in self.names:
                raise MetricError(f"Unknown system {name!r}; known: {', '.join(self.names)}.")
        return self.names.index(a), self.names.index(b)


def bradley_terry(
    comparisons: Iterable[tuple[str, str, float]], *, prior_sd: float = 3.0
) -> BradleyTerry:
    """Fit strengths to judgements (a, b, preference for a in [0, 1]; 0.5 is a tie).

    As ``bradley_terry_from_wins``; names are sorted, so the order of judgements does not matter.

    Raises:
        MetricError: as there, a preference outside [0, 1], or a system compared with itself.
    """
    judged = list(comparisons)
    for a, b, preference in judged:
        if a == b:
            raise MetricError(f"{a!r} is compared with itself.")
        if not 0 <= preference <= 1:
            raise MetricError(
                f"Preferences must be in [0, 1], but {a!r} against {b!r} is {preference}."
            )
    names = sorted({name for a, b, _ in judged for name in (a, b)})
    place = {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for a, b, preference in judged:
        wins[place[a], place[b]] += preference
        wins[place[b], place[a]] += 1 - preference
    return bradley_terry_from_wins(wins, names, prior_sd=prior_sd)


def bradley_terry_from_wins(
    wins: Vector, names: Sequence[str], *, prior_sd: float = 3.0
) -> BradleyTerry:
    """Fit strengths to ``wins``: how often the row's system beat the column's; a tie is half a win.

    Bradley & Terry (Biometrika 39, 1952), by Newton's method, with independent normal priors of
    mean 0 and standard deviation ``prior_sd`` log-odds. The default is weak: 100 judgements that
    imply a difference of 1 lose 0.3 % of it, an eightieth of its standard error. It keeps
    strengths finite where one group of systems won every comparison with the rest: ten wins in
    ten give 98 %, with a large standard error as the data set no upper end. Plain maximum
    likelihood, ``prior_sd=inf``, has no solution there and raises.

    Args:
        wins: (n_systems, n_systems), finite, at least 0, with 0 on the diagonal.
        names: Names of the systems, in the order of the rows.
        prior_sd: Above 0; ``inf`` for no prior.

    Raises:
        MetricError: fewer than 2 systems, duplicate names, a matrix of another shape or content,
            groups of systems never compared with each other, or, without a prior, a group that
            won every comparison with the rest.
    """
    counts = _checked(np.asarray(wins, dtype=np.float64), names)
    if not prior_sd > 0:
        raise MetricError(f"`prior_sd` must be above 0, but got {prior_sd}.")
    _check_graph(counts > 0, names, has_prior=prior_sd < inf)
    precision = (1 / prior_sd) ** 2
    strengths = np.zeros(len(names))
    for _ in range(_MAX_STEPS):
        slope, information = _derivatives(counts, strengths, precision)
        step = _inverse(information) @ slope
        # Log-odds that jump by more than 1 leave the region where Newton's parabola holds.
        step /= max(1.0, float(np.abs(step).max()))
        strengths = strengths + step
        if float(np.abs(step).max()) < 1e-12:
            break
    strengths = strengths - strengths.mean()
    _, information = _derivatives(counts, strengths, precision)
    return BradleyTerry(tuple(names), strengths, _inverse(information))


def _derivatives(counts: Vector, strengths: Vector, precision: float) -> tuple[Vector, Vector]:
    """Return the slope of the log posterior and its negative curvature."""
    share = 0.5 + 0.5 * np.tanh((strengths[:, None] - strengths) / 2)
    games = counts + counts.T
    slope: Vector = (counts - games * share).sum(axis=1) - precision * strengths
    weight = games * share * (1 - share)
    curvature: Vector = np.diag(weight.sum(axis=1) + precision) - weight
    return slope, curvature


def _inverse(information: Vector) -> Vector:
    """Return the inverse on strengths that sum to 0, as only their differences matter."""
    n = len(information)
    share = np.full(information.shape, 1 / n)
    centre = np.eye(n) - share
    size = float(np.trace(information)) / n
    inverse: Vector = centre @ np.linalg.inv(information + size * share) @ centre
    return inverse


def _checked(counts: Vector, names: Sequence[str]) -> Vector:
    n = len(names)
    if n < 2 or len(set(names)) < n:
        raise MetricError(f"Two or more systems with different names are needed, got {[*names]}.")
    if counts.shape != (n, n):
        raise MetricError(f"`wins` must be {n} by {n}, but has shape {counts.shape}.")
    if not np.isfinite(counts).all() or counts.min() < 0 or np.diag(counts).any():
        raise MetricError("`wins` must be finite, at least 0, and 0 on the diagonal.")
    return counts


def _check_graph(beat: NDArray[np.bool_], names: Sequence[str], *, has_prior: bool) -> None:
    linked = _reached(beat | beat.T)
    if not linked.all():
        alone = [name for name, seen in zip(names, linked, strict=True) if not seen]
        raise MetricError(
            f"Not compared with {names[0]!r}, nor with a system that was compared with it: "
            f"{', '.join(alone)}."
        )
    below, above = _reached(beat), _reached(beat.T)
    if not has_prior and not (below & above).all():
        apart = [n for n, seen in zip(names, below & above, strict=True) if not seen]
        raise MetricError(
            f"The strength against {names[0]!r} is unbounded, because one side won every "
            f"comparison: {', '.join(apart)}. Give a finite `prior_sd`."
        )


def _reached(arrows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark what can be reached from the first system along the arrows."""
    reached: NDArray[np.bool_] = np.arange(len(arrows)) == 0
    while (further := reached | arrows[reached].any(axis=0)).sum() > reached.sum():
        reached = further
    return reached

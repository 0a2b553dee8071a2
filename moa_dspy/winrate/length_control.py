"""AlpacaEval 2's length-controlled win rate, and the penalised logistic regression behind it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import Scores, Vector, score_vector

GRID: Vector = np.logspace(-4, 4, 10)
_N_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class RegressionRows:
    """Rows of a logistic regression whose targets are probabilities."""

    features: Vector
    """(n_rows, 3): length, difficulty, model."""
    targets: Vector
    weights: Vector

    def where(self, kept: NDArray[np.bool_]) -> RegressionRows:
        """Return the rows that are marked."""
        return RegressionRows(self.features[kept], self.targets[kept], self.weights[kept])


def fitted_coefficients(rows: RegressionRows, c: float, *, seed: int) -> tuple[float, float, float]:
    """Minimise the L1 norm of the coefficients + ``c`` times the weighted cross-entropy.

    There is no intercept. The stopping tolerance of liblinear, 1e-4, is part of the definition, as
    the exact minimum differs by up to 0.016 percent points of win rate. A target p becomes two
    rows, a win with weight p and a loss with weight 1 - p.

    Raises:
        MetricError: all targets are 0, or all are 1.
    """
    # Imported here: scikit-learn costs a second that most callers of this package never need.
    from sklearn.linear_model import LogisticRegression

    if rows.targets.max() == 0 or rows.targets.min() == 1:
        raise MetricError(f"All preferences are {rows.targets[0]:g}: nothing can be fitted.")
    model = LogisticRegression(
        C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=seed
    )
    labels = np.repeat([1, 0], rows.targets.size)
    shares = np.concatenate([rows.targets, 1 - rows.targets]) * np.tile(rows.weights, 2)
    model.fit(np.tile(rows.features, (2, 1)), labels, sample_weight=shares)
    length, difficulty, constant = model.coef_[0].tolist()
    return length, difficulty, constant


def chosen_c(rows: RegressionRows, *, seed: int) -> float:
    """Choose c among ten from 1e-4 to 1e4 by the cross-entropy on held-out rows.

    Five folds; row k is in fold k modulo 5, as in scikit-learn's grouped folds. The mean of a fold
    is over its rows, not weighted. Of equally good values the smallest is chosen.

    Raises:
        MetricError: fewer than 5 rows, or a fold leaves targets that are all 0 or all 1.
    """
    n_rows = rows.targets.size
    if n_rows < _N_FOLDS:
        raise MetricError(f"Cross-validation needs at least {_N_FOLDS} rows, but got {n_rows}.")
    folds = np.arange(n_rows) % _N_FOLDS
    scores = [[_score(rows, folds == fold, c, seed) for fold in range(_N_FOLDS)] for c in GRID]
    return float(GRID[np.mean(scores, axis=1).argmax()])


def _score(rows: RegressionRows, held_out: NDArray[np.bool_], c: float, seed: int) -> float:
    weights = np.array(fitted_coefficients(rows.where(~held_out), c, seed=seed))
    test = rows.where(held_out)
    predicted = np.clip(0.5 + 0.5 * np.tanh(test.features @ weights / 2), 1e-15, 1 - 1e-15)
    likelihood = test.targets * np.log(predicted) + (1 - test.targets) * np.log1p(-predicted)
    return float((test.weights * likelihood).mean())


Align = Literal["position", "instruction"]
_GAMED_WEIGHT = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class GamedRows:
    """Judgements of a verbose and a concise version of the baseline against the plain baseline.

    One entry per judgement. They show the effect of length alone, with the same model; each has a
    tenth of the weight of a judgement of the model that is evaluated.

    Raises:
        MetricError: a preference outside [0, 1], a number that is not finite, or fields of
            different lengths.
    """

    preferences: Scores
    """In [0, 1]; 1 where the gamed version is preferred to the plain baseline."""
    length_gaps: Scores
    """Of each version as ``standardised_length_gaps`` gives them, before the tanh."""
    difficulty: Scores
    """The difficulty of each row's instruction."""

    def __post_init__(self) -> None:
        n = score_vector(self.preferences, name="gamed.preferences", unit=True).size
        gaps = score_vector(self.length_gaps, name="gamed.length_gaps").size
        difficulty = score_vector(self.difficulty, name="gamed.difficulty").size
        if (gaps, difficulty) != (n, n):
            raise MetricError(
                f"`gamed` must have one value of each kind per row, but there are {n} "
                f"preferences, {gaps} length gaps and {difficulty} difficulties."
            )


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of the log-odds that a model beats the baseline; the baseline's are 0."""

    length: float = 0.0
    """Of tanh(baseline's length - model's, in standard deviations); negative: longer ones win."""
    difficulty: float = 0.0
    model: float = 0.0


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate; multiply by 100 for the percent of the leaderboard."""

    win_rate: float
    """In [0, 1]; 0.5 is as good as the baseline."""
    standard_error: float
    """Standard error of the mean prediction over the instructions, on the same scale. It ignores
    the error of the coefficients, so it is far below that of the plain win rate."""
    coefficients: Coefficients
    c: float
    """Inverse strength of the penalty: as given, or as cross-validation chose it."""


def standardised_length_gaps(lengths: Scores, baseline_lengths: Scores) -> Vector:
    """Return (baseline's length - model's) / its standard deviation (n - 1); not centred.

    Lengths are numbers of characters. Where all gaps are equal there is no deviation: gaps of 0
    stay 0 and others become infinite, as in AlpacaEval's division.

    Raises:
        MetricError: lengths differ in number, fewer than 2 examples, or one is not finite.
    """
    own = score_vector(lengths, name="lengths")
    other = score_vector(baseline_lengths, name="baseline_lengths")
    if own.size != other.size or own.size < 2:
        raise MetricError(
            "`lengths` and `baseline_lengths` must be of the same 2 or more examples, "
            f"but there are {own.size} and {other.size}."
        )
    gaps: Vector = other - own
    spread = float(gaps.std(ddof=1))
    if spread > 0:
        return gaps / spread
    return np.where(gaps == 0, 0.0, np.copysign(np.inf, gaps))


def length_controlled(
    preferences: Scores,
    lengths: Scores,
    baseline_lengths: Scores,
    *,
    difficulty: Scores,
    gamed: GamedRows,
    c: float | None = None,
    seed: int = 123,
    align: Align = "position",
) -> LengthControlled:
    """Estimate the win rate that a model would have if its responses were the baseline's length.

    Dubois et al. (arXiv:2404.04475) as released in AlpacaEval 2 ("length_controlled_v1"): with
    t = tanh(standardised gap of lengths), d = difficulty and b = 1 on the model's rows, 0 on the
    gamed ones, P(preferred) = sigmoid(w_t t + w_d d + w_b b) is fitted with an L1 penalty; the
    result is the mean of sigmoid(w_d d + w_b). On recorded leaderboard models it equals the
    published number within 1e-8 at the published ``c``. It takes about 0.1 s for 805 examples,
    all but 3 ms of it for cross-validation.

    Args:
        preferences: In [0, 1] per instruction, 1 where the model is preferred to the baseline;
            NaN where there is none. Such rows are left out of fit and prediction.
        lengths: Characters of the model's responses; read only where there is a preference.
        baseline_lengths: Characters of the baseline's responses.
        difficulty: One number per instruction, finite, larger where models do better.
        gamed: Further judgements, by which the effect of length is estimated.
        c: Inverse strength of the penalty; None chooses it among ten by cross-validation.
        seed: Seed of the solver's order of coordinates; affects the last digits only.
        align: The difficulty of the k-th judged row where judgements are missing. "position": the
            k-th entry of ``difficulty``, which reproduces the leaderboard and its mistake;
            "instruction": that of its own instruction, which is right.

    Raises:
        MetricError: fields of different lengths, fewer than 2 preferences, one outside [0, 1], a
            length or difficulty that is not finite, a ``c`` that is not positive, an unknown
            ``align``, or preferences, gamed ones included, that are all 0 or all 1.
    """
    if align not in ("position", "instruction"):
        raise MetricError(f"`align` must be 'position' or 'instruction', but got {align!r}.")
    if c is not None and not 0 < c < np.inf:
        raise MetricError(f"`c` must be positive and finite, but got {c}.")
    wins = np.asarray(preferences, dtype=np.float64)
    hard = score_vector(difficulty, name="difficulty")
    columns = (np.asarray(x, dtype=np.float64) for x in (lengths, baseline_lengths))
    own, other = (_same_shape(x, hard, wins) for x in columns)
    judged = ~np.isnan(wins)
    gaps = standardised_length_gaps(own[judged], other[judged])
    wins = score_vector(wins[judged], name="preferences", unit=True)
    hard = hard[judged] if align == "instruction" else hard[: wins.size]
    rows = _rows(wins, gaps, hard, gamed)
    chosen = chosen_c(rows, seed=seed) if c is None else float(c)
    coefficients = Coefficients(*fitted_coefficients(rows, chosen, seed=seed))
    equal = _predicted(coefficients, hard)
    error = sqrt(float(equal.var(ddof=1)) / equal.size)
    return LengthControlled(float(equal.mean()), error, coefficients, chosen)


STUDY_C: Final = 1.0
"""Inverse strength of the penalty for the few rows of a study: a weak length effect counts as 0."""


def at_equal_length(preferences: Scores, lengths: Scores, baseline_lengths: Scores) -> Vector:
    """Return each preference as it would be if both responses had the same length, in [0, 1].

    The fitted effect of length on the probability of a row is subtracted from its preference:
    p - sigmoid(w_t t + w_b) + sigmoid(w_b), with t as in ``length_controlled`` and no difficulty.
    So rows can be compared in pairs, and their mean is the length-controlled win rate up to the
    penalty. Preferences that are all 0 or all 1 cannot be fitted and stay as they are.

    Raises:
        MetricError: lengths differ in number, fewer than 2 examples, or a preference outside
            [0, 1].
    """
    wins = score_vector(preferences, name="preferences", unit=True)
    gaps = standardised_length_gaps(lengths, baseline_lengths)
    if wins.max() == 0 or wins.min() == 1:
        return wins
    rows = _rows(wins, gaps, np.zeros(wins.size), None)
    coefficients = Coefficients(*fitted_coefficients(rows, STUDY_C, seed=0))
    level = _predicted(coefficients, np.zeros(wins.size))
    log_odds = coefficients.length * np.tanh(gaps) + coefficients.model
    adjusted: Vector = np.clip(wins - (0.5 + 0.5 * np.tanh(log_odds / 2)) + level, 0.0, 1.0)
    return adjusted


def length_controlled_preference(
    first: Coefficients, second: Coefficients, *, difficulty: Scores
) -> float:
    """Predict how often ``first`` would be preferred to ``second`` at equal lengths, in [0, 1].

    Mean of sigmoid of the difference of their log-odds against the common baseline; swapping
    the two gives one minus the result, and ``Coefficients()`` is the baseline itself.

    Raises:
        MetricError: no difficulty, or one that is not finite.
    """
    gap = Coefficients(
        difficulty=first.difficulty - second.difficulty, model=first.model - second.model
    )
    return float(_predicted(gap, score_vector(difficulty, name="difficulty")).mean())


def _same_shape(lengths: Vector, difficulty: Vector, preferences: Vector) -> Vector:
    if not lengths.shape == difficulty.shape == preferences.shape:
        raise MetricError(
            "Preferences, lengths and difficulty must be of the same instructions, but have "
            f"shapes {preferences.shape}, {lengths.shape} and {difficulty.shape}."
        )
    return lengths


def _rows(
    wins: Vector, gaps: Vector, difficulty: Vector, gamed: GamedRows | None
) -> RegressionRows:
    if gamed is None:
        features = np.column_stack([np.tanh(gaps), difficulty, np.ones(wins.size)])
        return RegressionRows(features, wins, np.ones(wins.size))
    n_gamed = len(gamed.preferences)
    features = np.column_stack(
        [
            np.tanh(np.concatenate([gaps, gamed.length_gaps])),
            np.concatenate([difficulty, gamed.difficulty]),
            np.concatenate([np.ones(wins.size), np.zeros(n_gamed)]),
        ]
    )
    weights = np.concatenate([np.ones(wins.size), np.full(n_gamed, _GAMED_WEIGHT)])
    return RegressionRows(features, np.concatenate([wins, gamed.preferences]), weights)


def _predicted(coefficients: Coefficients, difficulty: Vector) -> Vector:
    # tanh form of the sigmoid: it cannot overflow.
    log_odds = coefficients.difficulty * difficulty + coefficients.model
    predicted: Vector = 0.5 + 0.5 * np.tanh(log_odds / 2)
    return predicted

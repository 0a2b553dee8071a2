"""Optuna's samplers and plain chance, choosing a vote by its dev score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
import optuna

from tests.bench.quality._baselines import Dev
from tests.bench.quality._votes import MOST, Weights, vote_scores, weights_of

Directions: TypeAlias = Sequence[Literal["maximize", "minimize"]]
N_TPE: Final = 300
N_NSGA: Final = 1_000
N_RANDOM: Final = 300
POPULATION: Final = 50


def tpe(dev: Dev, *, seed: int) -> Weights:
    """One boolean per model, dev score; more than 7 members are infeasible."""
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = _study(("maximize",), sampler)
    study.optimize(lambda trial: _score(dev, _suggest(dev, trial)), n_trials=N_TPE)
    return _weights(dev, study.best_trial)


def nsga2(dev: Dev, *, seed: int) -> Weights:
    """Dev score up and size down, population 50; the best dev score of the feasible."""
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = _study(("maximize", "minimize"), sampler)

    def both(trial: optuna.Trial) -> tuple[float, int]:
        weights = _suggest(dev, trial)
        return _score(dev, weights), round(sum(weights))

    study.optimize(both, n_trials=N_NSGA)
    feasible = [t for t in study.trials if all(c <= 0 for c in t.constraints.values())]
    best = max(feasible, key=lambda t: (t.values[0], -t.values[1]))
    return _weights(dev, best)


def chance(dev: Dev, *, seed: int) -> Weights:
    """The best dev score of 300 sets; the size is uniform in 1 to 7, and so are the members."""
    rng = np.random.default_rng([seed, N_RANDOM])
    drawn = []
    for _ in range(N_RANDOM):
        size = rng.integers(1, min(MOST, dev.n_models) + 1)
        members = rng.choice(dev.n_models, size, replace=False)
        drawn.append(weights_of(set(members.tolist()), dev.n_models))
    return max(drawn, key=dev.vote_mean)


def _study(directions: Directions, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=directions, sampler=sampler)


def _suggest(dev: Dev, trial: optuna.Trial) -> Weights:
    places = range(dev.n_models)
    weights = tuple(int(trial.suggest_categorical(f"m{i}", [False, True])) for i in places)
    # A vote of nobody has no score: it is infeasible as well.
    trial.set_constraint("members", max(sum(weights) - MOST, 1 - sum(weights)))
    return weights


def _score(dev: Dev, weights: Weights) -> float:
    if not any(weights):
        return 0.0
    if sum(weights) <= MOST:
        return dev.vote_mean(weights)
    return float(vote_scores(dev.best_first, weights).mean())


def _weights(dev: Dev, trial: optuna.trial.FrozenTrial) -> Weights:
    return tuple(int(trial.params[f"m{i}"]) for i in range(dev.n_models))


SAMPLERS: dict[str, Callable[..., Weights]] = {"tpe300": tpe, "nsga2": nsga2}
"""Slow ones: they are told the seed, and may be left out of most splits."""

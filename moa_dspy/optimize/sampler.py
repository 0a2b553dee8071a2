"""The sampler of a search, for any Optuna study: by the paper's two criteria, from the trials."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import fmean
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.files import shown_value
from moa_dspy.optimize.space.programs import ProgramArchitecture, ProgramSpace, read_architecture
from moa_dspy.optimize.space.rules import combine_features
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.acquisition import Acquisition, PriceOf, single_agents
from moa_dspy.optimize.surrogate.gp import PARTS, FeatureMatrix, Kernels, Traits, finite, padded

ROW_SCORES: Final = "row_scores"
"""User attribute of a trial: its score on each row, in one order for all trials."""
ARCHITECTURE: Final = "architecture"
"""User attribute of a trial: its architecture in text notation."""


@dataclass(frozen=True, slots=True)
class GivenChoices:
    """Suggests what is given, and notes the distributions that it was asked for."""

    params: Mapping[str, Any]
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return what is given for ``name``."""
        self.distributions[name] = CategoricalDistribution(choices)
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        """Return what is given for ``name``."""
        self.distributions[name] = IntDistribution(low, high)
        return int(self.params[name])


_SOON: Final = timedelta(minutes=1)  # in which a trial of another process stores its choices


@dataclass(slots=True)
class _TrialHistory:
    """The known trials of one study, by number.

    Attributes:
        trials: As they were last seen: a pruner may show the sampler some of them only.
        architectures: What each measures; None of another space.
        rows: Their scores.
        open: What is proposed and not finished.
        refused: What was proposed, and something else was measured: some choice was not free.
    """

    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    architectures: dict[int, Architecture | None] = field(default_factory=dict)
    rows: dict[int, FeatureMatrix] = field(default_factory=dict)
    open: dict[int, Architecture] = field(default_factory=dict)
    refused: set[Architecture] = field(default_factory=set)

    def is_of(self, trials: Sequence[FrozenTrial]) -> bool:
        """True unless these are of another study, which has the same name."""
        pairs = [(self.trials.get(trial.number, trial), trial) for trial in trials]
        return all(a.datetime_start in (None, b.datetime_start) for a, b in pairs)


class PerformanceDiversitySampler(optuna.samplers.BaseSampler):
    """Proposes architectures of a ``SearchSpace`` by performance and diversity of their agents.

    These are the two criteria by which the Mixture-of-Agents paper (arXiv:2406.04692, 2.2)
    selects models. A surrogate model learns from the trials of the study what each is worth;
    the architecture with the highest expected improvement per new call is proposed, or, while the
    model predicts no better than a mean, a random one, by turns one of few new calls. Single
    agents come first: their scores are the performance. None is proposed twice while the space
    has others, those of running trials included. The default of ``ModelSearch``, and of use
    in any study whose objective calls ``space.suggest(trial)``:

        sampler = PerformanceDiversitySampler(space, seed=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(lambda trial: score(space.suggest(trial)), n_trials=40)

    The model learns from a trial's value (of several, from weighted sums with other weights each
    time, as ParEGO does), or more exactly from the user attribute ``row_scores``, the scores of
    an architecture on every row, where all trials have it: high ones are good, unless their mean
    is the one value that the study minimises. A value that breaks a constraint of
    ``trial.set_constraint`` counts as the worst. Other parameters are drawn at random. Safe for
    ``n_jobs``, and for several processes, which are taken to begin with other proposals.

    Args:
        space: The space that the objective suggests from.
        seed: Seed of all draws; None draws one.
        diversity: Returns the diversity of the answers of two agents, in [0, 1]; default: the
            mean difference of their ``row_scores``, and without those that of unlike agents.
        traits: The criteria, where they are known; default: learned from the study.
        canonical: Gives an architecture its final form; default: its own.
        price_at: See ``Acquisition``.

    Raises:
        StudyError: If ``space`` is no space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int | None = None,
        diversity: Callable[[str, str], float] | None = None,
        traits: Traits | None = None,
        canonical: Callable[[Architecture], Architecture] | None = None,
        price_at: Callable[[int], PriceOf] | None = None,
    ) -> None:
        if not isinstance(space, SearchSpace):
            raise StudyError(f"`space` must be a SearchSpace, but got {shown_value(space)}.")
        self._space, self._diversity, self._traits = space, diversity, traits
        self._canonical = canonical or _unchanged
        self._price_at = price_at
        self._seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        self._independent = optuna.samplers.RandomSampler(seed=self._seed)
        self._acquisition: Acquisition | None = None
        self._studies: dict[str, _TrialHistory] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def reseed_rng(self) -> None:
        """Draw another seed, for one of several processes of a study."""
        with self._lock:
            self._seed = random.SystemRandom().randrange(2**32)
            self._independent.reseed_rng()
            if self._acquisition is not None:
                self._acquisition.seed = self._seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of the architecture that is proposed."""
        with self._lock:
            proposed = self._propose(study, trial)
            params = None if proposed is None else self._space.params(proposed)
            if proposed is None or params is None:
                return {}
            self._studies[study.study_name].open[trial.number] = proposed
            choices = GivenChoices(params)
            self._space.suggest(choices)
            return choices.distributions

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the choices that make up the proposed architecture."""
        proposed = self._studies[study.study_name].open.get(trial.number)
        params = None if proposed is None else self._space.params(proposed)
        return {name: (params or {})[name] for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw what is no part of the proposal, or of a space that has nothing left."""
        with self._lock:
            return self._independent.sample_independent(
                study, trial, param_name, param_distribution
            )

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Note what became of a proposal: the study knows it now."""
        with self._lock:
            if (seen := self._studies.get(study.study_name)) is None:
                return
            seen.trials[trial.number] = trial
            proposed, measured = seen.open.pop(trial.number, None), self._read(trial)
            if proposed is not None and measured is not None and proposed != measured:
                seen.refused.add(proposed)

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> Architecture | None:
        seen = self._history(study)
        finished: list[tuple[Architecture, FrozenTrial]] = []
        taken, n_unknown = {*seen.open.values(), *seen.refused}, 0
        for _, other in sorted(seen.trials.items()):
            architecture = None if other.number == trial.number else self._architecture(seen, other)
            if architecture is None:
                n_unknown += other.number not in seen.open and _begins_with(other, trial)
            elif other.state in (TrialState.COMPLETE, TrialState.PRUNED) and _is_told(other):
                finished.append((architecture, other))
            else:
                taken.add(architecture)
        measured = dict(finished)
        singles = single_agents(self._space)
        if free := [single for single in singles if single not in measured and single not in taken]:
            return free[n_unknown % len(free)]
        scores = self._scores(study, seen, list(measured.values()))
        acquisition = self._acquisition_of(list(measured), scores)
        for _ in range(n_unknown):
            # Another process is about to measure it.
            if (passed := acquisition.propose(list(measured), scores, taken=taken)) is not None:
                taken.add(passed)
        return acquisition.propose(list(measured), scores, taken=taken)

    def _history(self, study: optuna.Study) -> _TrialHistory:
        """Return what is known of the trials of a study, those included that it shows now."""
        trials = study.get_trials(deepcopy=False)
        seen = self._studies.get(study.study_name)
        if seen is None or not seen.is_of(trials):
            seen = self._studies[study.study_name] = _TrialHistory()
        seen.trials.update((trial.number, trial) for trial in trials)
        return seen

    def _architecture(self, seen: _TrialHistory, trial: FrozenTrial) -> Architecture | None:
        """Return what a trial measures; None while it is not known."""
        if trial.number not in seen.architectures:
            architecture = self._read(trial)
            if architecture is None and not trial.state.is_finished():
                return None
            seen.architectures[trial.number] = architecture
        return seen.architectures[trial.number]

    def _read(self, trial: FrozenTrial) -> Architecture | None:
        text, names = trial.user_attrs.get(ARCHITECTURE), self._space.agents
        with suppress(ArchitectureError):  # in a study of the user's own it may mean anything
            if isinstance(text, str) and set((arch := read_architecture(text)).agents) <= {*names}:
                return arch
        with suppress(KeyError):  # of another space, or not suggested to its end
            return self._canonical(self._space.suggest(GivenChoices(trial.params)))
        return None

    def _scores(
        self, study: optuna.Study, seen: _TrialHistory, trials: Sequence[FrozenTrial]
    ) -> FeatureMatrix:
        """Return (trials, rows), the higher the better; one column where rows are not known."""
        if not trials:
            return np.empty((0, 1))
        if all(ROW_SCORES in trial.user_attrs for trial in trials):
            table = padded([_row_scores(seen, trial) for trial in trials])
            return 1 - table if _are_losses(study, trials, table) else table
        signs = [1 if goal == StudyDirection.MAXIMIZE else -1 for goal in study.directions]
        values = np.array([trial.values for trial in trials], np.float64) * signs
        return _within_constraints(self._weighted(finite(values)), trials)[:, None]

    def _weighted(self, values: FeatureMatrix) -> FeatureMatrix:
        """Return one number per trial, in [0, 1]: of several objectives, a scalarisation.

        Weights are drawn anew for each proposal (Knowles 2006, ParEGO), so that proposals
        spread along the front.
        """
        n, n_objectives = values.shape
        if n_objectives == 1 and values.min() >= 0 and values.max() <= 1:
            return values[:, 0]
        lows, spans = values.min(0), np.ptp(values, axis=0)
        scaled = (values - lows) / np.where(spans > 0, spans, 1.0)
        if n_objectives == 1:
            return np.asarray(scaled[:, 0], np.float64)
        rng = np.random.default_rng([self._seed, n])
        parts = scaled * rng.dirichlet(np.ones(n_objectives))
        return np.asarray((parts.min(1) + 0.05 * parts.sum(1)) / 1.05, np.float64)

    def _acquisition_of(
        self, measured: Sequence[Architecture], scores: FeatureMatrix
    ) -> Acquisition:
        """Return the acquisition with the criteria known now; what it learned is kept."""
        kernels = self._kernels(dict(zip(measured, scores, strict=True)))
        if self._acquisition is None or not self._acquisition.kernels.compares_as(kernels):
            self._acquisition = Acquisition(
                self._space, kernels, self._canonical, self._seed, self._price_at
            )
        return self._acquisition

    def _kernels(self, scores: Mapping[Architecture, FeatureMatrix]) -> Kernels:
        if isinstance(self._space, ProgramSpace):
            return program_kernels(self._space, scores, self._diversity)
        return Kernels.of(self._traits or self._learned_traits(scores))

    def _learned_traits(self, scores: Mapping[Architecture, FeatureMatrix]) -> Traits:
        rows = {name: scores.get(Architecture.single(name)) for name in self._space.agents}
        measured = {name: row for name, row in rows.items() if row is not None}
        return _traits_of(self._space, measured, self._diversity)


@dataclass(frozen=True)
class ProgramKernels(Kernels):
    """Compares architectures of a program: the sum of what compares each of its mixtures.

    So a score is a sum over mixtures, as far as the parts tell; what mixtures are worth only
    together is an architecture's own.

    Attributes:
        mixtures: The path of each mixture, and what compares its architectures.
    """

    mixtures: tuple[tuple[str, Kernels], ...] = ()

    def parts(
        self, rows: Sequence[Architecture], columns: Sequence[Architecture]
    ) -> dict[str, FeatureMatrix]:
        """Return one (rows, columns) matrix per part."""
        return _sums(
            kernels.parts(_parts_at(path, rows), _parts_at(path, columns))
            for path, kernels in self.mixtures
        )

    def own(self, architectures: Sequence[Architecture]) -> dict[str, FeatureMatrix]:
        """Return each architecture compared with itself, one vector per part."""
        return _sums(kernels.own(_parts_at(path, architectures)) for path, kernels in self.mixtures)

    def compares_as(self, other: Kernels) -> bool:
        """True if both know the same of the agents."""
        own_traits = [kernels.traits for _, kernels in self.mixtures]
        other_mixtures = other.mixtures if isinstance(other, ProgramKernels) else ()
        return own_traits == [kernels.traits for _, kernels in other_mixtures]


def _parts_at(path: str, architectures: Sequence[Architecture]) -> list[Architecture]:
    return [arch.at(path) for arch in architectures if isinstance(arch, ProgramArchitecture)]


def _sums(several: Iterable[Mapping[str, FeatureMatrix]]) -> dict[str, FeatureMatrix]:
    first, *rest = several
    return {part: sum((table[part] for table in rest), start=first[part]) for part in PARTS}


def program_kernels(
    space: ProgramSpace,
    scores: Mapping[Architecture, FeatureMatrix],
    diversity: Callable[[str, str], float] | None = None,
) -> ProgramKernels:
    """Return the kernels of a program, whose traits are learned from single agents in mixtures.

    An agent is worth in a mixture what the best program with it alone there scores, of those
    whose mixtures are all single agents.

    Args:
        space: Space of the program.
        scores: Per row, of what was measured.
        diversity: Diversity of the answers of two agents; default: mean difference of the scores.
    """
    alone = [arch for arch in scores if isinstance(arch, ProgramArchitecture) and not arch.layers]
    kernels: list[tuple[str, Kernels]] = []
    for path, inside in space.mixtures:
        best: dict[str, FeatureMatrix] = {}
        for single in sorted(alone, key=lambda arch: float(np.nanmean(scores[arch]))):
            best[str(single.at(path))] = scores[single]
        traits = _traits_of(inside, {n: best[n] for n in inside.agents if n in best}, diversity)
        kernels.append((path, Kernels.of(traits)))
    return ProgramKernels(kernels[0][1].traits, kernels[0][1].seats, tuple(kernels))


def _traits_of(
    space: SearchSpace,
    rows: Mapping[str, FeatureMatrix],
    diversity: Callable[[str, str], float] | None,
) -> Traits:
    """Return the criteria, from the scores of single agents; what is not known is their mean."""
    means = {name: float(np.nanmean(row)) for name, row in rows.items()}
    usual = fmean(means.values()) if means else 0.5
    every = {name: means.get(name, usual) for name in space.agents}
    return Traits(every, diversity or _pair_of(rows), space.prompts, combine_features(space))


@dataclass(frozen=True)
class _RowDifferences:
    """The mean difference of the scores of two agents on the rows; equal for equal scores."""

    means: Mapping[tuple[str, str], float]

    def __call__(self, a: str, b: str) -> float:
        return 0.0 if a == b else self.means.get((min(a, b), max(a, b)), 1.0)


def _pair_of(rows: Mapping[str, FeatureMatrix]) -> _RowDifferences:
    if any(len(row) < 2 for row in rows.values()):
        return _RowDifferences({})
    names = sorted(rows)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    return _RowDifferences({p: float(np.nanmean(abs(rows[p[0]] - rows[p[1]]))) for p in pairs})


def _within_constraints(values: FeatureMatrix, trials: Sequence[FrozenTrial]) -> FeatureMatrix:
    """Return values in [0, 1], the worst where a constraint is broken; ranked if all break one."""
    broken = np.array([sum(max(0, excess) for excess in t.constraints.values()) for t in trials])
    if not broken.any():
        return values
    kept = 1 - broken / broken.max()
    if not broken.all():
        kept = np.where(broken > 0, values[broken == 0].min(), values)
    return np.asarray(kept, np.float64)


def _row_scores(seen: _TrialHistory, trial: FrozenTrial) -> FeatureMatrix:
    if trial.number not in seen.rows:
        given, rows = trial.user_attrs[ROW_SCORES], np.empty(())
        with suppress(TypeError, ValueError):
            rows = np.array(given, np.float64)
        if rows.ndim != 1 or not np.isfinite(rows).any():
            wrong = f"but in trial {trial.number} it is {shown_value(given)}"
            raise StudyError(f"User attribute `row_scores` must be a list of numbers, {wrong}.")
        seen.rows[trial.number] = rows
    return seen.rows[trial.number]


def _are_losses(study: optuna.Study, trials: Sequence[FrozenTrial], rows: FeatureMatrix) -> bool:
    """True if the means of the rows are the values that the study minimises."""
    pairs = [(r, t.values[0]) for r, t in zip(rows, trials, strict=True) if t.values is not None]
    if not pairs or study.directions != [StudyDirection.MINIMIZE]:
        return False
    return all(np.isclose(np.nanmean(row), value) for row, value in pairs)


def _begins_with(other: FrozenTrial, trial: FrozenTrial) -> bool:
    """True if another process began a trial just before, whose choices are not stored yet."""
    start, before = trial.datetime_start, other.datetime_start
    if start is None or before is None or other.number >= trial.number:
        return False
    return other.state == TrialState.RUNNING and start - before < _SOON


def _is_told(trial: FrozenTrial) -> bool:
    return trial.values is not None or ROW_SCORES in trial.user_attrs


def _unchanged(architecture: Architecture) -> Architecture:
    return architecture

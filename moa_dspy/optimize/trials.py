"""The trials of a search as an Optuna study: proposed, measured elsewhere, and told."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.objectives import Objective
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.space.space import SearchSpace

_MOST_REPEATS = 4
"""Known architectures in a row after which a new one is drawn instead of asked for.

An ask takes 10 ms after 100 trials and 40 after 1,000: few, so that a trial takes no longer
to choose than a model takes to answer.
"""

MOST_DRAWS = 2_000
"""Known architectures drawn in a row after which the space counts as exhausted."""


def make_study(objectives: Sequence[Objective], *, seed: int, sampler: Any = None) -> optuna.Study:
    """Return an in-memory study: a sampler that must not wait for a database after every ask."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        directions=[objective.direction for objective in objectives],
        sampler=sampler or _tpe(seed),
    )


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    # Without groups only what all trials share, the kind, is sampled jointly: five of six
    # proposals were then architectures that the study knew.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An architecture to measure next.

    Attributes:
        architecture: In its canonical form, not measured before.
        origin: ``single``, ``baseline``, ``votes``, ``listed``, ``sampler``, ``model``,
            ``random`` or ``prompt``.
        trial: Of Optuna; None until it is told, where the sampler was not asked.
        params: Optuna's, where the sampler was not asked; None outside of the space.
    """

    architecture: Architecture
    origin: str
    trial: optuna.Trial | None = None
    params: dict[str, Any] | None = None


@dataclass(slots=True)
class Trials:
    """Proposes architectures, each once, and keeps the record of each in the order of measuring.

    Args:
        study: Made by ``make_study``.
        space: The architectures that may be proposed.
        ranking: Single agents, best first; it repairs layers that are too narrow or wide.
        canonical: Gives an architecture its final form: who decides ties, name of the prompt.
        seed: Of the draws that follow when the sampler only repeats itself.
        records: By architecture.
    """

    study: optuna.Study
    space: SearchSpace
    ranking: Sequence[str]
    canonical: Callable[[Architecture], Architecture]
    seed: int
    records: dict[Architecture, TrialRecord] = field(default_factory=dict)
    _rng: random.Random = field(init=False)
    _n_repeats: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(f"trials-{self.seed}")

    def fresh(self, architectures: Iterable[Architecture], *, origin: str) -> list[Proposal]:
        """Return the given architectures that are not measured yet, inside the space or not."""
        found: dict[Architecture, Proposal] = {}
        for one in architectures:
            form = self.canonical(one)
            if form not in self.records and form not in found:
                found[form] = Proposal(form, origin, params=self.space.params(one))
        return list(found.values())

    def draw(self) -> Proposal | None:
        """Return a random architecture that is not measured yet; None if none is left."""
        for _ in range(MOST_DRAWS):
            drawn = self.canonical(self.space.draw(self._rng))
            if fresh := self.fresh([drawn], origin="random"):
                return fresh[0]
        return None

    def ask(self) -> Proposal | None:
        """Return what the study's sampler proposes, or a draw where it only repeats itself.

        None if all of the space is measured.
        """
        while self._n_repeats < _MOST_REPEATS:
            trial = self.study.ask()
            architecture = self.canonical(self.space.suggest(trial, self.ranking))
            if architecture not in self.records:
                self._n_repeats = 0
                return Proposal(architecture, "sampler", trial)
            # What is known was told already: told again it would weigh more, and slow the next.
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self._n_repeats += 1
        self._n_repeats = 0
        return self.draw()

    def tell(
        self, proposal: Proposal, record: TrialRecord, values: Sequence[float]
    ) -> optuna.trial.FrozenTrial | None:
        """Keep the record of a measured proposal and tell the study its objective values.

        Returns:
            Optuna's trial; None for an architecture outside of the space.
        """
        self.records[proposal.architecture] = record
        trial = proposal.trial
        if trial is None:
            if proposal.params is None:
                return None
            self.study.enqueue_trial(proposal.params)
            trial = self.study.ask()
            self.space.suggest(trial, self.ranking)
        trial.set_user_attr("architecture", record.architecture)
        trial.set_user_attr("rows", record.rows)
        trial.set_user_attr("score", record.score)
        return self.study.tell(trial, list(values))

    def give_up(self, proposal: Proposal) -> None:
        """Tell the study that a proposal could not be measured."""
        if proposal.trial is not None:
            self.study.tell(proposal.trial, state=optuna.trial.TrialState.FAIL)

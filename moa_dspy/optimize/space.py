"""The architectures a study may try, and how Optuna names the choices."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.choices import Dice, Suggests, anonymous, each_multiset, multisets


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Depth, inclusion of each agent per layer, the combine, and the aggregator.

    Every single agent is in the space. Listed architectures are in it whatever the
    other limits say, so that a user's own mixture, or a recording, takes part.

    Attributes:
        agents: Names that may propose, or answer alone.
        combines: Allowed ways of the last step.
        aggregators: Who may synthesize; empty is every agent.
        rankers: Who may rank for ``select``; empty is consensus, without a model.
        max_depth: Most proposer layers of a searched architecture.
        min_width: Fewest proposers of a layer.
        max_width: Most proposers of a layer.
        max_samples: Most independent samples of one agent in a layer.
        listed: Further architectures.

    Raises:
        StudyError: If a limit or a name does not fit, naming it and the choices.
    """

    agents: tuple[str, ...]
    combines: tuple[str, ...] = ("synthesize", "vote")
    aggregators: tuple[str, ...] = ()
    rankers: tuple[str, ...] = ()
    max_depth: int = 2
    min_width: int = 2
    max_width: int = 3
    max_samples: int = 1
    listed: tuple[Architecture, ...] = ()

    def __post_init__(self) -> None:
        if not self.agents:
            raise StudyError("`space.agents` must name at least one agent.")
        self._check_names()
        self._check_limits()

    def _check_names(self) -> None:
        for option in ("agents", "combines", "aggregators", "rankers", "listed"):
            names = [str(name) for name in getattr(self, option)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise StudyError(f"`space.{option}` names {twice[0]!r} twice.")
        for name in self.combines:
            if name not in COMBINES:
                known = ", ".join(COMBINES)
                raise StudyError(f"`space.combines`: unknown {name!r}; known ones are {known}.")
        known = ", ".join(self.agents)
        named = (a for one in self.listed for a in one.agents)
        for name in (*self.aggregators, *self.rankers, *named):
            if name not in self.agents:
                raise StudyError(f"The space names agent {name!r}; its agents are {known}.")

    def _check_limits(self) -> None:
        if not 1 <= self.min_width <= self.max_width:
            raise StudyError(
                f"`space.min_width` must be in [1, max_width={self.max_width}], "
                f"but got {self.min_width}."
            )
        if self.max_depth < 0 or self.max_samples < 1:
            raise StudyError("`space.max_depth` must be at least 0 and `max_samples` at least 1.")
        if self.max_depth and not self.combines and not self.listed:
            raise StudyError("`space.combines` must name at least one way to combine.")

    @property
    def searches_layers(self) -> bool:
        """Whether anything beyond singles and listed architectures can be proposed."""
        seats = len(self.agents) * self.max_samples
        return bool(self.max_depth and self.combines and seats >= self.min_width)

    def suggest(self, trial: Suggests, ranking: Sequence[str] = ()) -> Architecture:
        """Draw one architecture.

        Parameter names are stable: they are the study's schema. The choice of ``kind``
        comes first and the rest depends on it, which TPE models branch by branch. A
        layer that is too narrow or too wide is repaired by ``ranking``, best agent first.
        """
        kinds = ["single", *(["layers"] if self.searches_layers else [])]
        kinds += ["listed"] if self.listed else []
        kind = trial.suggest_categorical("kind", kinds)
        if kind == "single":
            return Architecture.single(str(trial.suggest_categorical("agent", self.agents)))
        if kind == "listed":
            texts = [str(one) for one in self.listed]
            return Architecture.parse(str(trial.suggest_categorical("listed", texts)))
        depth = trial.suggest_int("depth", 1, self.max_depth)
        layers = tuple(
            self._repaired(self._suggest_layer(trial, i), ranking or self.agents)
            for i in range(1, depth + 1)
        )
        combine = str(trial.suggest_categorical("combine", self.combines))
        who = self.who_combines(combine)
        aggregator = str(trial.suggest_categorical(f"{combine}.aggregator", who)) if who else None
        return Architecture(layers, aggregator, combine)

    def _repaired(self, layer: Sequence[str], ranking: Sequence[str]) -> tuple[str, ...]:
        kept = sorted(layer, key=ranking.index)[: self.max_width]
        for name in list(ranking) * self.max_samples:
            if len(kept) < self.min_width and kept.count(name) < self.max_samples:
                kept.append(name)
        return tuple(kept)

    def _suggest_layer(self, trial: Suggests, number: int) -> tuple[str, ...]:
        layer: list[str] = []
        for name in self.agents:
            key = f"layer{number}.{name}"
            if self.max_samples == 1:
                layer += [name] * int(trial.suggest_categorical(key, [False, True]))
            else:
                layer += [name] * trial.suggest_int(key, 0, self.max_samples)
        return tuple(layer)

    def who_combines(self, combine: str) -> tuple[str, ...]:
        """Return the agents that may do the last step; empty where no choice is made."""
        # Who wins a tied vote is no choice: it follows from the scores of the single agents.
        ways = {"synthesize": self.aggregators or self.agents, "select": self.rankers}
        return ways.get(combine, ())

    def params(self, architecture: Architecture) -> dict[str, str | bool | int] | None:
        """Return the choices that ``suggest`` turns into ``architecture``; None if none do."""
        if not set(architecture.agents) <= set(self.agents):
            return None
        if not architecture.layers:
            return {"kind": "single", "agent": str(architecture.aggregator)}
        if str(architecture) in {str(one) for one in self.listed}:
            return {"kind": "listed", "listed": str(architecture)}
        depth, combine = architecture.depth, architecture.combine
        widths = (len(layer) for layer in architecture.layers)
        fits = (
            self.searches_layers
            and 1 <= depth <= self.max_depth
            and combine in self.combines
            and all(self.min_width <= width <= self.max_width for width in widths)
        )
        who = self.who_combines(combine)
        seats = who or ((architecture.aggregator,) if combine == "vote" else (None,))
        if not fits or architecture.aggregator not in seats:
            return None
        chosen: dict[str, str | bool | int] = {
            "kind": "layers",
            "depth": depth,
            "combine": combine,
        }
        if who:
            chosen[f"{combine}.aggregator"] = str(architecture.aggregator)
        for number, layer in enumerate(architecture.layers, start=1):
            for name in self.agents:
                count = layer.count(name)
                if count > self.max_samples:
                    return None
                key = f"layer{number}.{name}"
                chosen[key] = bool(count) if self.max_samples == 1 else count
        return chosen

    @property
    def size(self) -> int:
        """Number of different architectures, computed without listing them."""
        widths = range(self.min_width, self.max_width + 1)
        n_layers = sum(multisets(len(self.agents), w, self.max_samples) for w in widths)
        shapes = sum(n_layers**depth for depth in range(1, self.max_depth + 1))
        ways = sum(len(self.who_combines(c)) or 1 for c in self.combines)
        searched = shapes * ways if self.searches_layers else 0
        bare = replace(self, listed=())
        outside = {anonymous(one) for one in self.listed if not bare.holds(one)}
        return len(self.agents) + searched + len(outside)

    def holds(self, architecture: Architecture) -> bool:
        """Whether the study may try ``architecture``, whoever decides the ties of a vote."""
        listed = {anonymous(one) for one in self.listed}
        return anonymous(architecture) in listed or self.params(architecture) is not None

    def layers(self) -> Iterator[tuple[str, ...]]:
        """Yield every layer that may be searched; many, when width and pool are large."""
        for width in range(self.min_width, self.max_width + 1):
            yield from each_multiset(self.agents, width, self.max_samples)

    def draw(self, rng: random.Random) -> Architecture:
        """Return a random architecture: kinds by their size, then every choice evenly."""
        singles, listed = len(self.agents), len(self.listed)
        searched = max(0, self.size - singles - listed)
        ticket = rng.randrange(singles + listed + searched)
        if ticket < singles:
            return Architecture.single(self.agents[ticket])
        if ticket < singles + listed:
            return self.listed[ticket - singles]
        order = rng.sample(self.agents, len(self.agents))
        return self.suggest(Dice(rng), order)

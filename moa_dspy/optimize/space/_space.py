from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space._checks import check
from moa_dspy.optimize.space._choices import Dice, Suggests, anonymous
from moa_dspy.optimize.space._count import Counter, Way
from moa_dspy.optimize.space._parameters import params_of_layered, suggest_layered
from moa_dspy.optimize.space._reading import order_of
from moa_dspy.optimize.space._rules import Rules

_UNCOUNTED = 10**9


@dataclass(frozen=True)
class SearchSpace:
    """Depth, inclusion of each agent per layer, the combine, the aggregator, order and prompt.

    Every single agent is in the space. Listed architectures are in it whatever the
    other limits say, so that a user's own mixture, or a recording, takes part.
    One model at two temperatures is two agents.

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
        must_include: Who proposes in the first layer of every searched architecture.
        never_together: Pairs of agents of whom a searched architecture holds one at most,
            in any seats.
        providers: Whose agents may sit in a searched architecture; empty is everybody's.
        max_per_provider: Most proposers of one provider in a layer; None is no limit.
        provider_of: The provider of each agent, from ``providers_of``; needed by the two above.
        orders: In which a last step that asks a model may read: ``name``, ``best_first``,
            ``best_last``.
        prompts: Names of prompts for who synthesizes; ``own`` is the seat's own. Empty
            is no choice.
        ranking: Agents, best first, for ``orders``; empty is the order of ``agents``.

    Raises:
        StudyError: If a limit or a name does not fit, naming it and the choices, or if
            the constraints leave no layered architecture.
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
    must_include: tuple[str, ...] = ()
    never_together: tuple[tuple[str, str], ...] = ()
    providers: tuple[str, ...] = ()
    max_per_provider: int | None = None
    provider_of: Mapping[str, str] = field(default_factory=dict)
    orders: tuple[str, ...] = ("name",)
    prompts: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)

    @property
    def searches_layers(self) -> bool:
        """Whether anything beyond singles and listed architectures can be proposed."""
        seats = len(self.agents) * self.max_samples
        return bool(self.max_depth and self.combines and seats >= self.min_width)

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """Agents that may sit in a searched layered architecture."""
        if not self.providers:
            return self.agents
        return tuple(name for name in self.agents if self.provider_of[name] in self.providers)

    @cached_property
    def rules(self) -> Rules:
        """What a searched layered architecture keeps to."""
        return Rules(
            agents=self.searched,
            min_width=self.min_width,
            max_width=self.max_width,
            max_samples=self.max_samples,
            must_include=self.must_include,
            never_together=self.never_together,
            provider_of=self.provider_of,
            max_per_provider=self.max_per_provider,
        )

    def suggest(self, trial: Suggests, ranking: Sequence[str] = ()) -> Architecture:
        """Draw one architecture.

        Parameter names are stable: they are the study's schema. The choice of ``kind``
        comes first and the rest depends on it, which TPE models branch by branch. What
        breaks a limit is repaired by ``ranking``, best agent first.
        """
        kinds = ["single", *(["layers"] if self.searches_layers else [])]
        kinds += ["listed"] if self.listed else []
        kind = trial.suggest_categorical("kind", kinds)
        if kind == "single":
            return Architecture.single(str(trial.suggest_categorical("agent", self.agents)))
        if kind == "listed":
            texts = [str(one) for one in self.listed]
            return Architecture.parse(str(trial.suggest_categorical("listed", texts)))
        ranking = ranking or self.ranking or self.agents
        return suggest_layered(self, trial, ranking, read_by=self.ranking or ranking)

    def who_combines(self, combine: str) -> tuple[str, ...]:
        """Return the agents that may do the last step; empty where no choice is made."""
        # Who wins a tied vote is no choice: it follows from the scores of the single agents.
        ways = {"synthesize": self.aggregators or self.searched, "select": self.rankers}
        return ways.get(combine, ())

    def read_in(self, order: str, architecture: Architecture) -> tuple[str, ...]:
        """Return how an architecture that is read in ``order`` writes that."""
        layer = architecture.layers[-1]
        return replace(
            architecture, order=order_of(order, layer, self.ranking or self.agents)
        ).order

    def params(self, architecture: Architecture) -> dict[str, str | bool | int] | None:
        """Return the choices that ``suggest`` turns into ``architecture``; None if none do."""
        if not set(architecture.agents) <= set(self.agents):
            return None
        if not architecture.layers:
            return {"kind": "single", "agent": str(architecture.aggregator)}
        if str(architecture) in {str(one) for one in self.listed}:
            return {"kind": "listed", "listed": str(architecture)}
        found = params_of_layered(self, architecture)
        return None if found is None else {"kind": "layers", **found}

    @cached_property
    def size(self) -> int | None:
        """Number of different architectures; None where counting them would take too long."""
        searched = self._n_searched if self.searches_layers else 0
        bare = replace(self, listed=())
        outside = {anonymous(one) for one in self.listed if not bare.holds(one)}
        return None if searched is None else len(self.agents) + searched + len(outside)

    @property
    def _n_searched(self) -> int | None:
        ways = [
            Way(self.who_combines(one) or (None,), self._n_prompts(one)) for one in self.combines
        ]
        ranking = self.ranking or self.agents
        return Counter(self.rules, ways, self.max_depth, self.orders, ranking).count()

    def _n_prompts(self, combine: str) -> int:
        return max(1, len(self.prompts)) if combine == "synthesize" else 1

    def holds(self, architecture: Architecture) -> bool:
        """Whether the study may try ``architecture``, whoever decides the ties of a vote."""
        is_listed = str(anonymous(architecture)) in self._listed
        return is_listed or self.params(architecture) is not None

    def keeps_constraints(self, architecture: Architecture) -> bool:
        """Whether ``architecture`` keeps to what the user demanded of its members.

        That is ``must_include``, ``never_together``, ``providers`` and ``max_per_provider``; a
        rival of the search may break them, and then should not be picked. Single agents and
        listed architectures always keep to them.
        """
        if not architecture.layers or str(anonymous(architecture)) in self._listed:
            return True
        return self.rules.demand(architecture.layers, architecture.aggregator)

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(str(anonymous(one)) for one in self.listed)

    def layers(self, *, is_first: bool = False) -> Iterator[tuple[str, ...]]:
        """Yield every layer that may be searched; many, when width and pool are large.

        The ``is_first`` layers are fewer where some agents must be included.
        """
        return self.rules.layers(self.searched, is_first=is_first)

    def draw(self, rng: random.Random) -> Architecture:
        """Return a random architecture: kinds by their size, then every choice evenly."""
        singles, listed = len(self.agents), len(self.listed)
        size = _UNCOUNTED if self.size is None else self.size
        ticket = rng.randrange(singles + listed + max(0, size - singles - listed))
        if ticket < singles:
            return Architecture.single(self.agents[ticket])
        if ticket < singles + listed:
            return self.listed[ticket - singles]
        order = rng.sample(self.agents, len(self.agents))
        return suggest_layered(self, Dice(rng), order, read_by=self.ranking or self.agents)

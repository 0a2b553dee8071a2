"""The search space: its options and their checks, its choices as Optuna parameters, and draws."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.files import check_kinds, unknown
from moa_dspy.optimize.space.rules import (
    ORDERS,
    SPACE_KINDS,
    SPACE_NAMES,
    LastStepChoice,
    RandomSuggestions,
    SizeCounter,
    SpaceRules,
    Suggests,
    one_of,
    order_of,
    prompt_of,
    repaired,
    without_tie_breaker,
)

_UNCOUNTED = 10**9


def _check_names(space: SearchSpace) -> None:
    for option in SPACE_NAMES:
        names = list(getattr(space, option))
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise StudyError(f"`space.{option}` names {twice[0]!r} twice.")
    for option, choices in (("combines", COMBINES), ("orders", ORDERS)):
        for name in getattr(space, option):
            if name not in choices:
                raise unknown(f"space.{option}", name, choices)
    listed = [name for architecture in space.listed for name in architecture.agents]
    paired = [name for pair in space.never_together for name in pair]
    named = (*space.aggregators, *space.rankers, *listed, *space.must_include, *paired)
    for name in named:
        if name not in space.agents:
            raise StudyError(f"`space`: unknown agent {name!r}; it has {', '.join(space.agents)}.")
    _check_ranking_and_prompts(space)


def _check_ranking_and_prompts(space: SearchSpace) -> None:
    if space.ranking and sorted(space.ranking) != sorted(space.agents):
        raise StudyError(
            f"`space.ranking` must hold every agent once, {', '.join(space.agents)}, but got "
            f"{', '.join(space.ranking)}."
        )
    for name in space.prompts:
        try:
            Architecture((space.agents[:1],), space.agents[0], prompt=prompt_of(name))
        except ArchitectureError as error:
            raise StudyError(f"`space.prompts`: {error}") from error


def _check_limits(space: SearchSpace) -> None:
    fewest, most = space.min_width, space.max_width
    if not 1 <= fewest <= most:
        raise StudyError(f"`space.min_width` must be in [1, max_width={most}], but got {fewest}.")
    if space.max_depth < 0 or space.max_samples < 1:
        raise StudyError(
            "`space.max_depth` must be at least 0 and `max_samples` at least 1, but got "
            f"{space.max_depth} and {space.max_samples}."
        )
    if space.max_depth and not space.combines and not space.listed:
        raise StudyError(f"`space.combines` must name at least one of {', '.join(COMBINES)}.")
    if wrong := [n for n in space.agree if n < 2]:
        raise StudyError(f"`space.agree` must be numbers of 2 or more, but got {wrong[0]}.")
    if shares := [n for n in space.lead if not 0 < n < 1]:
        raise StudyError(f"`space.lead` must be numbers between 0 and 1, but got {shares[0]}.")
    if not space.orders:
        raise StudyError(f"`space.orders` must name at least one of {', '.join(ORDERS)}.")
    limit = space.max_per_provider
    if limit is not None and limit < 1:
        raise StudyError(f"`space.max_per_provider` must be at least 1, but got {limit}.")


def _check_providers(space: SearchSpace) -> None:
    if not space.providers and space.max_per_provider is None:
        return
    if missing := [name for name in space.agents if name not in space.provider_of]:
        raise StudyError(
            "`space.providers` and `max_per_provider` need `provider_of`, the provider of every "
            f"agent, but it lacks {missing[0]!r}; `providers_of(pool.values())` returns it."
        )
    names = sorted({space.provider_of[name] for name in space.agents})
    for name in space.providers:
        if name not in names:
            raise StudyError(
                f"`space.providers`: no agent has {name!r}; the agents have {', '.join(names)}."
            )
    for option in ("aggregators", "rankers", "must_include"):
        for name in getattr(space, option):
            if name not in space.searched:
                raise StudyError(
                    f"`space.{option}` names {name!r} of {space.provider_of[name]}, which "
                    f"`space.providers` leaves out: {', '.join(space.providers)}."
                )


def _check_pairs(space: SearchSpace) -> None:
    for pair in space.never_together:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise StudyError(
                f"`space.never_together` must hold pairs of two agents, but got {list(pair)}."
            )
        if set(pair) <= set(space.must_include):
            raise StudyError(
                f"`space.must_include` and `never_together` contradict each other: {pair[0]!r} "
                f"and {pair[1]!r}."
            )


def _check_layers(space: SearchSpace) -> None:
    if not space.searches_layers:
        return
    n_wanted, most = len(space.must_include), space.max_width
    if n_wanted > most:
        raise StudyError(
            f"`space.must_include` names {n_wanted} agents, but `max_width` is {most}."
        )
    sizes = collections.Counter(space.provider_of.get(name, "") for name in space.must_include)
    if space.max_per_provider is not None:
        for provider, n in sizes.items():
            if n > space.max_per_provider:
                raise StudyError(
                    f"`space.must_include` names {n} agents of {provider}, but "
                    f"`max_per_provider` is {space.max_per_provider}."
                )
    for combine in space.combines:
        last = space.combining_agents(combine) or (None,)
        if repaired(space.rules, [()], last, space.searched) is None:
            raise StudyError(
                f"`space`: no mixture that ends with {combine!r} satisfies `must_include`, "
                f"`never_together`, `providers` and `max_per_provider` with {space.min_width} to "
                f"{space.max_width} proposers in a layer."
            )


Params = dict[str, str | bool | int]


def suggest_layered(
    space: SearchSpace, trial: Suggests, ranking: Sequence[str], *, read_by: Sequence[str]
) -> Architecture:
    """Draw one layered architecture, repaired with ``ranking`` if it violates a rule.

    ``read_by`` are all agents, best first, for the reading ``orders``.
    """
    depth = trial.suggest_int("depth", 1, space.max_depth)
    suggested = [_suggest_layer(space, trial, number) for number in range(1, depth + 1)]
    combine = str(trial.suggest_categorical("combine", space.combines))
    aggregators = space.combining_agents(combine)
    seats: tuple[str | None, ...] = (None,)
    if aggregators:
        chosen = str(trial.suggest_categorical(_aggregator_key(space, combine), aggregators))
        seats = (chosen, *sorted(set(aggregators) - {chosen}, key=ranking.index))
    may_sit = [name for name in ranking if name in space.searched]
    seating = repaired(space.rules, suggested, seats, may_sit)
    if seating is None:
        raise StudyError(f"No layered architecture of the space ends with {combine!r}.")
    layers, aggregator = seating
    order = one_of(trial, "order", space.orders) if aggregators else "name"
    asks_for_prompt = combine == "synthesize" and space.prompts
    prompt = prompt_of(one_of(trial, "prompt", space.prompts)) if asks_for_prompt else None
    read = order_of(order, layers[-1], read_by)
    seated = tuple(tuple(sorted(layer)) for layer in layers)
    return Architecture(seated, aggregator, combine, read, prompt).canonical


def _aggregator_key(space: SearchSpace, combine: str) -> str:
    """Return ``aggregator``, or another name if the choices differ from those of synthesize."""
    is_shared = space.combining_agents(combine) == space.combining_agents("synthesize")
    return "aggregator" if is_shared else f"{combine}.aggregator"


def _suggest_layer(space: SearchSpace, trial: Suggests, number: int) -> tuple[str, ...]:
    layer: list[str] = []
    for name in space.searched:
        key, fewest = f"layer{number}.{name}", _fewest(space, name, number)
        if fewest == space.max_samples:
            layer += [name] * fewest
        elif space.max_samples == 1:
            layer += [name] * int(trial.suggest_categorical(key, [False, True]))
        else:
            n_samples = trial.suggest_int(key, fewest, space.max_samples)
            layer += [name] * min(n_samples, space.max_width)
    return tuple(layer)


def _fewest(space: SearchSpace, name: str, number: int) -> int:
    """Return the samples of ``name`` that each layer of this number must have, without a choice."""
    return int(number == 1 and name in space.must_include)


def params_of_layered(space: SearchSpace, architecture: Architecture) -> Params | None:
    """Return the choices from which ``suggest_layered`` makes ``architecture``, or None."""
    kind: Params = {"depth": architecture.depth, "combine": architecture.combine}
    last = last_step_in(space, architecture)
    return None if last is None else {**kind, **last, **_flags(space, architecture)}


def last_step_in(space: SearchSpace, architecture: Architecture) -> Params | None:
    """Return the choices of the last step; None if ``suggest_layered`` cannot make it."""
    layers, combine, aggregator = architecture.layers, architecture.combine, architecture.aggregator
    is_deep = 1 <= len(layers) <= space.max_depth
    if not (is_deep and space.searches_layers and combine in space.combines):
        return None
    seats = space.combining_agents(combine) or ((aggregator,) if combine == "vote" else (None,))
    is_allowed = aggregator in seats and space.rules.allow(layers, aggregator)
    return _last_step(space, architecture) if is_allowed else None


def _flags(space: SearchSpace, architecture: Architecture) -> Params:
    chosen: Params = {}
    for number, layer in enumerate(architecture.layers, start=1):
        for name in space.searched:
            count = layer.count(name)
            if _fewest(space, name, number) < space.max_samples:
                chosen[f"layer{number}.{name}"] = bool(count) if space.max_samples == 1 else count
    return chosen


def _last_step(space: SearchSpace, arch: Architecture) -> Params | None:
    """Return agent, order and prompt of the last step as choices; None if not in the space."""
    if arch.agree is not None or arch.combine == "vote":
        return {} if (arch.agree, arch.lead) == (None, None) else None
    if not arch.aggregator_calls_a_model:
        return None if arch.order else {}
    chosen: Params = {_aggregator_key(space, arch.combine): str(arch.aggregator)}
    orders = [order for order in space.orders if space.reading_order(order, arch) == arch.order]
    if not orders:
        return None
    if len(space.orders) > 1:
        chosen["order"] = orders[0]
    prompts = [prompt for prompt in space.prompts if prompt_of(prompt) == arch.prompt]
    has_choice = bool(space.prompts) and arch.combine == "synthesize"
    if not prompts and (arch.prompt is not None or has_choice):
        return None
    if prompts and len(space.prompts) > 1:
        chosen["prompt"] = prompts[0]
    return chosen


@dataclass(frozen=True)
class SearchSpace:
    """The set of architectures: depth, agents per layer, combine, aggregator, order and prompt.

    Every single agent is in the space. Listed architectures are in it without regard to the
    other limits, so that a user's own mixture, or a recording, takes part.
    One model at two temperatures is two agents.

    Attributes:
        agents: Names of agents that may propose, or answer alone.
        combines: Allowed kinds of last step.
        aggregators: Agents that may synthesize, fuse or judge a knockout; empty means all.
        rankers: Agents that may rank for ``select``; empty means consensus, without a model.
        max_depth: Maximum number of proposer layers of a searched architecture.
        min_width: Minimum number of proposers of a layer.
        max_width: Maximum number of proposers of a layer.
        max_samples: Maximum number of independent samples of one agent in a layer.
        listed: Further architectures.
        must_include: Agents that propose in the first layer of every searched architecture.
        never_together: Pairs of agents that may not be in one searched architecture, in any
            seats.
        providers: Providers whose agents searched architectures may have; empty means all.
        max_per_provider: Maximum number of proposers of one provider in a layer; None: no limit.
        provider_of: The provider of each agent, from ``providers_of``; needed by the two above.
        orders: Orders in which the model of a last step may read: ``name``, ``best_first``,
            ``best_last``.
        agree: Numbers of members of a vote that may be asked first, and alone if they agree.
        lead: Leads, as shares of the weight not yet asked, at which a vote may stop.
        prompts: Names of prompts for the synthesizer; ``own`` is the seat's default prompt.
        ranking: Agents, best first, for ``orders``; empty means the order of ``agents``.

    Raises:
        StudyError: If a limit or a name is invalid; the message names it and the choices. Or if
            no layered architecture satisfies the constraints.
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
    agree: tuple[int, ...] = (2, 3, 4)
    lead: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    prompts: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self, SPACE_KINDS, before="`space.", error=StudyError)
        if not self.agents:
            raise StudyError("`space.agents` must name at least one agent.")
        for check in (_check_names, _check_limits, _check_providers, _check_pairs, _check_layers):
            check(self)

    @property
    def searches_layers(self) -> bool:
        """True if anything beyond singles and listed architectures can be proposed."""
        seats = len(self.agents) * self.max_samples
        return bool(self.max_depth and self.combines and seats >= self.min_width)

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """Agents that a searched layered architecture may have."""
        if not self.providers:
            return self.agents
        return tuple(name for name in self.agents if self.provider_of[name] in self.providers)

    @cached_property
    def rules(self) -> SpaceRules:
        """The constraints on a searched layered architecture."""
        return SpaceRules(
            agents=self.searched,
            min_width=self.min_width,
            max_width=self.max_width,
            # A layer cannot have more samples than seats.
            max_samples=min(self.max_samples, self.max_width),
            must_include=self.must_include,
            never_together=self.never_together,
            provider_of=self.provider_of,
            max_per_provider=self.max_per_provider,
        )

    def suggest(self, trial: Suggests, ranking: Sequence[str] = ()) -> Architecture:
        """Draw one architecture, repaired with ``ranking``, best first, if it violates a limit.

        The choice of ``kind`` comes first, and the other choices depend on it.
        """
        kind = self.suggest_kind(trial)
        if kind == "single":
            return Architecture.single(str(trial.suggest_categorical("agent", self.agents)))
        if kind == "listed":
            texts = [str(architecture) for architecture in self.listed]
            return Architecture.parse(str(trial.suggest_categorical("listed", texts)))
        ranking = ranking or self.ranking or self.agents
        return suggest_layered(self, trial, ranking, read_by=self.ranking or ranking)

    def suggest_kind(self, trial: Suggests) -> str:
        """Draw only the kind of an architecture."""
        layers = ["layers"] if self.searches_layers else []
        kinds = ["single", *layers, *(["listed"] if self.listed else [])]
        return str(trial.suggest_categorical("kind", kinds))

    def combining_agents(self, combine: str) -> tuple[str, ...]:
        """Return the agents that may do the last step; empty if there is no choice."""
        # The tie-breaker of a vote is no choice: it follows from the single agents' scores.
        ways = {"select": self.rankers, "vote": ()}
        return ways.get(combine, self.aggregators or self.searched)

    def reading_order(self, order: str, architecture: Architecture) -> tuple[str, ...]:
        """Return the ``order`` of an architecture whose last layer is read in this order."""
        read = order_of(order, architecture.layers[-1], self.ranking or self.agents)
        return replace(architecture, order=read).order if read else ()

    def params(self, architecture: Architecture) -> dict[str, str | bool | int] | None:
        """Return the choices from which ``suggest`` makes ``architecture``, or None."""
        if not set(architecture.agents) <= set(self.agents):
            return None
        if not architecture.layers:
            return {"kind": "single", "agent": str(architecture.aggregator)}
        if architecture in self.listed:
            return {"kind": "listed", "listed": str(self.seated(architecture))}
        params = params_of_layered(self, architecture)
        return None if params is None else {"kind": "layers", **params}

    @cached_property
    def size(self) -> int | None:
        """Number of different architectures; None if counting them would take too long."""
        searched = self._n_searched if self.searches_layers else 0
        bare = replace(self, listed=())
        outside = {without_tie_breaker(arch) for arch in self.listed if not bare.holds(arch)}
        return None if searched is None else len(self.agents) + searched + len(outside)

    @property
    def _n_searched(self) -> int | None:
        ways = [
            LastStepChoice(
                self.combining_agents(combine) or (None,),
                max(1, len(self.prompts)) if combine == "synthesize" else 1,
            )
            for combine in self.combines
        ]
        ranking = self.ranking or self.agents
        return SizeCounter(self.rules, ways, self.max_depth, self.orders, ranking).count()

    def holds(self, architecture: Architecture) -> bool:
        """True if the study may try ``architecture``; the tie-breaker of a vote is ignored."""
        is_known = set(architecture.agents) <= set(self.agents)
        if is_known and (not architecture.layers or last_step_in(self, architecture) is not None):
            return True
        return without_tie_breaker(architecture) in self._listed

    def keeps_constraints(self, architecture: Architecture) -> bool:
        """True if ``architecture`` satisfies the user's constraints on its members.

        Baselines may violate them, and are then not picked; single and listed ones always pass.
        """
        if not architecture.layers or without_tie_breaker(architecture) in self._listed:
            return True
        return self.rules.demand(architecture.layers, architecture.aggregator)

    def seated(self, architecture: Architecture) -> Architecture:
        """Return the equal listed architecture, with its order of seats, or ``architecture``."""
        return self._as_listed.get(architecture, architecture)

    @cached_property
    def _as_listed(self) -> dict[Architecture, Architecture]:
        return {architecture: architecture for architecture in self.listed}

    @cached_property
    def _listed(self) -> frozenset[Architecture]:
        return frozenset(map(without_tie_breaker, self.listed))

    def layers(self, *, is_first: bool = False) -> Iterator[tuple[str, ...]]:
        """Yield every layer that may be searched; a first layer has all of ``must_include``."""
        return self.rules.layers(self.searched, is_first=is_first)

    def draw(self, rng: random.Random) -> Architecture:
        """Return a random architecture: a kind in proportion to its size, then uniform choices."""
        singles, listed = len(self.agents), len(self.listed)
        size = _UNCOUNTED if self.size is None else self.size
        place = rng.randrange(singles + listed + max(0, size - singles - listed))
        if place < singles:
            return Architecture.single(self.agents[place])
        if place < singles + listed:
            return self.listed[place - singles]
        order = rng.sample(self.agents, len(self.agents))
        read_by = self.ranking or self.agents
        return suggest_layered(self, RandomSuggestions(rng), order, read_by=read_by)

"""Refuses options of a space that do not fit, before anything is asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.optimize.space._reading import ORDERS, prompt_of
from moa_dspy.optimize.space._repair import repaired

if TYPE_CHECKING:
    from moa_dspy.optimize.space._space import SearchSpace

_NAMES = (
    "agents",
    "combines",
    "aggregators",
    "rankers",
    "listed",
    "must_include",
    "providers",
    "orders",
    "prompts",
)


def check(space: SearchSpace) -> None:
    """Raise a ``StudyError`` if an option does not fit, naming it and the choices."""
    if not space.agents:
        raise StudyError("`space.agents` must name at least one agent.")
    _check_names(space)
    _check_limits(space)
    _check_providers(space)
    _check_pairs(space)
    _check_layers_are_possible(space)


def _check_names(space: SearchSpace) -> None:
    for option in _NAMES:
        names = [str(name) for name in getattr(space, option)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise StudyError(f"`space.{option}` names {twice[0]!r} twice.")
    for option, choices in (("combines", COMBINES), ("orders", ORDERS)):
        for name in getattr(space, option):
            if name not in choices:
                known = ", ".join(choices)
                raise StudyError(f"`space.{option}`: unknown {name!r}; known ones are {known}.")
    listed = [name for one in space.listed for name in one.agents]
    paired = [name for pair in space.never_together for name in pair]
    named = (*space.aggregators, *space.rankers, *listed, *space.must_include, *paired)
    for name in named:
        if name not in space.agents:
            known = ", ".join(space.agents)
            raise StudyError(f"The space names agent {name!r}; its agents are {known}.")
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
    if not 1 <= space.min_width <= space.max_width:
        raise StudyError(
            f"`space.min_width` must be in [1, max_width={space.max_width}], "
            f"but got {space.min_width}."
        )
    if space.max_depth < 0 or space.max_samples < 1:
        raise StudyError("`space.max_depth` must be at least 0 and `max_samples` at least 1.")
    if space.max_depth and not space.combines and not space.listed:
        raise StudyError("`space.combines` must name at least one way to combine.")
    if not space.orders:
        raise StudyError(f"`space.orders` must name at least one of {', '.join(ORDERS)}.")
    if space.max_per_provider is not None and space.max_per_provider < 1:
        raise StudyError(
            f"`space.max_per_provider` must be at least 1, but got {space.max_per_provider}."
        )


def _check_providers(space: SearchSpace) -> None:
    if not space.providers and space.max_per_provider is None:
        return
    if missing := [name for name in space.agents if name not in space.provider_of]:
        raise StudyError(
            "`space.providers` and `max_per_provider` need `provider_of`, the provider of every "
            f"agent, but it lacks {missing[0]!r}; `providers_of(pool.values())` returns it."
        )
    known = sorted({space.provider_of[name] for name in space.agents})
    for name in space.providers:
        if name not in known:
            raise StudyError(
                f"`space.providers`: no agent is of {name!r}; the agents' are {', '.join(known)}."
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


def _check_layers_are_possible(space: SearchSpace) -> None:
    if not space.searches_layers:
        return
    if len(space.must_include) > space.max_width:
        raise StudyError(
            f"`space.must_include` names {len(space.must_include)} agents, but `max_width` is "
            f"{space.max_width}."
        )
    sizes = Counter(space.provider_of.get(name, "") for name in space.must_include)
    if space.max_per_provider is not None:
        for provider, n in sizes.items():
            if n > space.max_per_provider:
                raise StudyError(
                    f"`space.must_include` names {n} agents of {provider}, but "
                    f"`max_per_provider` is {space.max_per_provider}."
                )
    for combine in space.combines:
        whos = space.who_combines(combine) or (None,)
        if repaired(space.rules, [()], whos, space.searched) is None:
            raise StudyError(
                f"`space`: no mixture that ends with {combine!r} keeps to `must_include`, "
                f"`never_together`, `providers` and `max_per_provider` with {space.min_width} to "
                f"{space.max_width} proposers in a layer."
            )

"""Random search spaces, and every architecture of one by trying all, for the tests of spaces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space import SearchSpace

NAMES = ("a", "b", "c", "d")


def canonical(arch: Architecture) -> Architecture:
    """Forget who decides the ties of a vote: it follows from scores and is no choice."""
    return Architecture(arch.layers, None, "vote") if arch.combine == "vote" else arch


def enumerated(space: SearchSpace) -> set[Architecture]:
    """Return every architecture of a space, by trying all counts of all agents per layer."""
    counts = product(range(space.max_samples + 1), repeat=len(space.agents))
    widths = range(space.min_width, space.max_width + 1)
    layers = [
        tuple(name for name, n in zip(space.agents, row, strict=True) for _ in range(n))
        for row in counts
        if sum(row) in widths
    ]
    found = {
        arch
        for depth in range(1, space.max_depth + 1)
        for stack in product(layers, repeat=depth)
        for arch in ended(space, stack)
        if keeps_to_the_constraints(space, arch)
    }
    return (
        found
        | {Architecture.single(name) for name in space.agents}
        | set(map(canonical, space.listed))
    )


def ended(space: SearchSpace, stack: tuple[tuple[str, ...], ...]) -> Iterator[Architecture]:
    """Yield ``stack`` with every last step, order and prompt."""
    best_first = [name for name in space.ranking or space.agents if name in stack[-1]]
    written = {"name": (), "best_first": best_first, "best_last": best_first[::-1]}
    orders = [tuple(written[order_name]) for order_name in space.orders]
    prompts = [None if prompt_name == "own" else prompt_name for prompt_name in space.prompts] or [
        None
    ]
    for combine in space.combines:
        if combine == "vote" or (combine == "select" and not space.rankers):
            yield Architecture(stack, None, combine)
        elif combine == "select":
            yield from (Architecture(stack, w, combine, o) for w in space.rankers for o in orders)
        else:
            aggregators = space.aggregators or space.agents
            for name, order, prompt in product(aggregators, orders, prompts):
                yield Architecture(stack, name, combine, order, prompt)


def keeps_to_the_constraints(space: SearchSpace | SimpleNamespace, arch: Architecture) -> bool:
    for layer in arch.layers:
        sizes = [sum(space.provider_of.get(n) == p for n in layer) for p in "xy"]
        if space.max_per_provider is not None and max(sizes) > space.max_per_provider:
            return False
    return (
        set(space.must_include) <= set(arch.layers[0])
        and not any(set(pair) <= set(arch.agents) for pair in space.never_together)
        and (
            not space.providers
            or {space.provider_of[n] for n in arch.agents} <= set(space.providers)
        )
    )


def some(names: tuple[Any, ...], *, fewest: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(names), unique=True, min_size=fewest).map(tuple)


@st.composite
def architectures(draw: st.DrawFn, agents: tuple[str, ...]) -> Architecture:
    layer = st.lists(st.sampled_from(agents), min_size=1, max_size=4).map(tuple)
    layers = draw(st.lists(layer, min_size=0, max_size=2).map(tuple))
    aggregator = draw(st.sampled_from(agents))
    if not layers:
        return Architecture.single(aggregator)
    combine = draw(st.sampled_from(("select", "synthesize", "vote")))
    if combine == "vote":
        return Architecture(layers, draw(st.sampled_from((None, *layers[-1]))), combine)
    return Architecture(layers, draw(st.sampled_from((aggregator, None))) or aggregator, combine)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    agents = NAMES[: draw(st.integers(1, 4))]
    max_width = draw(st.integers(1, 3))
    try:
        return SearchSpace(
            agents,
            combines=draw(some(("select", "synthesize", "vote"), fewest=1)),
            aggregators=draw(some(agents)),
            rankers=draw(some(agents)),
            max_depth=draw(st.integers(0, 2)),
            min_width=draw(st.integers(1, max_width)),
            max_width=max_width,
            max_samples=draw(st.integers(1, 2)),
            listed=tuple(draw(st.lists(architectures(agents), max_size=4, unique=True))),
            orders=draw(some(("name", "best_first", "best_last"), fewest=1)),
            prompts=draw(some(("own", "brief", "long"))),
            ranking=draw(st.sampled_from([(), agents[::-1], agents[1:] + agents[:1]])),
            **draw(constraints(agents)),
        )
    except StudyError:
        # The constraints contradict each other, or the other options.
        reject()


@st.composite
def constraints(draw: st.DrawFn, agents: tuple[str, ...]) -> dict[str, Any]:
    if draw(st.booleans()):
        return {}
    pairs = list(combinations(agents, 2))
    return {
        "must_include": draw(st.lists(st.sampled_from(agents), max_size=1).map(tuple)),
        "never_together": draw(some(tuple(pairs))) if pairs else (),
        "providers": draw(st.sampled_from([(), (), ("x",)])),
        "max_per_provider": draw(st.sampled_from([None, 1, 2])),
        "provider_of": {name: draw(st.sampled_from("xy")) for name in agents},
    }

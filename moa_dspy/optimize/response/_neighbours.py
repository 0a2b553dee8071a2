"""Architectures that differ from a given one in a single choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.optimize.space import SearchSpace

Layer = tuple[str, ...]


def neighbours(one: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    """Yield what ``space`` holds and one change of seat, layer, last step or reading away.

    Votes come without a tie-breaker: who decides ties follows from the scores.
    """
    if not one.layers:
        return
    for changed in (*_other_layers(one, space), *_other_last_steps(one, space)):
        if space.holds(changed):
            yield changed


def _other_layers(one: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    layers = one.layers
    for depth, layer in enumerate(layers):
        for other in _other_seats(layer, space):
            yield from _with(one, (*layers[:depth], other, *layers[depth + 1 :]))
    if one.depth < space.max_depth:
        yield from _with(one, (*layers, layers[-1]))
    if one.depth > 1:
        yield from _with(one, layers[1:])
        yield from _with(one, layers[:-1])


def _other_seats(layer: Layer, space: SearchSpace) -> Iterator[Layer]:
    for seat in range(len(layer)):
        rest = layer[:seat] + layer[seat + 1 :]
        if rest:
            yield rest
        yield from ((*rest, name) for name in space.agents if name != layer[seat])
    yield from ((*layer, name) for name in space.agents)


def _other_last_steps(one: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    for combine in space.combines:
        for who in space.who_combines(combine) or (None,):
            yield from _with(one, one.layers, combine=combine, aggregator=who)
    if one.aggregator_calls_a_model:
        yield from (replace(one, order=space.read_in(order, one)) for order in space.orders)
    if one.combine == "synthesize":
        names = (None if name == "own" else name for name in space.prompts)
        yield from (replace(one, prompt=name) for name in names)


def _with(
    one: Architecture, layers: tuple[Layer, ...], **last: str | None
) -> Iterator[Architecture]:
    """Yield the architecture with other layers and perhaps another last step, if it can be."""
    combine = str(last.get("combine", one.combine))
    who = last.get("aggregator", one.aggregator) if combine != "vote" else None
    prompt = one.prompt if combine == "synthesize" else None
    try:
        yield Architecture(layers, who, combine, (), prompt)
    except ArchitectureError:
        return

"""Turns any choice of seats into the nearest one that keeps to the rules; draws nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import compress

from moa_dspy.optimize.space._rules import Rules

Layers = tuple[tuple[str, ...], ...]


def repaired(
    rules: Rules,
    wanted: Sequence[Sequence[str]],
    aggregators: Sequence[str | None],
    ranking: Sequence[str],
) -> tuple[Layers, str | None] | None:
    """Return layers and an aggregator that keep to ``rules``; None if there are none.

    What is wanted and keeps to them is returned as it is. Else the first aggregator with
    whom layers are possible stays, and of the wanted proposers the best ranked ones that
    agree with him and with the layers before; the best of the others fill what is too narrow.

    Args:
        rules: To be kept.
        wanted: Proposers per layer.
        aggregators: The wanted one, then who may stand in; None is no model.
        ranking: All agents that may sit, best first.
    """
    for aggregator in aggregators:
        layers = _seated(rules, wanted, aggregator, ranking)
        if layers is not None:
            return layers, aggregator
    return None


def _seated(
    rules: Rules, wanted: Sequence[Sequence[str]], aggregator: str | None, ranking: Sequence[str]
) -> Layers | None:
    team = {*rules.must_include, *([] if aggregator is None else [aggregator])}
    if not rules.agree(team):
        return None
    layers: list[tuple[str, ...]] = []
    for number, names in enumerate(wanted):
        needed = rules.must_include if number == 0 else ()
        more = sorted((Counter(names) - Counter(needed)).elements(), key=ranking.index)
        # One of each before a second sample of any.
        seats = [*more, *(list(ranking) * rules.max_samples)]
        allies, n_wanted = _allies(rules, team, seats, len(more))
        layer = _filled(rules, needed, allies, n_wanted)
        # A later layer can always be filled: what sits in the first agrees, and is wide enough.
        if layer is None:
            return None
        layers.append(layer)
        team |= set(layer)
    return tuple(layers)


def _filled(
    rules: Rules, layer: tuple[str, ...], seats: Sequence[str], n_wanted: int
) -> tuple[str, ...] | None:
    """Add wanted seats, the first ``n_wanted``, while there is room, and others until wide enough.

    An earlier seat is given up only where no layer is possible with it.
    """
    for place, name in enumerate(seats):
        if len(layer) >= rules.min_width and place >= n_wanted:
            return layer
        if len(layer) + len(seats) - place < rules.min_width:
            return None
        if rules.has_room(layer, name):
            more, n_left = (*layer, name), max(0, n_wanted - place - 1)
            found = _filled(rules, more, *_allies(rules, more, seats[place + 1 :], n_left))
            if found is not None:
                return found
    return layer if len(layer) >= rules.min_width else None


def _allies(
    rules: Rules, team: Collection[str], seats: Sequence[str], n_wanted: int
) -> tuple[Sequence[str], int]:
    """Return the seats that agree with ``team``, and how many of the wanted, the first, do."""
    if not rules.never_together:
        return seats, n_wanted
    kept = [rules.agree({*team, name}) for name in seats]
    return list(compress(seats, kept)), sum(kept[:n_wanted])

"""The acquisition: expected improvement per new call, maximised over neighbours and draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from math import sqrt
from typing import Any, Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.optimize.early_facts import COSTS
from moa_dspy.optimize.space.programs import ProgramArchitecture, ProgramSpace
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.gp import FeatureMatrix, Kernels, Prediction, SurrogateModel

_Layer = tuple[str, ...]


def neighbours(arch: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    """Yield the architectures of ``space`` that differ in one seat, layer, last step or order.

    Votes are yielded without a tie-breaker, as the scores determine it. In a program one mixture
    is changed in this way, or replaced by another single agent.
    """
    if isinstance(arch, ProgramArchitecture) and isinstance(space, ProgramSpace):
        for path, inside in space.mixtures:
            yield from _changed_at(path, arch, inside)
        return
    if not arch.layers:
        return
    for changed in (*_other_layers(arch, space), *_other_last_steps(arch, space)):
        if space.holds(changed):
            yield changed


def _changed_at(
    path: str, arch: ProgramArchitecture, inside: SearchSpace
) -> Iterator[ProgramArchitecture]:
    """Yield the programs with one mixture changed, or replaced by another single agent."""
    changes = (*neighbours(arch.at(path), inside), *single_agents(inside))
    yield from (arch.with_part(path, changed) for changed in changes)


def _other_layers(arch: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    layers = arch.layers
    for depth, layer in enumerate(layers):
        for other in _other_seats(layer, space):
            yield from _variants(arch, (*layers[:depth], other, *layers[depth + 1 :]))
    if arch.depth < space.max_depth:
        yield from _variants(arch, (*layers, layers[-1]))
    if arch.depth > 1:
        yield from _variants(arch, layers[1:])
        yield from _variants(arch, layers[:-1])


def _other_seats(layer: _Layer, space: SearchSpace) -> Iterator[_Layer]:
    for seat in range(len(layer)):
        rest = layer[:seat] + layer[seat + 1 :]
        if rest:
            yield rest
        yield from ((*rest, name) for name in space.agents if name != layer[seat])
    yield from ((*layer, name) for name in space.agents)


def _other_last_steps(arch: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    for combine in space.combines:
        for aggregator in space.combining_agents(combine) or (None,):
            yield from _variants(arch, arch.layers, combine=combine, aggregator=aggregator)
    if arch.aggregator_calls_a_model:
        yield from (replace(arch, order=space.reading_order(order, arch)) for order in space.orders)
    if arch.combine == "synthesize":
        names = (None if name == "own" else name for name in space.prompts)
        yield from (replace(arch, prompt=name) for name in names)


def _variants(
    arch: Architecture, layers: tuple[_Layer, ...], **last: str | None
) -> Iterator[Architecture]:
    """Yield the architecture with other layers and maybe another last step, if that is valid."""
    combine = str(last.get("combine", arch.combine))
    aggregator = last.get("aggregator", arch.aggregator) if combine != "vote" else None
    prompt = arch.prompt if combine == "synthesize" else None
    try:
        # With sorted names the architecture is in canonical form.
        seated = tuple(tuple(sorted(layer)) for layer in layers)
        yield Architecture(seated, aggregator, combine, (), prompt).canonical
    except ArchitectureError:
        return


@lru_cache(maxsize=100_000)
def nodes_of(arch: Architecture) -> frozenset[Hashable]:
    """Return every call for one question: the agent, its sample, and the responses it reads.

    A mixture in a program is assumed to read the answers of the mixtures before it.
    """
    if isinstance(arch, ProgramArchitecture):
        parts = [(arch.parts[:place], part) for place, (_, part) in enumerate(arch.parts)]
        return frozenset((before, node) for before, part in parts for node in nodes_of(part))
    read: tuple[Hashable, ...] = ()
    nodes: set[Hashable] = set()
    for layer in arch.layers:
        read = tuple((name, layer[:seat].count(name), read) for seat, name in enumerate(layer))
        nodes.update(read)
    if not arch.layers:
        nodes.add((str(arch.aggregator), 0, ()))
    elif arch.aggregator_calls_a_model:
        parents = tuple(read[seat] for seat in arch.reading)
        steps = enumerate(arch.last_step_agents)
        nodes.update((agent, place, parents, arch.combine, arch.prompt) for place, agent in steps)
    return frozenset(nodes)


def single_agents(space: SearchSpace) -> Iterator[Architecture]:
    """Return the single agents of a space; for a program, each agent in all of its mixtures."""
    if isinstance(space, ProgramSpace):
        return space.singles()
    return map(Architecture.single, space.agents)


PriceOf = Callable[[Architecture], float]
N_DRAWN: Final = 200  # default of ``Acquisition.n_drawn``
MOST_LEARNED: Final = 300
"""Maximum number of architectures that the surrogate is fitted to: the best half and the latest
half. The time of a proposal grows with the cube of their number."""
N_DRAWN_LATER: Final = 50
"""Architectures drawn per proposal once more than ``MOST_LEARNED`` are measured."""
MOST_DRAWS: Final = 2_000
"""Draws without an unknown architecture, after which all neighbours of known ones are tried."""
DECIMALS: Final = 10
"""Digits that are compared; the last digits depend on a machine's linear algebra and threads."""
N_BEST: Final = 3
"""Number of best architectures whose neighbours are candidates."""


@dataclass(slots=True)
class Acquisition:
    """Proposes by expected improvement per call (Jones et al. 1998; Snoek et al. 2012, 3.2).

    While the model's leave-one-out predictions of measured mixtures are no better than the mean
    of the other mixtures, a random draw is proposed, every other time the one of fewest new calls.

    Args:
        space: The architectures that may be proposed.
        kernels: Kernels of the surrogate model.
        canonical: Gives an architecture its canonical form.
        seed: Seed of the draws.
        price_at: Returns, for a number of measured architectures, a function from an architecture
            to the cost of a question in points of score; None if only the score counts.
        n_drawn: Architectures drawn at random per proposal, beside the neighbours of the best.
    """

    space: SearchSpace
    kernels: Kernels
    canonical: Callable[[Architecture], Architecture]
    seed: int
    price_at: Callable[[int], PriceOf] | None = None
    n_drawn: int = N_DRAWN
    _weights: dict[str, float] = field(default_factory=dict)
    _learned_from: int = 0
    _neighbours: dict[Architecture, list[Architecture]] = field(default_factory=dict)

    def propose(
        self,
        measured: Sequence[Architecture],
        scores: FeatureMatrix,
        *,
        taken: Collection[Architecture] = (),
    ) -> Architecture | None:
        """Return an architecture that is neither measured nor taken; None if none is left.

        Args:
            measured: Measured architectures, in the order of measuring.
            scores: (architectures, rows), NaN where a trial was stopped.
            taken: Architectures that are being measured, or could not be.
        """
        seen = {*measured, *taken}
        rng = random.Random(f"propose-{self.seed}-{len(measured)}")
        # For matrices of this size, synchronising several threads is slower than one thread.
        with _blas().limit(limits=1, user_api="blas"):
            proposed = self._promising(measured, scores, seen, rng)
        return proposed or self._unknown(seen, rng)

    def _promising(
        self,
        measured: Sequence[Architecture],
        scores: FeatureMatrix,
        seen: Collection[Architecture],
        rng: random.Random,
    ) -> Architecture | None:
        if not measured:
            first_ones = self._candidates((), rng, n_drawn=self.n_drawn)
            return next((arch for arch in first_ones if arch not in seen), None)
        price = _no_price if self.price_at is None else self.price_at(len(measured))
        learned = _most_telling(scores)
        some = [measured[place] for place in learned]
        model = self._model(some, scores[learned], n_measured=len(measured))
        value = model.fitted() - np.array([price(arch) for arch in some])
        first = np.argsort(-np.round(value, DECIMALS), kind="stable")[:N_BEST]
        best = [some[place] for place in first]
        if not model.beats_mean([place for place, arch in enumerate(some) if arch.layers]):
            return self._explored(measured, seen, rng)
        drawn = self._drawn(best, some, rng, n_measured=len(measured))
        candidates = [arch for arch in drawn if arch not in seen]
        if not candidates:
            return None
        prices = np.array([price(arch) for arch in candidates])
        gain = _improvement(model.predict(candidates), prices, value.max())
        calls = self._new_calls(measured, candidates)
        return candidates[int(np.argmax(np.round(gain / (1 + calls), DECIMALS)))]

    def _explored(
        self,
        measured: Sequence[Architecture],
        seen: Collection[Architecture],
        rng: random.Random,
    ) -> Architecture | None:
        """Return a random draw, while scores cannot be predicted.

        By turns it is the draw that takes the fewest new calls, and any, as likely as one over one
        more than its new calls. The cheapest alone would be votes of the same answers for as long
        as there are any, and the model would see no other kind of architecture. Ties go to the
        first draw, and not to the lower price, which predicts no score.
        """
        drawn = self._candidates((), rng, n_drawn=self._n_drawn(len(measured)))
        new = [arch for arch in drawn if arch not in seen]
        calls = self._new_calls(measured, new)
        if not new or len(measured) % 2:
            return new[int(calls.argmin())] if new else None
        return rng.choices(new, (1 / (1 + calls)).tolist())[0]

    def _drawn(
        self,
        best: Sequence[Architecture],
        some: Sequence[Architecture],
        rng: random.Random,
        *,
        n_measured: int,
    ) -> list[Architecture]:
        """Return neighbours of the best and random draws; fewer draws in late trials."""
        n_drawn = self._n_drawn(n_measured)
        if not isinstance(self.space, ProgramSpace):
            return self._candidates(best, rng, n_drawn=n_drawn)
        drawn_candidates = _in_turn(self.space, best, some, rng, n_drawn=n_drawn, turn=n_measured)
        return list(dict.fromkeys(map(self.canonical, drawn_candidates)))

    def _n_drawn(self, n_measured: int) -> int:
        return self.n_drawn if n_measured <= MOST_LEARNED else min(N_DRAWN_LATER, self.n_drawn)

    def _unknown(self, seen: Collection[Architecture], rng: random.Random) -> Architecture | None:
        """Return any unknown architecture: a draw, or a neighbour of a known architecture."""
        draws = (self.canonical(self.space.draw(rng)) for _ in range(MOST_DRAWS))
        singles = single_agents(self.space)
        near = chain.from_iterable(map(self._near, sorted(seen, key=str)))
        others = chain(draws, singles, self.space.listed, near)
        return next((arch for arch in others if arch not in seen), None)

    def _model(
        self, some: Sequence[Architecture], scores: FeatureMatrix, *, n_measured: int
    ) -> SurrogateModel:
        """Fit the model; learn the weights again each time the number of trials grew by 10 %."""
        is_stale = n_measured >= 1.1 * self._learned_from
        model = SurrogateModel(
            self.kernels, some, scores, weights=None if is_stale else self._weights
        )
        if is_stale:
            self._weights, self._learned_from = model.weights, n_measured
        return model

    def _candidates(
        self, best: Iterable[Architecture], rng: random.Random, *, n_drawn: int
    ) -> list[Architecture]:
        near = [other for arch in best for other in self._near(arch)]
        drawn = (self.canonical(self.space.draw(rng)) for _ in range(n_drawn))
        return list(dict.fromkeys((*near, *drawn)))

    def _near(self, arch: Architecture) -> list[Architecture]:
        if arch not in self._neighbours:
            self._neighbours[arch] = [self.canonical(near) for near in neighbours(arch, self.space)]
        return self._neighbours[arch]

    def _new_calls(
        self, measured: Iterable[Architecture], some: Sequence[Architecture]
    ) -> FeatureMatrix:
        """Return the calls per question that no measured architecture has made yet."""
        nodes = {node for arch in measured for node in nodes_of(arch)}
        return np.array([len(nodes_of(arch) - nodes) for arch in some], float)


def _no_price(_: Architecture) -> float:
    return 0.0


def _in_turn(
    space: ProgramSpace,
    best: Sequence[Architecture],
    measured: Sequence[Architecture],
    rng: random.Random,
    *,
    n_drawn: int,
    turn: int,
) -> Iterator[Architecture]:
    """Yield candidates that differ from the best in one mixture of the program, by turns.

    Without turns, the mixture whose changes take the fewest new calls would get all trials.
    """
    # Measured baselines may be outside of the space.
    programs = [o for o in best if isinstance(o, ProgramArchitecture) and space.holds(o)]
    place = turn % (len(space.mixtures) + 1)
    if place == len(space.mixtures) or not programs:
        parts = [p for place in range(len(space.mixtures)) for p in _parts(space, measured, place)]
        yield from (program.with_part(*part) for program in programs for part in parts)
        yield from (space.draw(rng) for _ in range(n_drawn))
        return
    path, inside = space.mixtures[place]
    for arch in programs:
        yield from _changed_at(path, arch, inside)
    yield from (programs[0].with_part(*part) for part in _parts(space, measured, place))
    yield from (programs[0].with_part(path, inside.draw(rng)) for _ in range(n_drawn))


def _parts(
    space: ProgramSpace, measured: Sequence[Architecture], place: int
) -> list[tuple[str, Architecture]]:
    """Return the measured architectures of one mixture that its space has, with its path."""
    path, inside = space.mixtures[place]
    parts = {arch.at(path): None for arch in measured if isinstance(arch, ProgramArchitecture)}
    return [(path, part) for part in parts if inside.holds(part)]


@lru_cache
def _blas() -> Any:
    """Return the controller of BLAS threads; cached, as it inspects all loaded libraries."""
    # SciPy has a BLAS of its own, and the controller finds loaded libraries only.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _most_telling(scores: FeatureMatrix) -> list[int]:
    """Return the indices of the best and the latest architectures, in order; all if few."""
    n = len(scores)
    if n <= MOST_LEARNED:
        return list(range(n))
    latest = range(n - MOST_LEARNED // 2, n)
    means = np.nanmean(scores[: latest[0]], axis=1)
    best = np.argsort(-np.round(means, DECIMALS), kind="stable")[: MOST_LEARNED - len(latest)]
    return [*sorted(best.tolist()), *latest]


def _improvement(predicted: Prediction, prices: FeatureMatrix, best: float) -> FeatureMatrix:
    """Return the expected improvement over ``best``."""
    gap = predicted.mean - prices - best
    z = gap / predicted.sd
    density = np.exp(-0.5 * z**2) / sqrt(2 * np.pi)
    # Imported here: importing scipy takes a second, which `import moa_dspy` should not.
    from scipy.special import ndtr

    below: FeatureMatrix = ndtr(z)
    return gap * below + predicted.sd * density


MOST_PER_COST: Final = 0.2
"""Maximum weight of costs: points of score per cost of the most expensive single agent. At larger
weights only single agents would be proposed, which are all measured at the start."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected cost of architectures per question, from the costs of the single agents.

    A seat is assumed to cost as much as its agent alone, without the responses that it reads.

    Attributes:
        usd: Mean of each agent alone.
        seconds: Mean of each agent alone.
    """

    usd: Mapping[str, float]
    seconds: Mapping[str, float]

    def of_part(self, n: int) -> Forecast:
        """Return the forecast of one of ``n`` mixtures, if all have equal shares of the cost."""
        usd = {name: cost / n for name, cost in self.usd.items()}
        return Forecast(usd, {name: cost / n for name, cost in self.seconds.items()})

    def costs(self, arch: Architecture) -> dict[str, float]:
        """Return usd, seconds and calls; seconds are the critical path.

        That is the sum of the slowest proposers of all layers and the agent of the last step.
        """
        layers = [*arch.layers, *arch.last_step_rounds]
        return {
            "usd": sum(self.usd[name] for layer in layers for name in layer),
            "seconds": sum(max(self.seconds[name] for name in layer) for layer in layers),
            "calls": float(sum(map(len, layers))),
        }


@dataclass(frozen=True, slots=True)
class Prices:
    """Weighs costs against the score, with new random weights per proposal (scalarisation).

    Each weight belongs to a point of the Pareto front, so proposals spread along it (Knowles 2006,
    ParEGO; Paria et al. 2020). A third of the proposals use the score alone, as the pick does.

    Args:
        forecast: Forecast of costs.
        objectives: Names of the study's objectives; those that are not costs are ignored.
        seed: Seed of the weights.
    """

    forecast: Forecast
    objectives: Sequence[str]
    seed: int

    def at(self, n_measured: int) -> Callable[[Architecture], float]:
        """Return the price function for the proposal after ``n_measured`` architectures."""
        counted = [name for name in COSTS if name in self.objectives]
        if not counted or n_measured % 3 == 0:
            return _no_price
        rng = random.Random(f"prices-{self.seed}-{n_measured}")
        # The median of a squared uniform number is 1/4, so that large weights are rare.
        weights = {name: MOST_PER_COST * rng.random() ** 2 / len(counted) for name in counted}
        dearest = self._dearest_singles()

        def price(arch: Architecture) -> float:
            costs = self.forecast.costs(arch)
            return sum(weight * costs[name] / dearest[name] for name, weight in weights.items())

        return price

    def _dearest_singles(self) -> dict[str, float]:
        return {
            "usd": max(self.forecast.usd.values(), default=0.0) or 1.0,
            "seconds": max(self.forecast.seconds.values(), default=0.0) or 1.0,
            "calls": 1.0,
        }

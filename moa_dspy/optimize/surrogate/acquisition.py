"""The acquisition: the architecture that promises most for its cost, among neighbours and draws."""

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


def neighbours(one: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    """Yield what ``space`` holds and one change of seat, layer, last step or reading away.

    Votes come without a tie-breaker: the scores say which agent decides ties. Of a program one
    mixture is changed so, or becomes another single agent.
    """
    if isinstance(one, ProgramArchitecture) and isinstance(space, ProgramSpace):
        for path, inside in space.mixtures:
            yield from _changed_at(path, one, inside)
        return
    if not one.layers:
        return
    for changed in (*_other_layers(one, space), *_other_last_steps(one, space)):
        if space.holds(changed):
            yield changed


def _changed_at(
    path: str, one: ProgramArchitecture, inside: SearchSpace
) -> Iterator[ProgramArchitecture]:
    """Yield the program with one mixture changed, or another single agent in its place."""
    changes = (*neighbours(one.at(path), inside), *single_agents(inside))
    yield from (one.with_part(path, changed) for changed in changes)


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


def _other_seats(layer: _Layer, space: SearchSpace) -> Iterator[_Layer]:
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
    one: Architecture, layers: tuple[_Layer, ...], **last: str | None
) -> Iterator[Architecture]:
    """Yield the architecture with other layers and perhaps another last step, if it can be."""
    combine = str(last.get("combine", one.combine))
    who = last.get("aggregator", one.aggregator) if combine != "vote" else None
    prompt = one.prompt if combine == "synthesize" else None
    try:
        # With sorted names it is its own canonical form.
        seated = tuple(tuple(sorted(layer)) for layer in layers)
        yield Architecture(seated, who, combine, (), prompt).canonical
    except ArchitectureError:
        return


@lru_cache(maxsize=100_000)
def nodes_of(one: Architecture) -> frozenset[Hashable]:
    """Return every call of a question: the agent, its sample, and what it has read.

    A mixture of a program is taken to read what those before it answered.
    """
    if isinstance(one, ProgramArchitecture):
        parts = [(one.parts[:place], part) for place, (_, part) in enumerate(one.parts)]
        return frozenset((before, node) for before, part in parts for node in nodes_of(part))
    read: tuple[Hashable, ...] = ()
    found: set[Hashable] = set()
    for layer in one.layers:
        read = tuple((name, layer[:seat].count(name), read) for seat, name in enumerate(layer))
        found.update(read)
    if not one.layers:
        found.add((str(one.aggregator), 0, ()))
    elif one.aggregator_calls_a_model:
        parents = tuple(read[seat] for seat in one.reading)
        asked = enumerate(one.asked_last)
        found.update((who, place, parents, one.combine, one.prompt) for place, who in asked)
    return frozenset(found)


def single_agents(space: SearchSpace) -> Iterator[Architecture]:
    """Return the single agents of a space; of a program, each in all of its mixtures."""
    if isinstance(space, ProgramSpace):
        return space.singles()
    return map(Architecture.single, space.agents)


PriceOf = Callable[[Architecture], float]
N_DRAWN: Final = 200  # default of ``Acquisition.n_drawn``
MOST_LEARNED: Final = 300
"""Architectures that the surrogate learns from: of more, the best half and the latest half. A
proposal takes time with the cube of their number."""
N_DRAWN_LATER: Final = 50
"""Architectures drawn per proposal once there are more than the surrogate learns from."""
MOST_DRAWS: Final = 2_000
"""Known architectures drawn in a row before every neighbour of what is known is looked at."""
DECIMALS: Final = 10
"""Digits that are compared; the last ones depend on a machine's linear algebra and its threads."""
N_BEST: Final = 3
"""Architectures whose neighbours are looked at."""


@dataclass(slots=True)
class Acquisition:
    """Proposes by expected improvement per call (Jones et al. 1998; Snoek et al. 2012, 3.2).

    While the model predicts measured mixtures, each left out in turn, no better than the mean of
    the others does, the random draw that takes the fewest new calls is proposed.

    Args:
        space: What may be proposed.
        kernels: Of the surrogate model.
        canonical: Gives an architecture its final form.
        seed: Of the draws.
        price_at: Returns, for a number of measured architectures, what a question costs the
            user beside its score, in points of score; None where the score is all that counts.
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
        """Return an architecture that is neither measured nor taken; None where none is left.

        Args:
            measured: In the order of measuring.
            scores: (architectures, rows), NaN where a trial was stopped.
            taken: Architectures that are being measured, or could not be.
        """
        known = {*measured, *taken}
        rng = random.Random(f"propose-{self.seed}-{len(measured)}")
        # Several threads wait for each other longer than one takes.
        with _blas().limit(limits=1, user_api="blas"):
            proposed = self._promising(measured, scores, known, rng)
        return proposed or self._unknown(known, rng)

    def _promising(
        self,
        measured: Sequence[Architecture],
        scores: FeatureMatrix,
        known: Collection[Architecture],
        rng: random.Random,
    ) -> Architecture | None:
        if not measured:
            first_ones = self._candidates((), rng, n_drawn=self.n_drawn)
            return next((one for one in first_ones if one not in known), None)
        price = _no_price if self.price_at is None else self.price_at(len(measured))
        learned = _most_telling(scores)
        some = [measured[place] for place in learned]
        model = self._model(some, scores[learned], n_measured=len(measured))
        value = model.fitted() - np.array([price(one) for one in some])
        first = np.argsort(-np.round(value, DECIMALS), kind="stable")[:N_BEST]
        best = [some[place] for place in first]
        if not model.beats_mean([place for place, one in enumerate(some) if one.layers]):
            return self._explored(measured, known, rng)
        drawn = self._drawn(best, some, rng, n_measured=len(measured))
        candidates = [one for one in drawn if one not in known]
        if not candidates:
            return None
        prices = np.array([price(one) for one in candidates])
        gain = _improvement(model.predict(candidates), prices, value.max())
        calls = self._new_calls(measured, candidates)
        return candidates[int(np.argmax(np.round(gain / (1 + calls), DECIMALS)))]

    def _explored(
        self,
        measured: Sequence[Architecture],
        known: Collection[Architecture],
        rng: random.Random,
    ) -> Architecture | None:
        """Return the draw that takes the fewest new calls, where none promises more than another.

        Of as many, the first drawn: what a question would cost the user says nothing of scores.
        """
        drawn = self._candidates((), rng, n_drawn=self._n_drawn(len(measured)))
        new = [one for one in drawn if one not in known]
        return new[int(self._new_calls(measured, new).argmin())] if new else None

    def _drawn(
        self,
        best: Sequence[Architecture],
        some: Sequence[Architecture],
        rng: random.Random,
        *,
        n_measured: int,
    ) -> list[Architecture]:
        """Return neighbours of the best, and others at random; fewer in a late trial."""
        n_drawn = self._n_drawn(n_measured)
        if not isinstance(self.space, ProgramSpace):
            return self._candidates(best, rng, n_drawn=n_drawn)
        found = _in_turn(self.space, best, some, rng, n_drawn=n_drawn, turn=n_measured)
        return list(dict.fromkeys(map(self.canonical, found)))

    def _n_drawn(self, n_measured: int) -> int:
        return self.n_drawn if n_measured <= MOST_LEARNED else min(N_DRAWN_LATER, self.n_drawn)

    def _unknown(self, known: Collection[Architecture], rng: random.Random) -> Architecture | None:
        """Return any architecture that is not known: a draw, or a neighbour of what is known."""
        draws = (self.canonical(self.space.draw(rng)) for _ in range(MOST_DRAWS))
        singles = single_agents(self.space)
        near = chain.from_iterable(map(self._near, sorted(known, key=str)))
        others = chain(draws, singles, self.space.listed, near)
        return next((one for one in others if one not in known), None)

    def _model(
        self, some: Sequence[Architecture], scores: FeatureMatrix, *, n_measured: int
    ) -> SurrogateModel:
        """Fit; learn how much each part explains anew after every tenth more trials."""
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
        near = [other for one in best for other in self._near(one)]
        drawn = (self.canonical(self.space.draw(rng)) for _ in range(n_drawn))
        return list(dict.fromkeys((*near, *drawn)))

    def _near(self, one: Architecture) -> list[Architecture]:
        if one not in self._neighbours:
            self._neighbours[one] = [self.canonical(other) for other in neighbours(one, self.space)]
        return self._neighbours[one]

    def _new_calls(
        self, measured: Iterable[Architecture], some: Sequence[Architecture]
    ) -> FeatureMatrix:
        """Return how many calls per question were not made yet."""
        made = {node for one in measured for node in nodes_of(one)}
        return np.array([len(nodes_of(one) - made) for one in some], float)


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
    """Yield candidates that differ from the best in one mixture, and in their turn in any.

    Each mixture has its turn, so that one whose changes take fewer calls does not get all trials.
    """
    # Baselines are measured outside of the space as well.
    programs = [o for o in best if isinstance(o, ProgramArchitecture) and space.holds(o)]
    place = turn % (len(space.mixtures) + 1)
    if place == len(space.mixtures) or not programs:
        parts = [p for place in range(len(space.mixtures)) for p in _seen(space, measured, place)]
        yield from (one.with_part(*part) for one in programs for part in parts)
        yield from (space.draw(rng) for _ in range(n_drawn))
        return
    path, inside = space.mixtures[place]
    for one in programs:
        yield from _changed_at(path, one, inside)
    yield from (programs[0].with_part(*part) for part in _seen(space, measured, place))
    yield from (programs[0].with_part(path, inside.draw(rng)) for _ in range(n_drawn))


def _seen(
    space: ProgramSpace, measured: Sequence[Architecture], place: int
) -> list[tuple[str, Architecture]]:
    """Return what one mixture was in any program, with its path, as far as its space has it."""
    path, inside = space.mixtures[place]
    parts = {one.at(path): None for one in measured if isinstance(one, ProgramArchitecture)}
    return [(path, part) for part in parts if inside.holds(part)]


@lru_cache
def _blas() -> Any:
    """Return what limits the threads of matrix products; it looks through the whole process."""
    # SciPy brings a BLAS of its own, and only what is loaded is found.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _most_telling(scores: FeatureMatrix) -> list[int]:
    """Return the places of the best and the latest architectures, in order; of few, all."""
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
    # Imported here: scipy costs a second that `import moa_dspy` shall not.
    from scipy.special import ndtr

    below: FeatureMatrix = ndtr(z)
    return gap * below + predicted.sd * density


MOST_PER_COST: Final = 0.2
"""Points of score that the dearest single agent's cost is worth at most: beyond that only single
agents would be proposed, and these are all measured at first."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected cost of architectures per question, from what the single agents cost.

    A seat is taken to cost what its agent costs alone: what it reads besides is not known yet.

    Attributes:
        usd: Mean of each agent alone.
        seconds: Mean of each agent alone.
    """

    usd: Mapping[str, float]
    seconds: Mapping[str, float]

    def of_part(self, n: int) -> Forecast:
        """Return the forecast of one of ``n`` mixtures, if each costs an equal part of these."""
        usd = {name: cost / n for name, cost in self.usd.items()}
        return Forecast(usd, {name: cost / n for name, cost in self.seconds.items()})

    def costs(self, one: Architecture) -> dict[str, float]:
        """Return usd, seconds and calls; of seconds the critical path.

        The slowest proposer of each layer, then the agent of the last step.
        """
        layers = [*one.layers, *one.last_rounds]
        return {
            "usd": sum(self.usd[name] for layer in layers for name in layer),
            "seconds": sum(max(self.seconds[name] for name in layer) for layer in layers),
            "calls": float(sum(map(len, layers))),
        }


@dataclass(frozen=True, slots=True)
class Prices:
    """Weighs costs against the score, otherwise for each proposal: a random scalarisation.

    Every weight is a point of the trade-off, so proposals spread along it (Knowles 2006, ParEGO;
    Paria et al. 2020). A third of proposals look at the score alone: its best is what is picked.

    Args:
        forecast: Of costs.
        objectives: Names of the study's objectives; those without a cost are passed over.
        seed: Of the weights.
    """

    forecast: Forecast
    objectives: Sequence[str]
    seed: int

    def at(self, n_measured: int) -> Callable[[Architecture], float]:
        """Return the price of an architecture for the proposal after so many were measured."""
        counted = [name for name in COSTS if name in self.objectives]
        if not counted or n_measured % 3 == 0:
            return _free
        rng = random.Random(f"prices-{self.seed}-{n_measured}")
        # Of the square of a uniform number half lies below a quarter: cheap ones are few.
        weights = {name: MOST_PER_COST * rng.random() ** 2 / len(counted) for name in counted}
        dearest = self._dearest_singles()

        def price(one: Architecture) -> float:
            costs = self.forecast.costs(one)
            return sum(weight * costs[name] / dearest[name] for name, weight in weights.items())

        return price

    def _dearest_singles(self) -> dict[str, float]:
        return {
            "usd": max(self.forecast.usd.values(), default=0.0) or 1.0,
            "seconds": max(self.forecast.seconds.values(), default=0.0) or 1.0,
            "calls": 1.0,
        }


def _free(_: Architecture) -> float:
    return 0.0

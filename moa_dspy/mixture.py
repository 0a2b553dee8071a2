"""LMs that were given as objects become agents with names."""

# DOCS: saving: ``save`` and ``load`` of a mixture, as DSPy's programs have them, on files that are safe. | mixture: The DSPy program: layers of proposers, then an aggregator.

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.layers import Layer
from moa_dspy.lm_binding import mark_seats
from moa_dspy.plan import Plan, Planner, Rules, afollow, follow
from moa_dspy.pool import Pool
from moa_dspy.prediction import MixturePrediction
from moa_dspy.program_file import load_program, restore_program
from moa_dspy.program_file import save_program as write
from moa_dspy.references import ReferenceLimits
from moa_dspy.seats import Seats
from moa_dspy.signatures import REFERENCES, ranker, with_references


def from_parts(
    layers: Sequence[Sequence[Any]], aggregator: Any, pool: Pool | None
) -> tuple[Architecture, Pool]:
    """Name LMs that were given as objects, equal objects alike, and build a pool of them."""
    if aggregator is None:
        raise ArchitectureError("`architecture`, or `layers` and `aggregator`, must be given.")
    given = [*(lm for layer in layers for lm in layer), aggregator]
    if all(isinstance(name, str) for name in given):
        if pool is None:
            raise ArchitectureError("`pool` must be given with agent names.")
        return Architecture(tuple(map(tuple, layers)), aggregator), pool
    names: dict[int, str] = {}
    lms: dict[str, Any] = {}
    for lm in given:
        if not isinstance(lm, dspy.BaseLM):
            raise ArchitectureError(f"Seats must be all names or all LMs, but one is {lm!r}.")
        if id(lm) not in names:
            stem = re.sub(r"[\s>+*()]", "-", str(lm.model))
            numbered = (f"{stem}-{n}" for n in count(2))
            names[id(lm)] = next(name for name in chain([stem], numbered) if name not in lms)
            lms[names[id(lm)]] = lm
    named = tuple(tuple(names[id(lm)] for lm in layer) for layer in layers)
    return Architecture(named, names[id(aggregator)]), Pool.from_lms(lms)


class Load:
    """``MixtureOfAgents.load(path, pool=...)`` builds; ``program.load(path)`` restores.

    Of the class it returns the program of a file that ``save`` wrote. Of a program it puts
    the prompts and demos of such a file, or of one of DSPy's own state files, into this
    program, which must have the same seats.
    """

    def __get__(self, program: Any, owner: type) -> Any:
        return _build if program is None else partial(_restore, program)


def _build(path: Path | str, *, pool: Pool, signature: type[dspy.Signature] | None = None) -> Any:
    return load_program(Path(path), MixtureOfAgents, pool=pool, signature=signature)


def _restore(program: Any, path: Path | str, **options: Any) -> None:
    if _is_of_dspy(Path(path)):
        dspy.Module.load(program, path, **options)
    else:
        restore_program(program, Path(path))


def _is_of_dspy(path: Path) -> bool:
    """Whether the file is a state that DSPy wrote; DSPy says itself what it refuses."""
    if path.suffix == ".pkl":
        return True
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format" not in content and "metadata" in content


def save(
    program: Any, path: Path | str, save_program: bool = False, modules_to_serialize: Any = None
) -> None:
    """Write ``program`` to a JSON file that ``load`` reads: no endpoint, no key, no code.

    Raises:
        ArchitectureError: If a pickle is asked for, which would hold keys and whatever was
            said, or the program cannot be written.
    """
    if save_program or modules_to_serialize or Path(path).suffix != ".json":
        raise ArchitectureError(
            f"A mixture is saved as a .json file, not as a pickle (keys would be in it), but "
            f"`path` is {str(path)!r} and `save_program` is {save_program}."
        )
    write(program, Path(path))


FACTS: Final = "mixture"
"""Name under which a prediction carries its ``Answer``."""


class MixtureOfAgents(dspy.Module):
    """Layered mixture of agents (Wang et al., 2024, arXiv:2406.04692, eq. 1).

    Every proposer of the first layer answers the signature's inputs; those of later
    layers also read the responses before them; the last step makes one answer. The
    prediction has the signature's own output fields, and ``mixture``, an ``Answer``
    with each agent's response, price, seconds and failure.

    Who answers in a seat is said by the architecture and the pool, at every call. An LM
    that comes from outside (``set_lm``, a teacher's settings, ``dspy.context``) never
    changes that: of it only ``rollout_id`` counts, and asks every sampled agent anew.

    Args:
        signature: What the mixture answers: a DSPy signature, or its text.
        architecture: Who sits where, or its text notation; instead of it,
            ``layers`` and ``aggregator`` may give LMs or agent names.
        pool: Where names become LMs; not needed when LMs are given.
        module: Makes the module of a seat from a signature, which after the first layer has
            ``references``: ``dspy.Predict``, ``dspy.ChainOfThought``, or any that returns
            a prediction with the signature's outputs.
        adapter: A DSPy adapter for every seat; None takes the one of the settings.
        normalise: When a vote takes two answers for equal: ``text`` or ``answer``.
        quorum: Fewest responses that a layer may go on with; of a narrower layer, all.
        deadline_seconds: After how long a layer goes on without its stragglers, as long
            as the quorum has answered. An answer from the store counts with the seconds
            that it took when it was made, so that a replay gives the same result.
        reference_limits: How many tokens of references an agent may read.

    Raises:
        ArchitectureError: If the architecture cannot be built, or not with this signature.
        PoolError: If the pool lacks an agent.
        LayerFailedError: When called: fewer than the quorum answered, or not the aggregator.
    """

    def __init__(
        self,
        signature: str | type[dspy.Signature],
        architecture: Architecture | str | None = None,
        *,
        layers: Sequence[Sequence[Any]] | None = None,
        aggregator: Any = None,
        pool: Pool | None = None,
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
        normalise: str = "text",
        quorum: int = 1,
        deadline_seconds: float | None = None,
        reference_limits: ReferenceLimits | None = None,
    ) -> None:
        super().__init__()
        if architecture is None:
            architecture, pool = from_parts(layers or (), aggregator, pool)
        elif layers is not None or aggregator is not None:
            raise ArchitectureError("`layers` and `aggregator` stand instead of `architecture`.")
        if isinstance(architecture, str):
            architecture = Architecture.parse(architecture)
        if pool is None:
            raise ArchitectureError("`pool` must be given with an architecture of names.")
        for name in architecture.agents:
            pool[name]
        self.signature: Any = _checked(dspy.ensure_signature(signature))
        limits = reference_limits or ReferenceLimits()
        self.rules = Rules(adapter, normalise, quorum, deadline_seconds, limits)
        self.architecture, self.pool, self._module = architecture, pool, module
        self.layers = [
            Layer([module(self._proposal(depth)) for _ in names])
            for depth, names in enumerate(architecture.layers)
        ]
        self.aggregator = self._make_aggregator(module)
        mark_seats(self)

    def with_architecture(self, architecture: Architecture) -> MixtureOfAgents:
        """Return a mixture like this one in everything but who sits where; prompts are new."""
        rules = self.rules
        made = MixtureOfAgents(
            self.signature,
            architecture,
            pool=self.pool,
            module=self._module,
            adapter=rules.adapter,
            normalise=rules.normalise,
            quorum=rules.quorum,
            deadline_seconds=rules.deadline_seconds,
            reference_limits=rules.limits,
        )
        made.are_proposers_frozen = self.are_proposers_frozen
        return made

    @property
    def are_proposers_frozen(self) -> bool:
        """Whether DSPy's optimizers see, and change, the aggregator alone; may be set.

        What an optimizer returns is a copy, so set it back there to free the proposers.
        """
        return any(layer.is_frozen for layer in self.layers)

    @are_proposers_frozen.setter
    def are_proposers_frozen(self, value: bool) -> None:
        for layer in self.layers:
            layer.is_frozen = value

    @cached_property
    def _reading(self) -> Any:
        return with_references(self.signature)

    def _proposal(self, depth: int) -> Any:
        return self._reading if depth else self.signature

    def _make_aggregator(self, module: Callable[[Any], Any]) -> Any:
        if not self.architecture.aggregator_calls_a_model:
            return None
        if self.architecture.combine == "select":
            return dspy.Predict(ranker(self.signature))
        return module(self._proposal(self.architecture.depth))

    def forward(self, **inputs: Any) -> MixturePrediction:
        """Answer, the proposers of a layer at the same time in threads."""
        return MixturePrediction.of(follow(self.plan(inputs), self.seats.ask_all))

    async def aforward(self, **inputs: Any) -> MixturePrediction:
        """Answer, the proposers of a layer at the same time as tasks."""
        return MixturePrediction.of(await afollow(self.plan(inputs), self.seats.aask_all))

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Say what to ask next until there is an answer; asks nothing itself."""
        proposers = [layer.proposers for layer in self.layers]
        outputs = tuple(self.signature.output_fields)
        planner = Planner(
            self.architecture, proposers, self.aggregator, outputs, self.pool, self.rules
        )
        return planner.plan(inputs)

    save: Any = save
    load: Any = Load()

    def get_lm(self) -> Any:
        """Return the LM of the last agent: what DSPy's wrappers copy to vary a mixture."""
        architecture = self.architecture
        return self.pool.lm(architecture.aggregator or architecture.layers[-1][0])

    @property
    def adapter(self) -> Any:
        """The DSPy adapter of every seat; None is the one of the settings."""
        return self.rules.adapter

    @property
    def normalise(self) -> str:
        """Name of when a vote takes two answers for equal."""
        return self.rules.normalise

    @property
    def quorum(self) -> int:
        """Fewest responses that a layer may go on with."""
        return self.rules.quorum

    @property
    def seats(self) -> Seats:
        """Asks the questions of this mixture's plan."""
        return Seats(self.pool, self.rules.adapter)


def _checked(signature: Any) -> Any:
    for taken in (REFERENCES, FACTS):
        if taken in signature.fields:
            raise ArchitectureError(f"The signature's own field {taken!r} must be renamed.")
    return signature

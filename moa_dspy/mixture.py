"""The mixture of agents as a DSPy program: layers of proposers, then a last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy
from dspy.streaming.messages import sync_send_to_stream

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError
from moa_dspy.layers import (
    ArchitectureState,
    Layer,
    ReplacedPredictor,
    all_predictors,
    former_seats,
    from_parts,
    is_for_plain_chat,
    mark_seats,
    seated,
)
from moa_dspy.plan import Plan, Planner, Rules, afollow, follow
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer, MixturePrediction
from moa_dspy.program_file import is_dspy_state, load_program, restore_program
from moa_dspy.program_file import save_program as write_program
from moa_dspy.references import ReferenceLimits
from moa_dspy.seats import Seats, own_arguments, without_lms
from moa_dspy.signatures import FUSE, analyst, ranker, usable_signature, with_references
from moa_dspy.telemetry import mixture_span


class PlannedModule(dspy.Module):
    """Base of programs that ask agents of a pool by a plan.

    Copies share the pool. A pickle, as from ``save(..., save_program=True)``, leaves out the pool
    and LMs that were set on predictors, so it holds no key and no endpoint; ``Pool.attach`` gives
    the loaded program a pool.
    """

    pool: Any
    rules: Rules
    signature: Any

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents in use."""
        raise NotImplementedError

    @property
    def writer(self) -> Any:
        """The module that writes the answer; None if the answer is picked from the responses."""
        raise NotImplementedError

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Yield the next questions until there is an answer, without asking them."""
        raise NotImplementedError

    @property
    def seats(self) -> Seats:
        """The object that asks the questions of the plan."""
        return Seats(self.pool, self.rules.adapter)

    def __call__(self, *values: Any, **inputs: Any) -> Any:
        """Answer; an unnamed input raises ``ArchitectureError`` before any model is called."""
        self._check_named(values)
        with own_arguments(inputs) as own:
            return super().__call__(**own)

    async def acall(self, *values: Any, **inputs: Any) -> Any:
        """Answer, in a coroutine."""
        self._check_named(values)
        with own_arguments(inputs) as own:
            return await super().acall(**own)

    def _check_named(self, values: tuple[Any, ...]) -> None:
        if values:
            names = list(self.signature.input_fields)
            raise ArchitectureError(
                f"Inputs must be given by name, as program({names[0]}=...), but got "
                f"{len(values)} without a name; the signature's inputs are {', '.join(names)}."
            )

    def forward(self, **inputs: Any) -> MixturePrediction:
        """Answer, with the agents of a layer in parallel threads."""
        for signal in self._signals():
            sync_send_to_stream(dspy.settings.send_stream, signal)
        with mixture_span(self):
            answer = follow(self.plan(inputs), self.seats.ask_all)
        for signal in self._signals(answer):
            sync_send_to_stream(dspy.settings.send_stream, signal)
        return MixturePrediction.of(answer)

    async def aforward(self, **inputs: Any) -> MixturePrediction:
        """Answer, with the agents of a layer as parallel tasks."""
        for signal in self._signals():
            await dspy.settings.send_stream.send(signal)
        with mixture_span(self):
            answer = await afollow(self.plan(inputs), self.seats.aask_all)
        for signal in self._signals(answer):
            await dspy.settings.send_stream.send(signal)
        return MixturePrediction.of(answer)

    def _signals(self, answer: Answer | None = None) -> list[Any]:
        """Return the chunks that tell this module's listeners of an answer's start, or its end."""
        if dspy.settings.send_stream is None:
            return []
        listeners = dspy.settings.stream_listeners or ()
        own = [listener for listener in listeners if getattr(listener, "mixture", None) is self]
        values = None if answer is None else answer.final.values
        return [listener.signal(values) for listener in own]

    def __copy__(self) -> Any:
        return self._with_state(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        clone = memo[id(self)] = self._with_state({})
        clone.__setstate__(deepcopy(super().__getstate__(), memo))
        return clone

    def __getstate__(self) -> dict[str, Any]:
        lms = [lm for _, predictor in all_predictors(self) if (lm := predictor.lm) is not None]
        state: dict[str, Any] = dspy.Module.__getstate__(without_lms(self, lms))
        return {**state, "pool": self.pool.detached(self.agents)}

    def _with_state(self, state: Mapping[str, Any]) -> Any:
        instance: Any = type(self).__new__(type(self))
        instance.__dict__.update(state)
        return instance


class _ClassOrInstanceMethod:
    """A descriptor with one function for the class and another for instances."""

    def __init__(self, on_class: str, on_instance: str) -> None:
        self._on_class, self._on_instance = on_class, on_instance

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return getattr(owner, self._on_class)
        return getattr(instance, self._on_instance)


class MixtureOfAgents(PlannedModule):
    """Layered mixture of agents (Wang et al., 2024, arXiv:2406.04692, eq. 1).

    Every proposer of the first layer answers the signature's inputs; those of later
    layers also read the responses before them; the last step makes one answer. The
    prediction has the signature's own output fields, and ``mixture``, an ``Answer``
    with each agent's response, price, seconds and failure.

    The architecture and the pool determine the agent of each seat at every call. An LM from outside
    (``set_lm``, a teacher's settings, ``dspy.context``) never changes that: only its ``rollout_id``
    is used, which asks every sampled agent anew.

    Args:
        signature: The task: a DSPy signature, or its text.
        architecture: The agents of every seat, or its text notation; instead of it,
            ``layers`` and ``aggregator`` may be given.
        layers: LMs or agent names of each layer.
        aggregator: LM or agent name of the last step, which reads the last of the ``layers``.
        pool: The agents by name, or LMs by name or in a list; not needed if ``layers`` gives LMs.
        module: Makes the module of a seat from a signature, which after the first layer has
            ``references``: ``dspy.Predict``, ``dspy.ChainOfThought``, or any function whose module
            returns a prediction with the signature's outputs.
        adapter: A DSPy adapter for every seat; None takes that of the settings or, without one,
            plain chat if all agents are small models of this machine (``local/``) and the answer is
            one text.
        normalise: Comparison of answers in a vote: ``text``, ``answer`` or ``version``.
        quorum: Fewest responses of a complete layer; all, for a narrower layer.
        deadline_seconds: Time after which the program continues without late agents of a layer, if
            the quorum has answered. An answer from the store counts with its original seconds, so
            that a replay gives the same result.
        reference_limits: Most tokens of references that an agent may read.
        stop_early: Whether a vote asks its members in waves, and stops once the remaining members
            cannot change its answer: the same answer for fewer calls, in more time. With
            ``deadline_seconds``, all remaining members are asked at once after a quarter of it. In
            a run that a DSPy optimizer traces all members are asked, as it learns from every seat.

    Raises:
        ArchitectureError: If the architecture cannot be built, at all or with this signature.
        PoolError: If the pool lacks an agent.
        LayerFailedError: When called: fewer agents than the quorum answered, or the aggregator
            failed.
    """

    def __init__(
        self,
        signature: str | type[dspy.Signature],
        architecture: Architecture | str | None = None,
        *,
        layers: Sequence[Sequence[Any]] | None = None,
        aggregator: Any = None,
        pool: Pool | Mapping[str, Any] | Sequence[Any] | None = None,
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
        normalise: str = "text",
        quorum: int = 1,
        deadline_seconds: float | None = None,
        reference_limits: ReferenceLimits | None = None,
        stop_early: bool = True,
    ) -> None:
        super().__init__()
        if architecture is None:
            architecture, lms = from_parts(layers or (), aggregator)
            pool = Pool.from_lms(lms) if lms else pool
        elif layers is not None or aggregator is not None:
            raise ArchitectureError("Give `architecture`, or `layers` and `aggregator`, not both.")
        if pool is None:
            raise ArchitectureError("`pool` must be given with an architecture of names.")
        pool = pool if isinstance(pool, Pool) else Pool.from_lms(pool)
        architecture = seated(architecture, pool, module)
        self.signature: Any = usable_signature(signature)
        limits = reference_limits or ReferenceLimits()
        if adapter is None and is_for_plain_chat(self.signature, module, pool):
            adapter = PlainChat()
        self.rules = Rules(adapter, normalise, quorum, deadline_seconds, limits, stop_early)
        self.architecture, self.pool, self._module = architecture, pool, module
        self.layers = [
            Layer([module(self._proposal(depth)) for _ in names])
            for depth, names in enumerate(architecture.layers)
        ]
        self.aggregator = self._make_aggregator(module)
        self.analyst = self._make_analyst()
        self._former_seats: tuple[str, ...] = ()
        mark_seats(self)

    @classmethod
    def in_place_of(
        cls,
        program: Any,
        predictor: str,
        *,
        pool: Pool,
        architecture: Architecture | str | None = None,
        **options: Any,
    ) -> Any:
        """Return a copy of a DSPy program in which a mixture replaces one of its predictors.

        The mixture answers the predictor's signature; its first proposers get the predictor's
        demos. The predictor's LM and its settings are ignored, as the agents are those of the pool.

        Args:
            program: Any DSPy program; it is not changed.
            predictor: Path of a ``dspy.Predict`` or ``dspy.ChainOfThought`` in it.
            pool: The agents.
            architecture: The agents of every seat; default: the first agent of the pool alone.
            options: Further arguments of the mixture, such as ``adapter``.

        Raises:
            ArchitectureError: If there is no such predictor; the message lists the existing paths.
        """
        replaced = ReplacedPredictor.at(program, predictor)
        first = Architecture.single(next(iter(pool)))
        settings = {"module": replaced, **options}
        mixture = cls(replaced.signature, architecture or first, pool=pool, **settings)
        # deepcopy replaces an object in the memo, wherever it occurs, instead of copying it.
        return deepcopy(program, {id(replaced.module): mixture})

    def with_architecture(self, architecture: Architecture) -> MixtureOfAgents:
        """Return a mixture with the same options and another architecture, with new prompts."""
        rules: dict[str, Any] = {f.name: getattr(self.rules, f.name) for f in fields(self.rules)}
        mixture = MixtureOfAgents(
            self.signature, architecture, pool=self.pool, module=self._module, **rules
        )
        mixture.are_proposers_frozen = self.are_proposers_frozen
        seats = [name for name, _ in all_predictors(self)]
        mixture._former_seats = tuple(dict.fromkeys((*self._former_seats, *seats)))
        return mixture

    def replace_seats(self, other: MixtureOfAgents) -> None:
        """Take over architecture, seats and prompts of a result of ``with_architecture``."""
        self.architecture = other.architecture
        self.layers, self.aggregator, self.analyst = other.layers, other.aggregator, other.analyst
        self._former_seats = other._former_seats

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents of the architecture, sorted."""
        return self.architecture.agents

    @property
    def writer(self) -> Any:
        """The module that writes the answer; None if the answer is picked from the responses."""
        return self.aggregator if self.architecture.combine in ("synthesize", "fuse") else None

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return the entries of DSPy's states; only the first can tell which others one lacks."""
        seats: list[tuple[str, Any]] = super().named_parameters()
        former = former_seats([name for name, _ in seats], self._former_seats)
        first = ArchitectureState(self, [*dict(seats), *dict(former)])
        return [("architecture", first), *seats, *former]

    def load_state(self, state: Any, *, allow_unsafe_lm_state: bool = False) -> None:
        """Load the architecture, prompts and demos of a state that ``dump_state`` returned.

        Raises:
            ArchitectureError: If the state is of no mixture, or of one with other modules.
            PoolError: If the pool lacks an agent.
        """
        if "architecture" not in state:
            raise ArchitectureError("The state of a mixture must have an entry `architecture`.")
        ArchitectureState(self).load_state(state["architecture"])

    @property
    def are_proposers_frozen(self) -> bool:
        """True if DSPy's optimizers see and change only the aggregator; may be set.

        An optimizer returns a copy, so set it to False there to unfreeze the proposers.
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
        if self.architecture.combine in ("select", "knockout"):
            return self._about_references(ranker)
        if self.architecture.combine == "fuse":
            return module(with_references(self.signature, prompt=FUSE))
        if (prompt := self.architecture.prompt) is None:
            return module(self._proposal(self.architecture.depth))
        return module(with_references(self.signature, name=prompt))

    def _make_analyst(self) -> Any:
        return self._about_references(analyst) if self.architecture.combine == "fuse" else None

    def _about_references(self, make: Callable[[Any], Any]) -> Any:
        """Return a predictor for the signature that ``make`` derives by adding references.

        Raises:
            ArchitectureError: If an input has the name of an added field.
        """
        signature = make(self.signature)
        (name,) = signature.output_fields
        if name in self.signature.input_fields:
            raise ArchitectureError(
                f"The signature's input {name!r} must be renamed: {self.architecture.combine} has "
                "an output of that name."
            )
        return dspy.Predict(signature)

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Yield the next questions until there is an answer, without asking them."""
        return self.planner.plan(inputs)

    @property
    def planner(self) -> Planner:
        """The planner of answers, with the architecture and the present modules of the seats."""
        proposers = [layer.proposers for layer in self.layers]
        outputs = tuple(self.signature.output_fields)
        return Planner(
            self.architecture,
            proposers,
            self.aggregator,
            outputs,
            self.pool,
            self.rules,
            self.analyst,
        )

    def save(
        self, path: Path | str, save_program: bool = False, modules_to_serialize: Any = None
    ) -> None:
        """Write the mixture to a ``.json`` file that ``load`` reads: no endpoint, key or code.

        ``save_program=True``, or a ``.pkl`` file, gives DSPy's pickle of the program, or of its
        state. It holds no endpoint and no key either, but a person who can change the file can run
        code on the machine that loads it.

        Raises:
            ArchitectureError: If the mixture cannot be written, or ``path`` ends differently.
        """
        suffix = Path(path).suffix
        if save_program or suffix == ".pkl":
            super().save(path, save_program, modules_to_serialize)
        elif suffix == ".json":
            write_program(self, Path(path))
        else:
            raise ArchitectureError(
                f"`path` must end with .json or .pkl, or name a folder with `save_program=True`, "
                f"but got {str(path)!r}."
            )

    @classmethod
    def _from_file(
        cls, path: Path | str, *, pool: Pool, signature: type[dspy.Signature] | None = None
    ) -> MixtureOfAgents:
        """Return the mixture from a file written by ``save``; see ``load_program``."""
        mixture: MixtureOfAgents = load_program(Path(path), cls, pool=pool, signature=signature)
        return mixture

    def _restore(self, path: Path | str, **options: Any) -> None:
        """Load the architecture, prompts and demos of a file written by ``save`` or DSPy.

        Called on the class, ``MixtureOfAgents.load(path, pool=...)``, it builds the mixture from a
        file written by ``save``.

        Raises:
            ArchitectureError: If the file cannot be read, or has another signature or module.
            PoolError: If the pool lacks an agent of the file's architecture.
        """
        if is_dspy_state(Path(path)):
            super().load(path, **options)
        else:
            restore_program(self, Path(path))

    load: Any = _ClassOrInstanceMethod("_from_file", "_restore")

    def get_lm(self) -> Any:
        """Return the LM of the last agent, which DSPy's wrappers copy to vary a mixture."""
        architecture = self.architecture
        return self.pool.lm(architecture.aggregator or architecture.layers[-1][0])

    @property
    def adapter(self) -> Any:
        """The DSPy adapter of every seat; None is that of the settings."""
        return self.rules.adapter

    @property
    def normalise(self) -> str:
        """Name of the comparison of answers in a vote."""
        return self.rules.normalise

    @property
    def quorum(self) -> int:
        """Fewest responses of a complete layer."""
        return self.rules.quorum

"""Whose prompt is optimised: the aggregator, or the readers of one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._prompt import Prompt
from moa_dspy.plan import Planner


@dataclass(frozen=True, slots=True)
class Target:
    """The seats of a mixture that share the prompt in question.

    Attributes:
        program: The mixture.
        depth: How many layers answer before these seats read.
        modules: The modules in the seats; all have one prompt.
        planners: For every different agent in the seats, what plans its answer alone.
    """

    program: MixtureOfAgents
    depth: int
    modules: tuple[Any, ...]
    planners: tuple[Planner, ...]

    @classmethod
    def of(cls, program: Any, layer: int | None) -> Target:
        """Find the seats.

        Raises:
            StudyError: If ``program`` is no mixture.
            ArchitectureError: If nobody in it reads, or not there.
        """
        if not isinstance(program, MixtureOfAgents):
            kind = type(program).__name__
            raise StudyError(f"`program` must be a MixtureOfAgents, but is a {kind}.")
        architecture = program.architecture
        if not architecture.layers:
            raise ArchitectureError(
                f"`program` is the single agent {architecture}, which reads no references; it must "
                "have a layer, such as a + b > synthesize(c)."
            )
        if layer is None:
            return cls._last(program)
        return cls._readers(program, layer)

    @classmethod
    def _last(cls, program: MixtureOfAgents) -> Target:
        architecture = program.architecture
        if not architecture.aggregator_calls_a_model:
            raise ArchitectureError(
                f"The last step of {architecture} asks no model, so it has no prompt; it must be "
                "synthesize(NAME) or select(NAME)."
            )
        planner = _planner(program, architecture, program.aggregator)
        return cls(program, architecture.depth, (program.aggregator,), (planner,))

    @classmethod
    def _readers(cls, program: MixtureOfAgents, layer: int) -> Target:
        layers = program.architecture.layers
        if isinstance(layer, bool) or layer not in range(2, len(layers) + 1):
            readers = ", ".join(str(n) for n in range(2, len(layers) + 1)) or "none here"
            raise ArchitectureError(
                f"`layer` must be one that reads references ({readers}), or None for the last "
                f"step, but got {layer!r}; {program.architecture} has {len(layers)}."
            )
        modules = tuple(program.layers[layer - 1].proposers)
        # A reader alone is the aggregator of the layers before it: the very same messages.
        alone = [
            Architecture(layers[: layer - 1], name) for name in dict.fromkeys(layers[-1 + layer])
        ]
        return cls(
            program, layer - 1, modules, tuple(_planner(program, a, modules[0]) for a in alone)
        )

    @property
    def agents(self) -> tuple[str, ...]:
        """Who sits there, each once."""
        return tuple(str(planner.architecture.aggregator) for planner in self.planners)

    @property
    def prompt(self) -> Prompt:
        """The prompt as it is."""
        return Prompt.of(self.modules[0])

    def with_prompt(self, prompt: Prompt) -> MixtureOfAgents:
        """Return a copy of the mixture with another prompt in these seats."""
        made: MixtureOfAgents = self.program.deepcopy()
        is_last = self.modules[0] is self.program.aggregator
        modules = [made.aggregator] if is_last else made.layers[self.depth].proposers
        for module in modules:
            prompt.put_into(module)
        return made


def _planner(program: MixtureOfAgents, architecture: Architecture, module: Any) -> Planner:
    # The optimizer's own prompts may need another adapter than the one in force here.
    adapter = program.adapter or dspy.settings.adapter
    return Planner(
        architecture,
        [layer.proposers for layer in program.layers[: architecture.depth]],
        module,
        tuple(program.signature.output_fields),
        program.pool,
        replace(program.rules, adapter=adapter),
    )

"""What the last step of a mixture is: a plan that may ask an agent, and ends with one response."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from moa_dspy.references import Cut
from moa_dspy.response import Response

Normalise: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Question:
    """A seat that is to be asked; equal nodes are one computation per example.

    Attributes:
        node: Name of the computation: who is asked, as what, having read which nodes.
        agent: Name in the pool.
        sample: Index of the independent sample.
        module: The DSPy module that asks.
        inputs: Its keyword arguments.
        cuts: What had to be cut from the references in ``inputs``.
        deadline_seconds: After how long an answer is too late; None is never.
        is_final: Whether the reply is the mixture's own answer, which may be streamed.
    """

    node: str
    agent: str
    sample: int
    module: Any
    inputs: Mapping[str, Any]
    cuts: tuple[Cut, ...] = ()
    deadline_seconds: float | None = None
    is_final: bool = False


class Read(Protocol):
    """Makes responses readable for an agent: guarded, and cut to what it can take."""

    def __call__(
        self,
        agent: str,
        module: Any,
        inputs: Mapping[str, Any],
        responses: Sequence[Response],
        /,
    ) -> tuple[Mapping[str, Any], tuple[Cut, ...]]:
        """Return the inputs with the references added, and what was cut from these."""
        ...


Steps: TypeAlias = Generator[list[Question], list[Response], Response]
"""Yields questions that may be asked at once, is sent their responses, returns the final one."""


def node_name(role: str, agent: str, sample: int = 0, *, parents: Sequence[str] = ()) -> str:
    """Return the name of a computation, which holds all that it depends on."""
    return f"{role}:{agent}#{sample}({','.join(parents)})"


class Combine(Protocol):
    """Turns the last layer's responses into one.

    ``responses`` holds at least one; every one has an answer; they stand in the
    architecture's order. The result is one of them verbatim, or a new one of the
    aggregator. Whoever is asked may fail, and then the result says so.
    """

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Plan the last step."""
        ...

"""What a search varies: the one mixture of a program, which may be the program itself."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from moa_dspy.architecture import Architecture
from moa_dspy.errors import LayerFailedError, StudyError, ours
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.asking import Asking, place_of
from moa_dspy.prediction import MixturePrediction

if TYPE_CHECKING:
    from moa_dspy.optimize.prompts import PromptBook


@dataclass(frozen=True, slots=True)
class Student:
    """A program and the mixture in it.

    Attributes:
        program: Any DSPy program.
        mixture: The only mixture that it holds.
        book: The prompts that an architecture may name; None has none.
    """

    program: Any
    mixture: MixtureOfAgents
    book: PromptBook | None = None

    @classmethod
    def of(cls, program: Any, book: PromptBook | None = None) -> Student:
        """Find the mixture of ``program``.

        Raises:
            StudyError: If there is none, or more than one, naming where they are.
        """
        found = mixtures_of(program)
        if len(found) != 1:
            where = f" at {', '.join(found)}" if found else ""
            raise StudyError(
                "`student` must be a MixtureOfAgents or hold one (or have one signature), but is "
                f"a {type(program).__name__} with {len(found) or 'none'}{where}."
            )
        (mixture,) = found.values()
        return cls(program, mixture, book)

    def with_book(self, book: PromptBook) -> Student:
        """Return the student with other prompts to name."""
        return replace(self, book=book)

    def with_architecture(self, architecture: Architecture) -> Any:
        """Return a copy of the program that has the architecture; its seats' prompts are new.

        A prompt that the architecture names is in the aggregator, and named no more: the
        program can be saved and used by who has no book.

        Raises:
            StudyError: If the prompt is unknown.
        """
        made = self._made(architecture)
        made.architecture = replace(architecture, prompt=None)
        return self._copy(made)

    def to_measure(self, architecture: Architecture) -> Student:
        """Return the program with the architecture, as ``answer`` can run it.

        Raises:
            StudyError: If the architecture names an unknown prompt.
        """
        made = self._made(architecture)
        is_all = self.program is self.mixture
        return Student(made if is_all else self._copy(_Measured(made)), made, self.book)

    def answer(self, inputs: Mapping[str, Any], asking: Asking) -> Any:
        """Return the prediction of what ``to_measure`` returned; its seats ask by ``asking``.

        Raises:
            LayerFailedError: If a model's failure leaves the program without a prediction.
            MoaError: If the reason is not the model: budget, replay, store, pool.
            StudyError: If the program itself fails.
        """
        if self.program is self.mixture:
            return MixturePrediction.of(asking.answer(self.mixture, inputs))
        try:
            with dspy.context(moa_dspy_asking=asking):
                return self.program(**inputs)
        except Exception as error:
            if cause := ours(error):
                raise cause from None
            if isinstance(error, LayerFailedError):
                raise
            if isinstance(error, (AdapterParseError, LMError)):
                raise LayerFailedError(f"{type(error).__name__}: {error}") from error
            raise StudyError(
                f"The program raised {type(error).__name__} on example {asking.example!r}: {error}"
            ) from error

    def _made(self, architecture: Architecture) -> MixtureOfAgents:
        made = self.mixture.with_architecture(architecture)
        if (name := architecture.prompt) is None:
            return made
        if self.book is None:
            raise StudyError(f"Prompt {name!r} of {architecture} is unknown: there are none.")
        self.book.put_into(made.aggregator, name)
        return made

    def _copy(self, made: Any) -> Any:
        try:
            # An object that is in the memo is not copied but replaced, wherever it stands.
            return copy.deepcopy(self.program, {id(self.mixture): made})
        except Exception as error:
            raise StudyError(
                f"`student` cannot be copied: {error}. What cannot be, such as a connection, "
                "needs a `__deepcopy__` that returns itself."
            ) from error


class _Measured(dspy.Module):
    """Stands where the mixture of a measured program stood."""

    def __init__(self, mixture: MixtureOfAgents) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, **inputs: Any) -> Any:
        # DSPy hands its settings on to threads that it starts; a context variable is not.
        asking: Asking = dspy.settings.moa_dspy_asking
        return MixturePrediction.of(asking.answer(self.mixture, inputs, place=place_of(inputs)))

    async def aforward(self, **inputs: Any) -> Any:
        return await asyncio.to_thread(self, **inputs)


def mixtures_of(program: Any) -> dict[str, MixtureOfAgents]:
    """Return the mixtures that ``program`` holds, by path, as DSPy finds predictors.

    They are looked for in modules, and in lists, tuples and dicts of modules; not in the
    programs that an optimizer listed on its result, nor in the seats of a mixture.
    """
    return {path: one for path, one in _walk(program, "self", set())}


def _walk(module: Any, path: str, seen: set[int]) -> Iterator[tuple[str, MixtureOfAgents]]:
    if id(module) in seen or not isinstance(module, dspy.Module):
        return
    seen.add(id(module))
    if isinstance(module, MixtureOfAgents):
        yield path, module
        return
    for name, value in vars(module).items():
        inner: list[tuple[str, Any]] = [("", value)]
        if isinstance(value, (list, tuple)):
            inner = [(f"[{n}]", one) for n, one in enumerate(value)]
        elif isinstance(value, dict):
            inner = [(f"[{key!r}]", one) for key, one in value.items()]
        for where, one in inner:
            yield from _walk(one, f"{path}.{name}{where}", seen)

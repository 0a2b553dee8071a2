"""The module that an optimizer compiles: the aggregator alone, with stored references."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import CallScope, call_scope, current_scope, entered
from moa_dspy.calls.timeout import in_threads
from moa_dspy.errors import ArchitectureError, DataError, LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Student, mixtures_of
from moa_dspy.optimize.nodes import MeasuredProgram, NodeCache, NodeRunner
from moa_dspy.optimize.prompts.feedback import (
    NoAnswer,
    ReferenceFeedback,
    StoredRow,
    StoredRows,
    place_of_row,
)
from moa_dspy.optimize.prompts.prompt import Prompt
from moa_dspy.prediction import Question, Response
from moa_dspy.seats import Seats, without_lms
from moa_dspy.signatures import REFERENCES


@dataclass(frozen=True, slots=True)
class Target:
    """The seats of a program's mixture whose prompt is tuned; they share it.

    Attributes:
        student: The program and its mixture.
        modules: The modules in the seats; all have the same prompt.
        readers: For every different agent in the seats, the mixture of these layers with the agent
            as aggregator.
    """

    student: Student
    modules: tuple[Any, ...]
    readers: tuple[MixtureOfAgents, ...]

    @classmethod
    def of(cls, program: Any, layer: int | None) -> Target:
        """Find the seats.

        Raises:
            StudyError: If ``program`` holds no mixture, or several.
            ArchitectureError: If no agent in it reads references, or not in ``layer``.
        """
        if not mixtures_of(program, with_frozen=True):
            kind = type(program).__name__
            raise StudyError(f"`program` must be a MixtureOfAgents or hold one, but is a {kind}.")
        student = Student.of(program)
        mixture, architecture = student.mixture, student.mixture.architecture
        _check_reads(architecture, layer)
        if layer is None:
            reader = _reader(mixture, architecture, mixture.aggregator)
            return cls(student, (mixture.aggregator,), (reader,))
        before, names = architecture.layers[: layer - 1], architecture.layers[layer - 1]
        modules = tuple(mixture.layers[layer - 1].proposers)
        # As aggregator of the layers before it, a reader gets the same messages.
        alone = [Architecture(before, name) for name in dict.fromkeys(names)]
        readers = tuple(_reader(mixture, architecture, modules[0]) for architecture in alone)
        return cls(student, modules, readers)

    @property
    def mixture(self) -> MixtureOfAgents:
        """The mixture of the program."""
        return self.student.mixture

    @property
    def is_alone(self) -> bool:
        """True if the program is the mixture itself, so that rows are its questions."""
        return self.student.program is self.mixture

    def with_prompt(self, prompt: Prompt | None) -> FixedStudent:
        """Return a copy of the program with another prompt in these seats; None is their own."""
        made: MixtureOfAgents = self.mixture.deepcopy()
        is_last = self.modules[0] is self.mixture.aggregator
        n_before = self.readers[0].architecture.depth
        modules = [made.aggregator] if is_last else made.layers[n_before].proposers
        if prompt is not None:
            for module in modules:
                prompt.put_into(module)
        return FixedStudent(self.student.with_module(made), made)


@dataclass(frozen=True, slots=True)
class FixedStudent(Student):
    """A program that is measured as it is, prompts and demos included."""

    def mixture_with(self, architecture: Architecture) -> MixtureOfAgents:
        """Return the mixture as it is, whatever the architecture."""
        return self.mixture


def _check_reads(architecture: Architecture, layer: int | None) -> None:
    readers = range(2, len(architecture.layers) + 1)
    if not architecture.layers:
        raise ArchitectureError(
            f"`program` is the single agent {architecture}, which reads no references; it must "
            "have a layer, such as a + b > synthesize(c)."
        )
    if layer is None and not architecture.aggregator_calls_a_model:
        raise ArchitectureError(
            f"The last step of {architecture} asks no model, so it has no prompt; it must be "
            "synthesize(NAME), select(NAME), fuse(NAME) or knockout(NAME)."
        )
    if layer is not None and (isinstance(layer, bool) or layer not in readers):
        raise ArchitectureError(
            "`layer` must be one that reads references "
            f"({', '.join(map(str, readers)) or 'none here'}), or None for the last step, but got "
            f"{layer!r}; {architecture} has {len(architecture.layers)}."
        )


def _reader(mixture: MixtureOfAgents, architecture: Architecture, module: Any) -> MixtureOfAgents:
    """Return the mixture with fewer layers and another last step; it shares all modules."""
    made = copy.copy(mixture)
    made.architecture, made.aggregator = architecture, module
    made.layers = mixture.layers[: architecture.depth]
    # Optimizers may set another adapter for their own prompts.
    made.rules = replace(mixture.rules, adapter=mixture.adapter or dspy.settings.adapter)
    return made


@dataclass(slots=True)
class _ReferenceRunner(NodeRunner):
    """Asks the layers before a target, and keeps the first question to the target.

    The question ends the run, as a layer without answers does.
    """

    depth: int = 0
    question: Question | None = None

    def ask(
        self, questions: Sequence[Question], seats: Seats, *, place: object = None
    ) -> list[Response]:
        if len(self._rounds) == self.depth:
            self.question = self.question or questions[0]
            raise LayerFailedError
        return NodeRunner.ask(self, questions, seats, place=place)

    def stored(
        self, row: dspy.Example, number: int, order: Sequence[int], failure: str | None
    ) -> StoredRow:
        """Return the row with the references that the target reads, in this order."""
        if self.question is None:
            # A larger program may answer a row without its mixture; then there are no references.
            return StoredRow(row, number, failure=failure)
        answered = [response for n in order if (response := self._rounds[-1][n]).has_answer]
        left_out = {cut.reference for cut in self.question.cuts if not cut.kept_tokens}
        read = (response for n, response in enumerate(answered, start=1) if n not in left_out)
        return StoredRow(row, number, tuple(read), tuple(self.question.inputs[REFERENCES]))


def measured_references(
    target: Target, rows: Sequence[dspy.Example], cache: NodeCache, *, num_threads: int
) -> StoredRows:
    """Return the references of each row; known answers of the layers before are not asked again.

    Raises:
        MoaError: If a call cannot be made for a reason that is not the model's.
        DataError: If inputs are neither JSON nor pydantic values, so that rows cannot be matched.
    """
    places = [place_of_row(dict(row.inputs())) for row in rows]
    for row, place in zip(rows, places, strict=True):
        if type(place) is object:
            kinds = {name: type(value).__name__ for name, value in row.inputs().items()}
            raise DataError(
                f"The inputs of row {row.id!r} must be JSON or pydantic values, but are {kinds}."
            )
    program = MeasuredProgram(target.student, target.readers[0])
    architecture = program.mixture.architecture

    def read(numbered: tuple[int, dspy.Example]) -> StoredRow:
        number, row = numbered
        runner, failure = _ReferenceRunner(cache, row.id, depth=architecture.depth), None
        with call_scope(example=row.id):
            try:
                program.answer(dict(row.inputs()), runner)
            except LayerFailedError as error:
                failure = str(error)
        return runner.stored(row, number, architecture.reading, failure)

    found = in_threads(read, list(enumerate(rows)), num_threads=num_threads)
    return dict(zip(places, found, strict=True))


@dataclass(frozen=True, slots=True)
class ReferenceReader:
    """Asks an agent with stored references, by the messages that the mixture would send.

    Attributes:
        target: The seats whose prompt is tuned.
        feedback: Has the rows with their references, and keeps the error that ends the tuning.
        cache: Has the responses of the layers before.
        scope: The caller's scope, for threads of the optimizer, which copy no context.
    """

    target: Target
    feedback: ReferenceFeedback
    cache: NodeCache
    scope: CallScope = field(default_factory=current_scope)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceReader:
        return self

    def answer(self, module: Any, inputs: Mapping[str, Any]) -> Any:
        """Answer one row; a model that fails gives a ``NoAnswer``.

        Raises:
            MoaError: If a call cannot be made: budget, replay, store; and at every call after that.
            StudyError: If the references of this row are not stored.
        """
        with self.feedback.stop.watched(), entered(self.scope):
            found = self.feedback.rows.get(place_of_row(inputs))
            if found is None:
                raise StudyError(
                    "An optimizer must ask its student about the rows that it was given, whose "
                    "references are stored, but asked about another one."
                )
            # Several readers take turns.
            mixture = copy.copy(self.target.readers[found.number % len(self.target.readers)])
            mixture.aggregator = module
            # A cache of its own: the same node has another answer under the next prompt.
            runner = NodeRunner(self.cache.child(), found.row.id)
            program = MeasuredProgram(self.target.student, mixture)
            try:
                with call_scope(example=found.row.id):
                    return program.answer(dict(found.row.inputs()), runner)
            except LayerFailedError as error:
                return NoAnswer(str(error))


class AggregatorStudent(dspy.Module):
    """Reads a question and other models' responses to it (references), and answers."""

    def __init__(self, aggregator: Any, reading: ReferenceReader) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.reading = reading

    def forward(self, **inputs: Any) -> Any:
        """Answer one row whose references are stored."""
        return self.reading.answer(self.aggregator, inputs)

    def get_lm(self) -> Any:
        """Return the LM of the agent, even if an optimizer has reset it."""
        target = self.reading.target
        return target.mixture.pool.lm(str(target.readers[0].architecture.aggregator))

    def deepcopy(self) -> AggregatorStudent:
        """Copy, with signatures of its own: InferRules writes into them."""
        made: AggregatorStudent = super().deepcopy()
        for predictor in made.predictors():
            signature: Any = predictor.signature
            predictor.signature = signature.with_instructions(signature.instructions)
        return made


def make_student(reading: ReferenceReader) -> AggregatorStudent:
    """Return a student with the target's own prompt; the mixture's modules are not changed."""
    module = reading.target.modules[0]
    lms = [predictor.lm for predictor in module.predictors() if predictor.lm is not None]
    return AggregatorStudent(without_lms(module, lms), reading).deepcopy()

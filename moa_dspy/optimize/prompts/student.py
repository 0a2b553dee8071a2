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
from moa_dspy.errors import (
    ArchitectureError,
    DataError,
    LayerFailedError,
    StudyError,
)
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Student, mixtures_of
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import MeasuredProgram, NodeCache, NodeRunner
from moa_dspy.optimize.prompts.feedback import (
    NoAnswer,
    ReferenceFeedback,
    Stop,
    StoredRow,
    StoredRows,
    place_of_row,
)
from moa_dspy.prediction import Question, Response
from moa_dspy.seats import Seats, without_lms
from moa_dspy.signatures import REFERENCES


@dataclass(frozen=True, slots=True)
class Target:
    """The seats of a program's mixture whose prompt is tuned; they share it.

    Attributes:
        student: The program and its mixture.
        depth: Number of layers that these seats read.
        modules: The modules in the seats; all have the same prompt.
        readers: For every different agent in the seats, the mixture of these layers with the agent
            as aggregator.
    """

    student: Student
    depth: int
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
        if not architecture.layers:
            raise ArchitectureError(
                f"`program` is the single agent {architecture}, which reads no references; it must "
                "have a layer, such as a + b > synthesize(c)."
            )
        if layer is not None:
            return cls._readers(student, layer)
        if not architecture.aggregator_calls_a_model:
            raise ArchitectureError(
                f"The last step of {architecture} asks no model, so it has no prompt; it must be "
                "synthesize(NAME), select(NAME), fuse(NAME) or knockout(NAME)."
            )
        reader = _reader(mixture, architecture, mixture.aggregator)
        return cls(student, architecture.depth, (mixture.aggregator,), (reader,))

    @classmethod
    def _readers(cls, student: Student, layer: int) -> Target:
        mixture = student.mixture
        layers = mixture.architecture.layers
        if isinstance(layer, bool) or layer not in range(2, len(layers) + 1):
            readers = ", ".join(str(n) for n in range(2, len(layers) + 1)) or "none here"
            raise ArchitectureError(
                f"`layer` must be one that reads references ({readers}), or None for the last "
                f"step, but got {layer!r}; {mixture.architecture} has {len(layers)}."
            )
        modules = tuple(mixture.layers[layer - 1].proposers)
        # As aggregator of the layers before it, a reader gets the same messages.
        alone = [
            Architecture(layers[: layer - 1], name) for name in dict.fromkeys(layers[layer - 1])
        ]
        made = tuple(_reader(mixture, one, modules[0]) for one in alone)
        return cls(student, layer - 1, modules, made)

    @property
    def mixture(self) -> MixtureOfAgents:
        """The mixture of the program."""
        return self.student.mixture

    @property
    def is_alone(self) -> bool:
        """True if the program is the mixture itself, so that rows are its questions."""
        return self.student.program is self.mixture

    def lm(self) -> Any:
        """Return the LM of the first agent in these seats."""
        return self.mixture.pool.lm(str(self.readers[0].architecture.aggregator))

    def copy(self) -> tuple[Student, list[Any]]:
        """Return a copy of the program, and the modules in its seats of this target."""
        made: MixtureOfAgents = self.mixture.deepcopy()
        is_last = self.modules[0] is self.mixture.aggregator
        modules = [made.aggregator] if is_last else made.layers[self.depth].proposers
        return replace(self.student, program=self.student.with_module(made), mixture=made), modules


def _reader(mixture: MixtureOfAgents, architecture: Architecture, module: Any) -> MixtureOfAgents:
    """Return the mixture with fewer layers and another last step; it shares all modules."""
    made = copy.copy(mixture)
    made.architecture, made.aggregator = architecture, module
    made.layers = mixture.layers[: architecture.depth]
    # Optimizers may set another adapter for their own prompts.
    made.rules = replace(mixture.rules, adapter=mixture.adapter or dspy.settings.adapter)
    return made


class _ReferencesReadError(LayerFailedError):
    """Ends the run of a program once the references of the target are known."""


@dataclass(slots=True)
class _ReferenceRunner(NodeRunner):
    """Asks the layers before a target, and keeps the first question to the target."""

    depth: int = 0
    responses: Sequence[Response] = ()
    question: Question | None = None

    def ask(
        self, questions: Sequence[Question], seats: Seats, *, place: object = None
    ) -> list[Response]:
        if self.depth == 0:
            self.question = questions[0]
            raise _ReferencesReadError
        self.depth -= 1
        found = NodeRunner.ask(self, questions, seats, place=place)
        self.responses = found
        return found


def measured_references(
    target: Target, rows: Sequence[dspy.Example], cache: NodeCache, *, num_threads: int
) -> StoredRows:
    """Return the references of each row; known answers of the layers before are not asked again.

    Raises:
        MoaError: If a call cannot be made for a reason that is not the model's.
        DataError: If inputs are neither JSON nor pydantic values, so that rows cannot be matched.
    """
    places = [place_of_row(row.inputs().toDict()) for row in rows]
    for row, place in zip(rows, places, strict=True):
        if type(place) is object:
            raise DataError(f"The inputs of row {row.id!r} must be JSON or pydantic values.")
    program = MeasuredProgram(target.student, target.readers[0])

    def read(numbered: tuple[int, dspy.Example]) -> StoredRow:
        runner = _ReferenceRunner(cache, numbered[1].id, depth=target.depth)
        return _read(program, runner, *numbered)

    found = in_threads(read, list(enumerate(rows)), num_threads=num_threads)
    return dict(zip(places, found, strict=True))


def _read(
    program: MeasuredProgram, runner: _ReferenceRunner, number: int, row: dspy.Example
) -> StoredRow:
    failure = None
    with call_scope(example=row.id):
        try:
            program.answer(row.inputs().toDict(), runner)
        except LayerFailedError as error:
            failure = str(error)
    if runner.question is None:
        # A larger program may answer a row without its mixture; then there are no references.
        return StoredRow(row, number, failure=failure)
    order, responses = program.mixture.architecture.reading, runner.responses
    answered = [one for n in order if (one := responses[n]).has_answer]
    left_out = {cut.reference for cut in runner.question.cuts if not cut.kept_tokens}
    read = tuple(one for n, one in enumerate(answered, start=1) if n not in left_out)
    return StoredRow(row, number, read, tuple(runner.question.inputs[REFERENCES]))


@dataclass(frozen=True, slots=True)
class ReferenceReader:
    """Asks an agent with stored references, by the messages that the mixture would send.

    Attributes:
        target: The seats whose prompt is tuned.
        rows: The rows with their references.
        cache: Has the responses of the layers before.
        stop: Keeps the first error that ends the tuning.
        scope: The caller's scope, for threads of the optimizer, which copy no context.
    """

    target: Target
    rows: StoredRows
    cache: NodeCache
    stop: Stop = field(default_factory=Stop)
    scope: CallScope = field(default_factory=current_scope)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceReader:
        return self

    def feedback(self, metric: CheckedMetric) -> ReferenceFeedback:
        """Return the metric with feedback on the references."""
        mixture, is_alone = self.target.mixture, self.target.is_alone
        outputs = tuple(mixture.signature.output_fields)
        return ReferenceFeedback(metric, self.rows, outputs, mixture.normalise, is_alone, self.stop)

    def answer(self, module: Any, inputs: Mapping[str, Any]) -> Any:
        """Answer one row; a model that fails gives a ``NoAnswer``.

        Raises:
            MoaError: If a call cannot be made: budget, replay, store; and at every call after that.
            StudyError: If the references of this row are not stored.
        """
        with self.stop.watched(), entered(self.scope):
            found = self.rows.get(place_of_row(inputs))
            if found is None:
                raise StudyError("The student answers only rows whose references are stored.")
            # Several readers take turns.
            mixture = copy.copy(self.target.readers[found.number % len(self.target.readers)])
            mixture.aggregator = module
            # A cache of its own: the same node has another answer under the next prompt.
            runner = NodeRunner(self.cache.child(), found.row.id)
            program = MeasuredProgram(self.target.student, mixture)
            try:
                with call_scope(example=found.row.id):
                    return program.answer(found.row.inputs().toDict(), runner)
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
        return self.reading.target.lm()

    def deepcopy(self) -> Any:
        """Copy, with signatures of its own: InferRules writes into them."""
        made: Any = super().deepcopy()
        for predictor in made.predictors():
            signature = predictor.signature
            predictor.signature = signature.with_instructions(signature.instructions)
        return made


def make_student(reading: ReferenceReader, *, with_lm: bool = False) -> AggregatorStudent:
    """Return a student with the target's own prompt; the mixture's modules are not changed.

    Args:
        reading: Asks the agents.
        with_lm: Whether its predictors have the agent's LM, which BetterTogether needs.
    """
    module = reading.target.modules[0]
    leaves = module.predictors() if hasattr(module, "predictors") else []
    lms = [leaf.lm for leaf in leaves if getattr(leaf, "lm", None) is not None]
    plain = without_lms(module, lms) if lms else copy.deepcopy(module)
    student: AggregatorStudent = AggregatorStudent(plain, reading).deepcopy()
    if with_lm:
        student.set_lm(student.get_lm())
    return student

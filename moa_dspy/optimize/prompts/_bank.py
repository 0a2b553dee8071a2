"""References that were computed once, row by row, and are read again at no call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy

from moa_dspy.aggregators import Question
from moa_dspy.calls import call_scope
from moa_dspy.errors import DataError, LayerFailedError, StudyError
from moa_dspy.optimize.asking import place_of
from moa_dspy.optimize.prompts._tally import Tally, seat
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.plan import Plan
from moa_dspy.response import Answer, Response
from moa_dspy.signatures import REFERENCES

Rounds: TypeAlias = tuple[tuple[Response, ...], ...]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row and what the layers before the target answered to it.

    Attributes:
        row: The user's own example, with an id.
        number: Its place among the rows, from 0.
        rounds: Responses per layer, failed ones included.
        references: What the target reads of the last of them: guarded, and cut if need be.
        failure: Why there is nothing to read; None when there is.
    """

    row: dspy.Example
    number: int
    rounds: Rounds
    references: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def read(self) -> tuple[Response, ...]:
        """The responses that the target reads."""
        return tuple(response for response in self.rounds[-1] if response.has_answer)

    @property
    def example(self) -> dspy.Example:
        """The row with its references as one more input."""
        inputs = self.row.inputs().keys()
        made = self.row.copy(**{REFERENCES: list(self.references)})
        return made.with_inputs(*inputs, REFERENCES)


@dataclass(frozen=True, slots=True)
class Bank:
    """Stored rows by their inputs."""

    rows: Mapping[object, StoredRow]

    def __deepcopy__(self, memo: dict[int, Any]) -> Bank:
        return self

    def find(self, inputs: Mapping[str, Any]) -> StoredRow | None:
        """Return the row with these inputs, or None; references among them do not count."""
        return self.rows.get(_place(inputs))


def read_references(
    target: Target, rows: Sequence[dspy.Example], tally: Tally, *, n_threads: int
) -> Bank:
    """Ask the layers before the target, each row once; what is stored costs nothing.

    Raises:
        MoaError: If a call cannot be made for a reason that is not the model's.
        DataError: If inputs cannot be told apart, as they are neither JSON nor pydantic.
    """

    def read(numbered: tuple[int, dspy.Example]) -> StoredRow:
        number, row = numbered
        with call_scope(example=row.id), seat() as scope:
            try:
                return _read(target, row, number)
            finally:
                tally.add("proposers", scope.log)

    places = [_place(row.inputs().toDict()) for row in rows]
    for row, place in zip(rows, places, strict=True):
        if type(place) is object:
            raise DataError(f"The inputs of row {row.id!r} must be JSON or pydantic values.")
    return Bank(dict(zip(places, in_threads(read, list(enumerate(rows)), n_threads), strict=True)))


def _read(target: Target, row: dspy.Example, number: int) -> StoredRow:
    program, rounds = target.program, []
    plan = target.planners[0].plan(row.inputs().toDict())
    questions = next(plan)
    for _ in range(target.depth):
        rounds.append(tuple(program.seats.ask_all(questions)))
        try:
            questions = plan.send(list(rounds[-1]))
        except LayerFailedError as error:
            return StoredRow(row, number, tuple(rounds), failure=str(error))
    plan.close()
    return StoredRow(row, number, tuple(rounds), tuple(questions[0].inputs[REFERENCES]))


def continue_plan(
    plan: Plan, rounds: Rounds, ask_all: Callable[[list[Question]], list[Response]]
) -> Answer:
    """Run a plan whose first rounds of questions are answered already.

    Raises:
        LayerFailedError: If too few answered.
    """
    known = iter(rounds)
    try:
        questions = next(plan)
        while True:
            responses = next(known, None)
            questions = plan.send(ask_all(questions) if responses is None else list(responses))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def in_threads(task: Callable[[Any], Any], items: Sequence[Any], n_threads: int) -> list[Any]:
    """Return the results in order; after an error, what has not begun is not begun.

    Raises:
        Exception: The first error of a task, in the order of the items.
    """
    with ThreadPoolExecutor(n_threads) as threads:
        running = [threads.submit(copy_context().run, task, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise


def stored(bank: Bank, inputs: Mapping[str, Any]) -> StoredRow:
    """Return the row with these inputs.

    Raises:
        StudyError: If nobody computed its references.
    """
    found = bank.find(inputs)
    if found is None:
        raise StudyError("The student answers only rows whose references are stored.")
    return found


def _place(inputs: Mapping[str, Any]) -> object:
    return place_of({name: value for name, value in inputs.items() if name != REFERENCES})

"""What models once answered, as data: a pool of agents that can be asked again at no cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from moa_dspy.errors import DataError, MetricError


@dataclass(frozen=True, slots=True)
class RecordedResponses:
    """Several models' responses to the same questions, some of them graded.

    `moa_dspy.replay.recorded_pool` makes agents of it.

    Attributes:
        responses: Model -> question id -> response; None where the model gave none.
        questions: Question id -> its text; where a table has no text, the id stands for it.
        columns: Question id -> what else the questions table knows of it.
        scores: (question id, model) -> score, or preference over a baseline, in [0, 1].

    Raises:
        DataError: There is no response, one is to an unknown question, or a score is no
            number in [0, 1].
    """

    responses: Mapping[str, Mapping[str, str | None]] = field(repr=False)
    questions: Mapping[str, str] = field(repr=False)
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    scores: Mapping[tuple[str, str], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not any(self.responses.values()):
            raise DataError("A recording must hold at least one response, but got none.")
        for model, given in self.responses.items():
            if unknown := given.keys() - self.questions.keys():
                raise DataError(
                    f"{model} answers question {min(unknown)!r}, which is not among the questions."
                )
        for (name, model), score in self.scores.items():
            if not (math.isfinite(score) and 0 <= score <= 1):
                raise DataError(
                    f"The score of {model} on question {name!r} must be in [0, 1], but is {score}."
                )

    @property
    def models(self) -> tuple[str, ...]:
        """Who answered, in the table's order."""
        return tuple(self.responses)

    def examples(self, *, columns: Mapping[str, str] | None = None) -> list[dspy.Example]:
        """Every question that all models have a row for is one example, in table order.

        Args:
            columns: Our field name -> the questions table's column, for those that differ.

        Returns:
            Examples with `id`, the input `question`, and the questions table's columns.

        Raises:
            DataError: A question lacks one of the `columns`.
        """
        names = dict(columns or {})
        complete = set.intersection(*(set(given) for given in self.responses.values()))
        rows: list[dspy.Example] = []
        for name, text in self.questions.items():
            if name not in complete:
                continue
            known = dict(self.columns.get(name, {}))
            if missing := [column for column in names.values() if column not in known]:
                raise DataError(f"Question {name!r} has no column {missing[0]!r}.")
            renamed = {ours: known.pop(column) for ours, column in names.items()}
            content = {**known, **renamed, "id": name, "question": text}
            rows.append(dspy.Example(content).with_inputs("question"))
        return rows

    def with_questions(
        self, rows: Sequence[dspy.Example], *, question: str = "question"
    ) -> RecordedResponses:
        """Return the same responses to the questions as these examples word them, by id.

        For rows of another reader, which may show options or a task beside the question.

        Raises:
            DataError: No example has the id of a recorded question.
        """
        texts = {str(row.get("id", None)): str(row[question]) for row in rows}
        shared = {name: text for name, text in texts.items() if name in self.questions}
        if not shared:
            raise DataError("No example has the id of a recorded question.")
        return replace(self, questions={**self.questions, **shared})

    def metric(self, *, answer: str = "answer") -> Callable[..., float]:
        """Return a DSPy metric: the recorded score of the answer that was chosen.

        A verbatim answer of a known agent has that agent's score; any other text has the
        mean score of the models that gave it, blanks around it aside.

        Args:
            answer: The prediction's field that holds the answer.

        Raises:
            MetricError: When called: nobody gave this answer to this example, or it has no score.
        """
        by_text = self._by_text()

        def recorded_score(
            example: dspy.Example,
            prediction: dspy.Prediction,
            trace: Any = None,
            pred_name: str | None = None,
            pred_trace: Any = None,
        ) -> float:
            name, text = str(example.id), str(prediction[answer]).strip()
            scores = by_text.get((name, text), {})
            author = _author(prediction)
            if author in scores:
                return scores[author]
            if not scores:
                raise MetricError(
                    f"Example {name!r}: no score is recorded of answer {text[:60]!r}."
                )
            return sum(scores.values()) / len(scores)

        return recorded_score

    def _by_text(self) -> dict[tuple[str, str], dict[str, float]]:
        """(question id, stripped response) -> model -> its score."""
        found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for (name, model), score in self.scores.items():
            text = self.responses.get(model, {}).get(name)
            if text is not None:
                found[name, text.strip()][model] = score
        return found


def _author(prediction: dspy.Prediction) -> str:
    """The agent whose response a mixture returned; "" of any other program."""
    mixture = getattr(prediction, "mixture", None)
    return str(getattr(getattr(mixture, "final", None), "agent", ""))

"""Measures architectures on examples; what one trial computed, no other computes again."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import dspy

from moa_dspy.aggregators import Question
from moa_dspy.architecture import Architecture
from moa_dspy.calls import call_scope
from moa_dspy.errors import LayerFailedError, MetricError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.plan import follow
from moa_dspy.prediction import MixturePrediction
from moa_dspy.response import Response

Metric: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The raw facts of one architecture on one example.

    Attributes:
        score: The metric, in [0, 1]; 0 where nothing was answered.
        layer: Texts that the last step read; of a single agent, its answer.
        calls: Requests, stored ones included.
        usd: In production terms.
        seconds: Critical path, in production terms.
        tokens: Prompt and completion tokens.
        failure: Why nothing was answered; None when something was.
    """

    score: float
    layer: tuple[str, ...]
    calls: int
    usd: float
    seconds: float
    tokens: int = 0
    failure: str | None = None


@dataclass(slots=True)
class Measurer:
    """Runs architectures of one student's kind and remembers every node of every graph.

    A node is an agent that has read given nodes; equal nodes of different
    architectures are one computation per example. Safe for threads.

    Args:
        student: Gives signature, adapter and module of every seat.
        metric: Any DSPy metric.
        n_threads: Examples measured at the same time.
    """

    student: MixtureOfAgents
    metric: Metric
    n_threads: int = 8
    failures: Counter[str] = field(default_factory=Counter)
    _known: dict[tuple[str, str], Response] = field(default_factory=dict)
    _outcomes: dict[tuple[Architecture, str], Outcome] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def measure(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> tuple[Outcome, ...]:
        """Return one outcome per row, in the rows' order.

        Raises:
            MetricError: If the metric raises or returns no finite number in [0, 1].
            MoaError: If a call cannot be made for a reason that is not the model's.
        """
        missing = [row for row in rows if (architecture, row.id) not in self._outcomes]
        if missing:
            program = self.student.with_architecture(architecture)
            self._run(program, missing)
        return tuple(self._outcomes[architecture, row.id] for row in rows)

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        """Whether ``measure`` of these rows would ask nothing."""
        return all((architecture, row.id) in self._outcomes for row in rows)

    def _run(self, program: MixtureOfAgents, rows: Sequence[dspy.Example]) -> None:
        first, *rest = rows
        self._measure_one(program, first)
        if program.pool.calls.replay_only:
            # Nothing to wait for: threads would only cost time.
            for row in rest:
                self._measure_one(program, row)
            return
        with ThreadPoolExecutor(self.n_threads) as threads:
            running = [
                threads.submit(copy_context().run, self._measure_one, program, row) for row in rest
            ]
            try:
                for future in running:
                    future.result()
            except BaseException:
                # What is in flight is paid for and gets stored; what is not is not started.
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _measure_one(self, program: MixtureOfAgents, row: dspy.Example) -> None:
        rounds: list[list[Response]] = []

        def ask_all(questions: list[Question]) -> list[Response]:
            new = [q for q in questions if (q.node, row.id) not in self._known]
            if new:
                responses = program.seats.ask_all(new)
                self._remember(row.id, new, responses)
            rounds.append([self._known[q.node, row.id] for q in questions])
            return rounds[-1]

        with call_scope(example=row.id):
            try:
                answer = follow(program.plan(row.inputs().toDict()), ask_all)
            except LayerFailedError as error:
                # What did not answer was asked all the same: a failure is not cheap.
                self._outcomes[program.architecture, row.id] = Outcome(
                    0.0, (), **_costs(rounds), failure=str(error)
                )
                return
        read = answer.layers[-1] if answer.layers else (answer.final,)
        prediction = MixturePrediction(**answer.final.values, mixture=answer)
        self._outcomes[program.architecture, row.id] = Outcome(
            score=self._score(row, prediction),
            layer=tuple(response.text for response in read if response.has_answer),
            **_costs(rounds),
        )

    def _remember(
        self, row_id: str, questions: Sequence[Question], responses: Sequence[Response]
    ) -> None:
        with self._lock:
            for question, response in zip(questions, responses, strict=True):
                self._known[question.node, row_id] = response
                if not response.has_answer:
                    self.failures[response.agent] += 1

    def _score(self, row: dspy.Example, prediction: dspy.Prediction) -> float:
        try:
            value: Any = self.metric(row, prediction)
            score = float(value.score if hasattr(value, "score") else value)
        except Exception as error:
            raise MetricError(
                f"The metric raised {type(error).__name__} on example {row.id!r}: {error}"
            ) from error
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise MetricError(
                f"The metric must return a number in [0, 1], but gave {score} on {row.id!r}."
            )
        return score


def _costs(rounds: Sequence[Sequence[Response]]) -> dict[str, Any]:
    """Return calls, usd, seconds and tokens; who is asked in one round answers at once."""
    asked = [response for responses in rounds for response in responses]
    return {
        "calls": sum(response.calls for response in asked),
        "usd": sum(response.usd for response in asked),
        "seconds": sum(max(response.seconds for response in round_) for round_ in rounds),
        "tokens": sum(response.prompt_tokens + response.completion_tokens for response in asked),
    }


def scores(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the metric per example."""
    return [outcome.score for outcome in outcomes]


def means(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return calls, usd, seconds and the share of failures per question."""
    n = len(outcomes)
    return {
        "calls": sum(o.calls for o in outcomes) / n,
        "usd": sum(o.usd for o in outcomes) / n,
        "seconds": sum(o.seconds for o in outcomes) / n,
        "failures": sum(o.failure is not None for o in outcomes) / n,
    }

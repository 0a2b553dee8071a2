"""Asks agents in their seats: the right LM, sample and adapter, and a failure that is data."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import dspy

from moa_dspy.aggregators import Question
from moa_dspy.calls import CallScope, call_scope
from moa_dspy.errors import LayerFailedError, MoaError
from moa_dspy.pool import Pool
from moa_dspy.response import Response, render


@dataclass(frozen=True, slots=True)
class Seats:
    """Asks questions; each agent's LM is bound at the call, so no copy or reset can lose it."""

    pool: Pool
    adapter: Any = None

    def ask_all(self, questions: Sequence[Question]) -> list[Response]:
        """Ask all at the same time, one thread each; responses come in the questions' order."""
        if len(questions) == 1:
            return [self.ask(questions[0])]
        with ThreadPoolExecutor(max_workers=len(questions)) as threads:
            # Each thread gets a copy of the context: settings, usage tracker, trace, call scope.
            running = [threads.submit(copy_context().run, self.ask, q) for q in questions]
            return [future.result() for future in running]

    def ask(self, question: Question) -> Response:
        """Ask one agent.

        Raises:
            MoaError: If the reason for no answer is not the model: budget, replay, store, pool.
        """
        with self._seat(question) as scope:
            try:
                prediction = question.module(**question.inputs)
            except Exception as error:
                return _failed(question, scope, error)
            return _answered(question, scope, prediction)

    async def aask_all(self, questions: Sequence[Question]) -> list[Response]:
        """``ask_all`` as tasks; like threads, all are waited for even if one raises."""
        # A task that nobody waits for would go on asking after the budget said no.
        tasks = [self.aask(question) for question in questions]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Response)]

    async def aask(self, question: Question) -> Response:
        """``ask`` as a coroutine."""
        with self._seat(question) as scope:
            try:
                prediction = await question.module.acall(**question.inputs)
            except Exception as error:
                return _failed(question, scope, error)
            return _answered(question, scope, prediction)

    def _lm(self, question: Question) -> Any:
        lm = self.pool.lm(question.agent)
        is_sampled = getattr(lm, "kwargs", {}).get("temperature") != 0
        if question.sample and is_sampled and getattr(lm, "cache", False):
            # A given LM has DSPy's cache, which would give every sample the first one's answer.
            return lm.copy(rollout_id=question.sample)
        return lm

    @contextmanager
    def _seat(self, question: Question) -> Iterator[CallScope]:
        settings: dict[str, Any] = {"lm": self._lm(question)}
        if self.adapter is not None:
            settings["adapter"] = self.adapter
        with call_scope(sample=question.sample) as scope, dspy.context(**settings):
            yield scope


def _answered(question: Question, scope: CallScope, prediction: Any) -> Response:
    module = question.module
    signature = getattr(module, "signature", None)
    names = list(signature.output_fields) if signature is not None else list(prediction.keys())
    values = {name: prediction[name] for name in names if name in prediction}
    text = render(values)
    if not text.strip():
        return _response(question, scope, failure="The model answered with an empty text.")
    return _response(question, scope, values=values, text=text)


def _failed(question: Question, scope: CallScope, error: Exception) -> Response:
    cause: BaseException | None = error
    while cause is not None:
        # DSPy wraps what an engine raises; ours are not a model's failure and must be seen.
        if isinstance(cause, MoaError) and not isinstance(cause, LayerFailedError):
            raise cause
        cause = cause.__cause__
    return _response(question, scope, failure=f"{type(error).__name__}: {error}")


def _response(question: Question, scope: CallScope, **rest: Any) -> Response:
    log = scope.log
    return Response(
        agent=question.agent,
        sample=question.sample,
        calls=len(log),
        prompt_tokens=sum(facts.prompt_tokens for facts in log),
        completion_tokens=sum(facts.completion_tokens for facts in log),
        usd=sum(facts.usd for facts in log),
        seconds=sum(facts.seconds for facts in log),
        **rest,
    )

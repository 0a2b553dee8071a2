"""A larger program of the toy world, with one mixture in it."""

from __future__ import annotations

from typing import Any

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool


def parse(text: str) -> Architecture:
    return Architecture.parse(text)


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer == example.answer)


class Outer(dspy.Module):
    """Asks an agent of the pool to repeat the question, then a mixture; says so in its answer."""

    def __init__(self, mixture: Any, writer: str | None = None) -> None:
        super().__init__()
        self.steps = [mixture]
        self.repeat = dspy.Predict("question -> repeated")
        self.writer = writer

    def forward(self, question: str) -> Any:
        (mixture,) = self.steps
        if self.writer is not None:
            lm = mixtures_pool(mixture).lm(self.writer)
            with dspy.context(lm=lm, adapter=PlainChat()):
                question = self.repeat(question=question).repeated
        found = mixture(question=question)
        return dspy.Prediction(answer=found.answer, question=question)


def mixtures_pool(module: Any) -> Any:
    """The pool of a mixture, or of what stands for it while it is measured."""
    return getattr(module, "pool", None) or module.mixture.pool


def outer(pool: Pool, **options: Any) -> Outer:
    mixture = MixtureOfAgents(
        "question -> answer", next(iter(pool)), pool=pool, adapter=PlainChat()
    )
    return Outer(mixture, **options)

"""DSPy's optimizers of prompts by short names, small enough for a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import dspy
from dspy import teleprompt as tp
from dspy.teleprompt.gepa import InstructionProposer

from moa_dspy.optimize.prompts._demos import ReferenceDemos
from moa_dspy.optimize.prompts._try import TryPrompts
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, AGGREGATION_PROMPTS


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an optimizer is made from.

    Attributes:
        metric: The user's.
        writer: The LM that writes prompts; None is DSPy's global one.
        n_prompts: About how many prompts it may try.
        demos: Most worked examples in a prompt.
        n_rows: Rows that it tunes on.
        n_threads: Rows asked at the same time.
        seed: Of its choices.
        texts: Prompts that somebody has written.
    """

    metric: Any
    writer: Any
    n_prompts: int
    demos: int
    n_rows: int
    n_threads: int
    seed: int
    texts: Mapping[str, str] = field(default_factory=dict)


Made = tuple[Any, dict[str, Any]]
"""An optimizer, and the options of its ``compile``."""


def _try(wanted: Wanted) -> Made:
    others = dict.fromkeys([*wanted.texts.values(), *AGGREGATION_PROMPTS.values()])
    # The paper's is what the seat says anyway.
    texts = [text for text in others if text != AGGREGATE_AND_SYNTHESIZE]
    return TryPrompts(texts, n_threads=wanted.n_threads), {}


def _demos(wanted: Wanted) -> Made:
    return ReferenceDemos(n=max(wanted.demos, 1)), {}


def _bootstrap(wanted: Wanted) -> Made:
    n = max(wanted.demos, 1)
    return tp.BootstrapFewShot(wanted.metric, max_bootstrapped_demos=n, max_labeled_demos=0), {}


def _copro(wanted: Wanted) -> Made:
    made = tp.COPRO(wanted.writer, wanted.metric, breadth=max(2, wanted.n_prompts), depth=1)
    return made, {"eval_kwargs": {"num_threads": wanted.n_threads}}


def _miprov2(wanted: Wanted) -> Made:
    made = tp.MIPROv2(
        wanted.metric,
        wanted.writer,
        wanted.writer,
        auto=None,
        num_candidates=max(2, wanted.n_prompts),
        max_bootstrapped_demos=wanted.demos,
        max_labeled_demos=0,
        num_threads=wanted.n_threads,
        seed=wanted.seed,
    )
    return made, {"num_trials": 2 * max(2, wanted.n_prompts), "minibatch": False}


def _gepa(wanted: Wanted) -> Made:
    return tp.GEPA(
        metric=wanted.metric,
        max_metric_calls=(wanted.n_prompts + 1) * wanted.n_rows,
        reflection_lm=wanted.writer or dspy.settings.lm,
        # A small writer breaks JSON; the chat format it can follow.
        instruction_proposer=InstructionProposer(adapter=dspy.ChatAdapter()),
        num_threads=wanted.n_threads,
        seed=wanted.seed,
    ), {}


def _simba(wanted: Wanted) -> Made:
    made = tp.SIMBA(
        metric=wanted.metric,
        bsize=max(1, min(32, wanted.n_rows)),
        num_candidates=3,
        max_steps=max(1, wanted.n_prompts // 3),
        max_demos=wanted.demos,
        prompt_model=wanted.writer,
        num_threads=wanted.n_threads,
    )
    return made, {}


OPTIMIZERS: Final[dict[str, Callable[[Wanted], Made]]] = {
    "bootstrap": _bootstrap,
    "copro": _copro,
    "demos": _demos,
    "gepa": _gepa,
    "miprov2": _miprov2,
    "simba": _simba,
    "try": _try,
}
"""Names that a study may use for an optimizer."""

WRITERS: Final = ("copro", "gepa", "miprov2", "simba")
"""Those that need a language model to write prompts."""

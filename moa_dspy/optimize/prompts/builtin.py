"""Optimizers of this library (written prompts, worked examples), and all that a study may name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import dspy
from dspy import teleprompt as tp
from dspy.teleprompt import Teleprompter
from dspy.teleprompt.gepa import InstructionProposer

from moa_dspy.calls.timeout import in_threads
from moa_dspy.errors import StudyError
from moa_dspy.optimize.metric import CheckedMetric, score_of
from moa_dspy.optimize.prompts.feedback import BEST, RIGHT, ReferenceFeedback, StoredRow
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import Prompt
from moa_dspy.pool import Pool
from moa_dspy.references import count_tokens
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, AGGREGATION_PROMPTS


class TryPrompts(Teleprompter):
    """Tries aggregation prompts on the train rows; asks no model to write one.

    Each stands above the caller's own instructions, as the paper's prompt does. The
    incumbent is tried too, and stays if none has a higher mean.

    Args:
        prompts: Texts, such as another Aggregate-and-Synthesize prompt.
        metric: As ``optimize_aggregator``, which gives its own.
        num_threads: Rows asked at the same time.

    Raises:
        StudyError: If there is no prompt, or an empty one.
    """

    def __init__(self, prompts: Sequence[str], metric: Any = None, *, num_threads: int = 8) -> None:
        super().__init__()
        if isinstance(prompts, str) or not prompts or not all(text.strip() for text in prompts):
            raise StudyError(f"`prompts` must be a list of texts, none empty, but got {prompts!r}.")
        self.prompts, self.metric, self.num_threads = tuple(prompts), metric, num_threads

    def compile(  # pyright: ignore[reportIncompatibleMethodOverride]  # no further options
        self,
        student: Any,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> Any:
        """Return the student with the best prompt, and all of them as ``candidate_programs``."""
        rows = [*trainset, *(valset or ())]
        tried = [student, *(student.deepcopy() for _ in self.prompts)]
        for text, program in zip(self.prompts, tried[1:], strict=True):
            Prompt.above(text, program).put_into(program)
        found = [
            {"score": self._mean(program, rows), "program": program, "prompt": number}
            for number, program in enumerate(tried)
        ]
        # The sort is stable: of equals the first, so the incumbent, stays.
        ordered = sorted(found, key=lambda entry: -entry["score"])
        best = ordered[0]["program"].deepcopy()
        best.candidate_programs = ordered
        return best

    def _mean(self, program: Any, rows: Sequence[dspy.Example]) -> float:
        def score(row: dspy.Example) -> float:
            return CheckedMetric(self.metric).score(row, program(**row.inputs()))

        return fmean(in_threads(score, rows, num_threads=self.num_threads))


class ReferenceDemos(Teleprompter):
    """An optimizer for ``optimize_aggregator`` that sets demos drawn from stored references.

    A row serves if one of its references is wrong and its answer is right: the expected one
    where the row has every output, else the reader's own, which is asked for. Rows with a
    right reference among wrong ones come first, then those with more wrong ones. A demo that
    would go beyond the budget is passed over.

    Args:
        metric: Says what is right; ``optimize_aggregator`` gives its own.
        n: Most demos.
        token_budget: Most tokens of all demos together.

    Raises:
        StudyError: If ``n`` or ``token_budget`` is below 1.
    """

    def __init__(self, metric: Any = None, *, n: int = 3, token_budget: int = 1024) -> None:
        super().__init__()
        if n < 1 or token_budget < 1:
            raise StudyError(
                f"`n` and `token_budget` must be at least 1, but got {n} and {token_budget}."
            )
        self.metric, self.n, self.token_budget = metric, n, token_budget

    def compile(  # pyright: ignore[reportIncompatibleMethodOverride]  # no further options
        self,
        student: Any,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> Any:
        """Return the student with demos, of any of the rows.

        Raises:
            StudyError: If the student has no stored references.
        """
        if not isinstance(self.metric, ReferenceFeedback):
            raise StudyError("ReferenceDemos needs stored references: use `optimize_aggregator`.")
        rows = list(self.metric.rows.values())
        found = in_threads(lambda row: self._demo(row, student), rows, num_threads=8)
        best_first = sorted((demo for demo in found if demo), key=lambda demo: demo[0])
        kept, left = list[dict[str, Any]](), self.token_budget
        for _, demo in best_first:
            tokens = count_tokens(json.dumps(demo, ensure_ascii=False, default=str))
            if len(kept) < self.n and tokens <= left:
                kept.append(demo)
                left -= tokens
        made = student.deepcopy()
        for predictor in made.predictors():
            predictor.demos = [*kept]
        return made

    def _demo(self, found: StoredRow, student: Any) -> tuple[Any, dict[str, Any]] | None:
        """Return the demo of a row with its place in the order; None if the row does not serve."""
        feedback, signature = self.metric, student.predictors()[0].signature
        worth = feedback.reference_scores(found)
        wrong = sum(score < RIGHT for score in worth)
        if not wrong:
            return None
        made: Any = feedback.labelled(found, signature)
        known = {*feedback.outputs, BEST}
        if not all(name in made for name in signature.output_fields if name in known):
            answer = student(**made.inputs())
            if score_of(feedback.value(found.row, answer)) < RIGHT:
                return None
            made = made.copy(**answer)
        kept = {name: made[name] for name in signature.fields if name in made}
        return (int(wrong == len(worth)), -wrong, found.number), kept


@dataclass(frozen=True, slots=True)
class OptimizerParts:
    """The parts from which an optimizer is made; its metric is set when it tunes.

    Attributes:
        options: Options of the study: how many prompts and demos, and which texts.
        pool: Has the agent that writes prompts.
        n_rows: Rows that it tunes on.
        num_threads: Rows asked at the same time.
        seed: Seed of its choices.
    """

    options: PromptOptions
    pool: Pool
    n_rows: int
    num_threads: int = 8
    seed: int = 0

    @property
    def writer(self) -> Any:
        """The LM that writes prompts: an agent of the pool, or DSPy's global one.

        Raises:
            StudyError: If there is neither.
        """
        if self.options.proposer_agent is not None:
            return self.pool.lm(self.options.proposer_agent)
        if dspy.settings.lm is None:
            raise StudyError(
                f"`prompts.optimizer` {self.options.optimizer!r} needs a language model to write "
                "prompts and has none: name an agent of the pool as `prompts.proposer_agent`, or "
                "set one with `dspy.configure(lm=...)`."
            )
        return dspy.settings.lm

    @property
    def n_prompts(self) -> int:
        """About how many prompts it may try, at least 2."""
        return max(2, self.options.n_prompts)

    def make(self) -> MadeOptimizer:
        """Return the optimizer that a study wants, and the options of its ``compile``."""
        optimizer = self.options.optimizer
        if not isinstance(optimizer, str):
            return optimizer, dict(self.options.compile_options)
        return OPTIMIZERS[optimizer](self)


MadeOptimizer = tuple[Any, dict[str, Any]]
"""An optimizer, and the options of its ``compile``."""


def _no_metric(*_: Any) -> float:
    """Stand in for the metric of the search, which an optimizer is given when it tunes."""
    raise StudyError("An optimizer that was made by its name has a metric only within a search.")


def _try(parts: OptimizerParts) -> MadeOptimizer:
    others = dict.fromkeys([*parts.options.all_texts.values(), *AGGREGATION_PROMPTS.values()])
    # The paper's prompt is in the seat anyway.
    texts = [text for text in others if text != AGGREGATE_AND_SYNTHESIZE]
    return TryPrompts(texts, num_threads=parts.num_threads), {}


def _demos(parts: OptimizerParts) -> MadeOptimizer:
    return ReferenceDemos(n=max(1, parts.options.demos)), {}


def _bootstrap(parts: OptimizerParts) -> MadeOptimizer:
    n = max(1, parts.options.demos)
    return tp.BootstrapFewShot(_no_metric, max_bootstrapped_demos=n, max_labeled_demos=0), {}


def _copro(parts: OptimizerParts) -> MadeOptimizer:
    made = tp.COPRO(parts.writer, _no_metric, breadth=parts.n_prompts, depth=1)
    return made, {"eval_kwargs": {"num_threads": parts.num_threads}}


def _miprov2(parts: OptimizerParts) -> MadeOptimizer:
    made = tp.MIPROv2(
        _no_metric,
        parts.writer,
        parts.writer,
        auto=None,
        num_candidates=parts.n_prompts,
        max_bootstrapped_demos=parts.options.demos,
        max_labeled_demos=0,
        num_threads=parts.num_threads,
        seed=parts.seed,
    )
    return made, {"num_trials": 2 * parts.n_prompts, "minibatch": False}


def _gepa(parts: OptimizerParts) -> MadeOptimizer:
    return tp.GEPA(
        metric=_no_metric,
        max_metric_calls=(parts.options.n_prompts + 1) * parts.n_rows,
        reflection_lm=parts.writer,
        # A small writer breaks JSON; the chat format it can follow.
        instruction_proposer=InstructionProposer(adapter=dspy.ChatAdapter()),
        num_threads=parts.num_threads,
        seed=parts.seed,
    ), {}


def _simba(parts: OptimizerParts) -> MadeOptimizer:
    made = tp.SIMBA(
        metric=_no_metric,
        bsize=max(1, min(32, parts.n_rows)),
        num_candidates=3,
        max_steps=max(1, parts.options.n_prompts // 3),
        max_demos=parts.options.demos,
        prompt_model=parts.writer,
        num_threads=parts.num_threads,
    )
    return made, {}


OPTIMIZERS: Final[dict[str, Callable[[OptimizerParts], MadeOptimizer]]] = {
    "bootstrap": _bootstrap,
    "copro": _copro,
    "demos": _demos,
    "gepa": _gepa,
    "miprov2": _miprov2,
    "simba": _simba,
    "try": _try,
}
"""Names that a study may use for an optimizer."""

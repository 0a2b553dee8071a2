"""An optimizer for prompts that somebody has written already: each is tried, the best is taken."""

# DOCS: optimize/prompts/_demos: Worked examples for the aggregator: rows on which some references were wrong, answered right. | optimize/prompts/_named: DSPy's optimizers of prompts by short names, small enough for a study.

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import dspy
from dspy import teleprompt as tp
from dspy.teleprompt import Teleprompter
from dspy.teleprompt.gepa import InstructionProposer

from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts.feedback import BEST, RIGHT, ReferenceFeedback, labelled
from moa_dspy.optimize.prompts.optimizers import refuse_options
from moa_dspy.optimize.prompts.references import (
    CallCounter,
    StoredRow,
    Target,
    in_threads,
    read_references,
)
from moa_dspy.optimize.prompts.student import ReferenceReader, Scoring, Stop, make_student, score_of
from moa_dspy.optimize.splits import with_ids
from moa_dspy.references import count_tokens
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, AGGREGATION_PROMPTS, separated


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

    def compile(
        self,
        student: Any,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the student with the best prompt, and all of them as ``candidate_programs``.

        Raises:
            StudyError: If there are further options.
        """
        refuse_options(self, kwargs)
        rows = [*trainset, *(valset or ())]
        tried = [student, *(_with_prompt(student, text) for text in self.prompts)]
        found = [
            {"score": self._mean(one, rows), "program": one, "prompt": number}
            for number, one in enumerate(tried)
        ]
        # The sort is stable: of equals the first, so the incumbent, stays.
        ordered = sorted(found, key=lambda entry: -entry["score"])
        best = ordered[0]["program"].deepcopy()
        best.candidate_programs = ordered
        return best

    def _mean(self, program: Any, rows: Sequence[dspy.Example]) -> float:
        def score(row: dspy.Example) -> float:
            return float(score_of(self.metric(row, program(**row.inputs()))))

        scores: list[float] = in_threads(score, rows, self.num_threads)
        return sum(scores) / len(scores)


def _with_prompt(student: Any, text: str) -> Any:
    made = student.deepcopy()
    for predictor in made.predictors():
        own, _ = separated(predictor.signature)
        instructions = "\n\n".join(filter(None, [text.strip(), own]))
        predictor.signature = predictor.signature.with_instructions(instructions)
    return made


def demos_from_references(
    program: MixtureOfAgents,
    rows: Sequence[dspy.Example],
    n: int,
    token_budget: int,
    *,
    metric: Callable[..., Any],
    layer: int | None = None,
    num_threads: int = 8,
) -> tuple[dict[str, Any], ...]:
    """Return at most ``n`` demos for the aggregator, the most instructive first.

    A row serves if one of its references is wrong and its answer is right: the expected one
    where the row has every output, else the aggregator's own, which is asked for. Rows with
    a right reference among wrong ones come first, then those with more wrong ones. A demo
    that would go beyond the budget is passed over.

    Args:
        program: A mixture; it is not changed.
        rows: Train rows: what a demo shows must not be tested on.
        n: Most demos.
        token_budget: Most tokens of all demos together, as ``count_tokens`` estimates them.
        metric: Says what is right: a score of at least 0.5.
        layer: A layer of readers instead of the aggregator.
        num_threads: Rows read at the same time.

    Raises:
        StudyError: If ``n`` or ``token_budget`` is below 1, or the metric does not fit.
        ArchitectureError: If there is no such reader.
    """
    _check(n, token_budget)
    target, tally, stop = Target.of(program, layer), CallCounter(), Stop()
    scoring = Scoring.of(metric, stop)
    bank = read_references(target, with_ids(rows, "rows"), tally, num_threads=num_threads)
    reading = ReferenceReader(target, bank, tally, stop)
    return pick_demos(
        reading, _feedback(reading, scoring), n, token_budget, num_threads=num_threads
    )


def pick_demos(
    reading: ReferenceReader,
    feedback: ReferenceFeedback,
    n: int,
    token_budget: int,
    *,
    num_threads: int = 8,
) -> tuple[dict[str, Any], ...]:
    """``demos_from_references`` where the references are known."""
    student: Any = make_student(reading)
    signature = student.predictors()[0].signature
    known = {*feedback.outputs, BEST}
    wanted = [name for name in signature.output_fields if name in known]

    def demo(found: StoredRow) -> tuple[tuple[int, int, int], dict[str, Any]] | None:
        worth = feedback.reference_scores(found) if not found.failure else ()
        wrong = sum(score < RIGHT for score in worth)
        if not wrong:
            return None
        made: Any = labelled(found, feedback, signature)
        if not all(name in made for name in wanted):
            answer = student(**made.inputs())
            if feedback.scoring.score(found.row, answer) < RIGHT:
                return None
            made = made.copy(**answer)
        kept = {name: made[name] for name in signature.fields if name in made}
        return (int(wrong == len(worth)), -wrong, found.number), kept

    found = [one for one in in_threads(demo, list(reading.bank.rows.values()), num_threads) if one]
    return _within([kept for _, kept in sorted(found, key=lambda one: one[0])], n, token_budget)


def _within(demos: Sequence[dict[str, Any]], n: int, budget: int) -> tuple[dict[str, Any], ...]:
    kept: list[dict[str, Any]] = []
    left = budget
    for demo in demos:
        tokens = count_tokens(json.dumps(demo, ensure_ascii=False, default=str))
        if len(kept) < n and tokens <= left:
            kept.append(demo)
            left -= tokens
    return tuple(kept)


class ReferenceDemos(Teleprompter):
    """An optimizer for ``optimize_aggregator`` that sets demos drawn from stored references.

    Args:
        metric: Says what is right.
        n: Most demos.
        token_budget: Most tokens of all demos together.

    Raises:
        StudyError: If ``n`` or ``token_budget`` is below 1.
    """

    def __init__(self, metric: Any = None, *, n: int = 3, token_budget: int = 1024) -> None:
        super().__init__()
        _check(n, token_budget)
        self.metric, self.n, self.token_budget = metric, n, token_budget

    def compile(
        self,
        student: Any,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the student with demos, of any of the rows.

        Raises:
            StudyError: If it is called by anyone but ``optimize_aggregator``, or there are
                further options.
        """
        refuse_options(self, kwargs)
        reading = getattr(student, "reading", None)
        if not isinstance(reading, ReferenceReader):
            raise StudyError("ReferenceDemos needs stored references: use `optimize_aggregator`.")
        feedback = _feedback(reading, self.metric)
        made: Any = student.deepcopy()
        for predictor in made.predictors():
            predictor.demos = list(pick_demos(reading, feedback, self.n, self.token_budget))
        return made


def _check(n: int, token_budget: int) -> None:
    if n < 1 or token_budget < 1:
        raise StudyError(
            f"`n` and `token_budget` must be at least 1, but got {n} and {token_budget}."
        )


def _feedback(reading: ReferenceReader, scoring: Scoring) -> ReferenceFeedback:
    program = reading.target.program
    outputs = tuple(program.signature.output_fields)
    return ReferenceFeedback(scoring, reading.bank, outputs, program.normalise)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an optimizer is made from.

    Attributes:
        metric: The user's.
        writer: The LM that writes prompts; None is DSPy's global one.
        n_prompts: About how many prompts it may try.
        demos: Most worked examples in a prompt.
        n_rows: Rows that it tunes on.
        num_threads: Rows asked at the same time.
        seed: Of its choices.
        texts: Prompts that somebody has written.
    """

    metric: Any
    writer: Any
    n_prompts: int
    demos: int
    n_rows: int
    num_threads: int
    seed: int
    texts: Mapping[str, str] = field(default_factory=dict)


Made = tuple[Any, dict[str, Any]]
"""An optimizer, and the options of its ``compile``."""


def _try(wanted: Wanted) -> Made:
    others = dict.fromkeys([*wanted.texts.values(), *AGGREGATION_PROMPTS.values()])
    # The paper's is what the seat says anyway.
    texts = [text for text in others if text != AGGREGATE_AND_SYNTHESIZE]
    return TryPrompts(texts, num_threads=wanted.num_threads), {}


def _demos(wanted: Wanted) -> Made:
    return ReferenceDemos(n=max(wanted.demos, 1)), {}


def _bootstrap(wanted: Wanted) -> Made:
    n = max(wanted.demos, 1)
    return tp.BootstrapFewShot(wanted.metric, max_bootstrapped_demos=n, max_labeled_demos=0), {}


def _copro(wanted: Wanted) -> Made:
    made = tp.COPRO(wanted.writer, wanted.metric, breadth=max(2, wanted.n_prompts), depth=1)
    return made, {"eval_kwargs": {"num_threads": wanted.num_threads}}


def _miprov2(wanted: Wanted) -> Made:
    made = tp.MIPROv2(
        wanted.metric,
        wanted.writer,
        wanted.writer,
        auto=None,
        num_candidates=max(2, wanted.n_prompts),
        max_bootstrapped_demos=wanted.demos,
        max_labeled_demos=0,
        num_threads=wanted.num_threads,
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
        num_threads=wanted.num_threads,
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
        num_threads=wanted.num_threads,
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

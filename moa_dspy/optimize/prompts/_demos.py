"""Worked examples for the aggregator: rows on which some references were wrong, answered right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._bank import StoredRow, in_threads, read_references
from moa_dspy.optimize.prompts._feedback import RIGHT, ReferenceFeedback
from moa_dspy.optimize.prompts._habits import refuse_options
from moa_dspy.optimize.prompts._labels import BEST, labelled
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._student import Reading, Stop, make_student
from moa_dspy.optimize.prompts._tally import Tally
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.optimize.rows import with_ids
from moa_dspy.references import count_tokens


def demos_from_references(
    program: MixtureOfAgents,
    rows: Sequence[dspy.Example],
    n: int,
    token_budget: int,
    *,
    metric: Callable[..., Any],
    layer: int | None = None,
    n_threads: int = 8,
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
        n_threads: Rows read at the same time.

    Raises:
        StudyError: If ``n`` or ``token_budget`` is below 1, or the metric does not fit.
        ArchitectureError: If there is no such reader.
    """
    _check(n, token_budget)
    target, tally, stop = Target.of(program, layer), Tally(), Stop()
    scoring = Scoring.of(metric, stop)
    bank = read_references(target, with_ids(rows, "rows"), tally, n_threads=n_threads)
    reading = Reading(target, bank, tally, stop)
    return pick_demos(reading, _feedback(reading, scoring), n, token_budget, n_threads=n_threads)


def pick_demos(
    reading: Reading, feedback: ReferenceFeedback, n: int, token_budget: int, *, n_threads: int = 8
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

    found = [one for one in in_threads(demo, list(reading.bank.rows.values()), n_threads) if one]
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
        if not isinstance(reading, Reading):
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


def _feedback(reading: Reading, scoring: Scoring) -> ReferenceFeedback:
    program = reading.target.program
    outputs = tuple(program.signature.output_fields)
    return ReferenceFeedback(scoring, reading.bank, outputs, program.normalise)

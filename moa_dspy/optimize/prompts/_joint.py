"""Composition and prompt searched together: compose, tune prompts, compose again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.prompts._book import PromptBook
from moa_dspy.optimize.prompts._guarded import PromptVerdict, guarded, prompts_to_json
from moa_dspy.optimize.prompts._options import PromptOptions
from moa_dspy.optimize.prompts._rounds import PromptRounds, Tried
from moa_dspy.optimize.prompts._tally import ROLES
from moa_dspy.optimize.student import Student

if TYPE_CHECKING:
    from moa_dspy.calls import Ledger
    from moa_dspy.optimize.context import SearchContext, StageCounts
    from moa_dspy.optimize.measure import Measurer
    from moa_dspy.optimize.trials import Trials


def with_prompts(
    context: SearchContext, program: Any, metric: Any, rows: Sequence[dspy.Example]
) -> tuple[SearchContext, PromptBook | None]:
    """Return the context with the prompts as a choice of its space, and the prompts.

    Args:
        context: Of the search.
        program: To be searched.
        metric: Of the search.
        rows: Train rows.

    Raises:
        StudyError: If anything does not fit, before any call; see ``PromptOptions.check``.
    """
    options = context.prompts
    if options is None:
        if context.space.prompts:
            raise StudyError(
                "`space.prompts` names prompts, but what they say is in `prompts`: give the search "
                "a `PromptOptions`."
            )
        return context, None
    options.check(program, metric, context.pool, rows)
    book = options.make_book(program)
    return replace(context, space=options.space(context.space, book)), book


@dataclass(slots=True)
class JointSearch:
    """Runs the trials of a search, with rounds of tuning between; without options, the trials only.

    Args:
        context: Gives options, seed and progress.
        measurer: Has the book of prompts.
        options: None searches no prompts.
        rounds: None tunes none.
        part: Part of the budget that may be used now, in (0, 1].
        n_tried: Mixtures with a prompt other than the aggregator's own that were measured.
        verdict: On the prompt of the pick; None before, or where it has none.
    """

    context: SearchContext
    measurer: Measurer
    options: PromptOptions | None
    rounds: PromptRounds | None
    part: float = 1.0
    n_tried: int = 0
    verdict: PromptVerdict | None = None

    @classmethod
    def of(
        cls, context: SearchContext, measurer: Measurer, rows: Sequence[dspy.Example]
    ) -> JointSearch:
        """Return the search of the context's prompts; ``rows`` are train rows."""
        options, book = context.prompts, measurer.book
        if options is None or book is None or options.optimizer is None:
            return cls(context, measurer, options, None)
        rounds = PromptRounds(
            options,
            book,
            Student.of(measurer.student),
            rows,
            measurer.metric,
            n_threads=measurer.n_threads,
            seed=context.seed,
        )
        return cls(context, measurer, options, rounds, options.part(0))

    def run(
        self, trials: Trials, ledger: Ledger, *, limit: int, counts: StageCounts | None
    ) -> tuple[int, ...]:
        """Measure up to ``limit`` architectures; return how many were known after each composing.

        Args:
            trials: Of the search; those that open it are done.
            ledger: Its share is moved to what a round of tuning may use.
            limit: Most architectures, those that opened included.
            counts: Of a finished study that is run again.
        """
        phases: list[int] = []
        known = counts.phases if counts else ()
        n_rounds = 0 if self.rounds is None or self.options is None else self.options.rounds
        for number in range(n_rounds + 1):
            if number:
                self._tune(trials, ledger, number, limit=limit)
            planned = round(limit * self.part)
            trials.run(known[number] if number < len(known) else min(limit, planned))
            phases.append(len(trials.records))
        self.n_tried = sum(one.prompt is not None for one in trials.records)
        return tuple(phases)

    def _tune(self, trials: Trials, ledger: Ledger, number: int, *, limit: int) -> None:
        assert self.options is not None
        assert self.rounds is not None
        before = self.part
        ledger.share *= self.options.part(number - 0.5) / before
        self.context.show("prompts", current=f"round {number}", trial=len(trials.records))
        found = self.rounds.tune(trials.records)
        self.part = self.options.part(number)
        # What stopped was this phase's part of the budget, not all of it.
        trials.stopped_by = None
        trials.open_with(found, origin="prompt", limit=limit)

    def refused(
        self, picked: Architecture, rows: Sequence[dspy.Example], *, gain: float
    ) -> Architecture | None:
        """Return ``picked`` with the aggregator's own prompt if its other one is not proven better.

        None if it may stay as it is. Tested on ``rows`` of val, once.
        """
        self.verdict = guarded(picked, self.measurer, rows, n_tried=self.n_tried, gain=gain)
        is_refused = self.verdict is not None and not self.verdict.is_proven
        return replace(picked, prompt=None) if is_refused else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the prompts."""
        found = [] if self.rounds is None else list(self.rounds.notes)
        if self.rounds is not None:
            # What was stored counts like what was made: a second run must say the same.
            asked = [self.rounds.calls_of(role, "references", "tuning") for role in ROLES]
            n = [one.made + one.reused for one in asked]
            found.append(
                f"Tuning of prompts took {n[0]} answers of proposers, all before it began, "
                f"{n[1]} of aggregators and {n[2]} of who writes prompts; stored ones included."
            )
        if self.verdict is not None:
            found.append(self.verdict.note)
        return tuple(found)

    def to_json(self, records: Mapping[Architecture, Tried]) -> tuple[dict[str, Any], ...]:
        """Return every prompt as ``StudyResult.prompts`` holds it."""
        book = self.measurer.book
        return () if book is None else prompts_to_json(book, records, self.verdict)

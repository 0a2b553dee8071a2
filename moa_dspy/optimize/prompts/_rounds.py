"""Rounds of a search in which the prompts of its best mixtures are tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.errors import BudgetReachedError, LayerFailedError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts._book import BookEntry, PromptBook
from moa_dspy.optimize.prompts._candidates import candidates_of
from moa_dspy.optimize.prompts._habits import name_of
from moa_dspy.optimize.prompts._metric import Scoring
from moa_dspy.optimize.prompts._options import PromptOptions
from moa_dspy.optimize.prompts._prompt import Prompt
from moa_dspy.optimize.prompts._run import PromptRun, notes_of
from moa_dspy.optimize.prompts._student import Stop
from moa_dspy.optimize.prompts._tally import Counted, Tally
from moa_dspy.optimize.prompts._target import Target
from moa_dspy.optimize.rows import with_ids
from moa_dspy.optimize.student import Student


class Tried(Protocol):
    """What a round needs to know of a trial."""

    @property
    def score(self) -> float:
        """Mean metric on val."""
        ...

    @property
    def is_stopped_early(self) -> bool:
        """Whether some rows were left out."""
        ...


@dataclass(slots=True)
class PromptRounds:
    """Tunes the prompt of the best mixtures on train rows, and puts what it finds into the book.

    The references of the train rows are computed once per mixture, or come from the store;
    while it tunes, only the aggregator and the writer are asked.

    Args:
        options: Of the study.
        book: Takes new prompts as long as it has room.
        student: Holds the mixture.
        rows: Train rows.
        metric: Of the search.
        n_threads: Rows asked at the same time.
        seed: Of everything random.
        tally: Counts the calls.
        notes: What a reader must know, such as why a prompt was not tuned.
    """

    options: PromptOptions
    book: PromptBook
    student: Student
    rows: Sequence[dspy.Example]
    metric: Any
    n_threads: int = 8
    seed: int = 0
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)

    def tune(self, records: Mapping[Architecture, Tried]) -> list[Architecture]:
        """Return the mixtures to measure next: the best ones with the prompts found for them.

        A budget that is reached ends the round; so does nothing else that a model does.

        Args:
            records: Of the search; those stopped early do not count.

        Raises:
            MoaError: If a call cannot be made for another reason, or the metric fails.
        """
        found: list[Architecture] = []
        for architecture in self._best(records):
            if not self.book.has_room:
                break
            try:
                entry = self._tuned(architecture)
            except BudgetReachedError as error:
                self.notes.append(f"Tuning of prompts ended: {error}")
                break
            except (LayerFailedError, StudyError) as error:
                self.notes.append(f"The prompt of {architecture} was not tuned: {error}")
                continue
            name = self.book.add(entry)
            made = self.book.settle(replace(architecture, prompt=name))
            if made in records or made in found:
                self.notes.append(f"{entry.origin} found no new prompt for {architecture}.")
            else:
                found.append(made)
        return found

    def calls_of(self, role: str, *stages: str) -> Counted:
        """Return what was asked of ``proposers``, ``aggregator`` or ``prompt_model``.

        Args:
            role: Who was asked.
            stages: ``references`` or ``tuning``; without any, all.
        """
        counts = self.tally.by_stage()
        found = [counts[stage][role] for stage in stages or counts]
        return Counted(sum(one.made for one in found), sum(one.reused for one in found))

    def _best(self, records: Mapping[Architecture, Tried]) -> list[Architecture]:
        """Return the best compositions, each with the best of its prompts up to now."""
        whole = [
            (one, record)
            for one, record in records.items()
            if one.layers and one.combine == "synthesize" and not record.is_stopped_early
        ]
        # The sort is stable: of equals the one that was measured first.
        ordered = sorted(whole, key=lambda pair: -pair[1].score)
        compositions: dict[Architecture, Architecture] = {}
        for one, _ in ordered:
            compositions.setdefault(replace(one, prompt=None), one)
        return list(compositions.values())[: self.options.top]

    def _tuned(self, architecture: Architecture) -> BookEntry:
        program: MixtureOfAgents = self.student.with_book(self.book).with_architecture(architecture)
        scoring = Scoring.of(self.metric, Stop())
        run = PromptRun(Target.of(program, None), scoring, self.tally, self.n_threads)
        rows = with_ids(self.rows, "train")
        bank = run.read(rows)
        optimizer, options = self.options.make_optimizer(
            self.metric,
            program.pool,
            n_rows=len(rows),
            n_threads=self.n_threads,
            seed=self.seed,
        )
        share = self.options.tuning_share
        made = run.tuned(optimizer, bank, options, share=share, seed=self.seed)
        self.notes += notes_of(bank, made)
        prompt = Prompt.of(made.aggregator)
        scores = {one.prompt.key: one.score for one in candidates_of(optimizer, made)}
        return BookEntry(prompt, name_of(optimizer), str(architecture), scores.get(prompt.key))

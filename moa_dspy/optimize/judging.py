"""The judge of a search: its judgements, each made once, and the scores that follow from them."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import dspy
import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import CallFacts, call_scope
from moa_dspy.calls.timeout import in_threads
from moa_dspy.errors import BudgetReachedError, MetricError, MoaError, StudyError, UnknownCallError
from moa_dspy.judges.base import Judgement, as_judgement, texts_of
from moa_dspy.optimize.early_facts import Cost
from moa_dspy.optimize.judge_facts import (
    N_SHOWN,
    JudgeDiagnostics,
    JudgedPair,
    JudgedSystem,
    JudgeFacts,
    agreement_of,
    check_readable,
    self_preference_warnings,
    trust_warnings,
)
from moa_dspy.optimize.metric import (
    BEST_SINGLE,
    AsksAgents,
    CheckedMetric,
    JudgeOptions,
    Outcome,
    RowJudgement,
    check_reference_field,
    label_of,
)
from moa_dspy.winrate.length_control import at_equal_length, length_controlled

N_SECOND: Final = 30
"""Pairs that a second judge is asked about."""
MOST_UNREAD: Final = 0.75
"""Share of pairs without a readable verdict above which a study ends. If a judge is asked in both
orders and loses each reply with probability 30 %, the share is 51 %."""
_FEWEST_ASKED: Final = 24
_ALL_UNREAD: Final = 10
_READ_REPLY: Final = 120
Texts: TypeAlias = tuple[str, ...]
CompareAll: TypeAlias = Callable[
    [Architecture, Architecture, Sequence[dspy.Example]], list[Judgement]
]
"""Asks both systems and then the judge, on each row."""


@dataclass(slots=True)
class Judging:
    """The judge of one search with all its judgements; safe for threads.

    Two responses to one example are judged once, whichever is the candidate.

    Attributes:
        options: Options of the judge.
        metric: The user's metric, if there is one.
        reference: The architecture or field that all are compared with; None until chosen.
        chosen: How the reference was chosen.
        warnings: Warnings that hold before any call is made.
        agreement: Agreement with a second judge, and kappa.
        costs: Costs of all calls, by agent.
        n_made: Calls that were paid for now; the others were stored.
    """

    options: JudgeOptions
    metric: CheckedMetric | None = None
    reference: Architecture | str | None = None
    chosen: str = "set in the study"
    warnings: tuple[str, ...] = ()
    agreement: tuple[Any, Any] = (None, None)
    costs: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    n_made: int = 0
    _n_lost: int = 0
    _known: dict[tuple[str, Texts, Texts], Judgement] = field(default_factory=dict)
    _answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    _rows: dict[str, dspy.Example] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, options: Any, rows: Mapping[str, Any]) -> Judging:
        """Return the judge of a search that has one, without making a call.

        Args:
            options: Options of the search.
            rows: Rows of val and test, by split.

        Raises:
            StudyError: If the reference is neither an agent nor a field of the rows.
            DataError: If a row has no response in the field of the reference.
        """
        judge, pool = options.judge, options.pool
        metric = None if options.metric is None else CheckedMetric.of(options.metric)
        judging = cls(judge, metric)
        judging.warnings = tuple(self_preference_warnings(judge.judge, pool, options.space.agents))
        if judge.reference in pool:
            judging.reference = Architecture.single(judge.reference)
        elif judge.reference != BEST_SINGLE:
            check_reference_field(judge.reference, tuple(pool), rows)
            judging.reference = judge.reference
        return judging

    @property
    def opponent(self) -> str | None:
        """Name of the reference in tasks; None until it is chosen."""
        if self.reference is None or isinstance(self.reference, Architecture):
            return None if self.reference is None else str(self.reference)
        return f"[{self.reference}]"

    @property
    def reads_names(self) -> bool:
        """True if the judge only looks up recorded preferences, by the names of systems."""
        return bool(getattr(self.options.judge, "reads_names", False))

    def judge_row(
        self, row: dspy.Example, name: str, prediction: Any, agents: AsksAgents
    ) -> RowJudgement:
        """Compare an answer of the system ``name``, None if it failed, with the reference."""
        metric = None if self.metric is None else 0.0
        if self.metric is not None and prediction is not None:
            metric = self.metric.score(row, prediction)
        if self.opponent is None:
            return RowJudgement(None, excluded="missing", metric=metric)
        reference = self._answer(row, self.opponent, agents)
        judgement = self._compared(row, (name, prediction), (self.opponent, reference))
        return RowJudgement(
            judgement.preference,
            judgement.excluded,
            length=_length(texts_of(prediction)),
            reference_length=_length(texts_of(reference)),
            difficulty=float(row[field]) if (field := self.options.difficulty) else 0.0,
            metric=metric,
        )

    def judge_pair(self, row: dspy.Example, name: str, other: str, agents: AsksAgents) -> Judgement:
        """Compare the answers of two systems."""
        first, second = (self._answer(row, system, agents) for system in (name, other))
        return self._compared(row, (name, first), (other, second))

    def preference(self, row: dspy.Example, prediction: Any, agents: AsksAgents) -> float:
        """Return the score of an answer to a row: 0.5 if there is no verdict.

        Raises:
            StudyError: If the reference is not chosen yet.
        """
        if self.opponent is None:
            raise StudyError("The judge has no reference yet: nothing can be compared with it.")
        reference = self._answer(row, self.opponent, agents)
        judgement = self._compared(row, ("", prediction), (self.opponent, reference))
        return 0.5 if judgement.preference is None else judgement.preference

    def score_of(self, judged: RowJudgement) -> float:
        """Return the score by which the study picks, as far as one row determines it."""
        if not self.picks:
            return judged.metric or 0.0
        return 0.5 if judged.preference is None else judged.preference

    def scored(self, outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        """Return the outcomes with their final scores.

        A row without a verdict gets the mean of the rows with one, which leaves the mean as it is.
        """
        judged = [outcome.judged for outcome in outcomes]
        if not self.picks or not outcomes or any(judgement is None for judgement in judged):
            return outcomes
        values = self._values([judgement for judgement in judged if judgement is not None])
        is_read = ~np.isnan(values)
        mean = float(values[is_read].mean()) if is_read.any() else 0.5
        filled = np.where(is_read, values, mean).tolist()
        return tuple(
            replace(outcome, score=value, is_filled=not is_known)
            for outcome, value, is_known in zip(outcomes, filled, is_read.tolist(), strict=True)
        )

    def system(self, outcomes: Sequence[Outcome]) -> JudgedSystem:
        """Return the scores by judge and metric of one system's outcomes."""
        judged = [outcome.judged for outcome in outcomes if outcome.judged is not None]
        plain = np.array([_number(judgement.preference) for judgement in judged], np.float64)
        is_read = ~np.isnan(plain)
        metrics = [judgement.metric for judgement in judged if judgement.metric is not None]
        return JudgedSystem(
            win_rate=float(plain[is_read].mean()) if is_read.any() else None,
            length_controlled=self._length_controlled(judged) if is_read.any() else None,
            metric=sum(metrics) / len(metrics) if metrics else None,
            n=int(is_read.sum()),
            excluded=int((~is_read).sum()),
        )

    def ask_second(self, *, seed: int, num_threads: int) -> None:
        """Ask the second judge, if there is one, about a sample of the pairs so far."""
        second, rows = self.options.second, self._rows
        pairs = sorted(
            key for key, judgement in self._known.items() if judgement.preference is not None
        )
        if second is None or not pairs:
            return
        drawn = random.Random(f"second-{seed}").sample(pairs, min(N_SECOND, len(pairs)))
        judgements = in_threads(
            lambda key: self._ask(second, rows[key[0]], key[1], key[2]),
            drawn,
            num_threads=num_threads,
        )
        both = [
            (self._known[key].preference or 0.0, judgement.preference)
            for key, judgement in zip(drawn, judgements, strict=True)
            if judgement.preference is not None
        ]
        self.agreement = agreement_of([a for a, _ in both], [b for _, b in both])

    @property
    def spent(self) -> Cost:
        """The costs of all calls, as if none were stored."""
        with self._lock:
            rows = [(c["calls"], c["tokens"], c["usd"], c["seconds"]) for c in self.costs.values()]
        return sum((Cost(*row) for row in rows), Cost())

    @property
    def picks(self) -> bool:
        """True if the judge picks, and not the metric."""
        return self.options.picks == "judge"

    def check_decides(self, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
        """End a study whose judge prefers no single agent's answer on any row.

        Raises:
            StudyError: If all verdicts are ties although the answers differ.
        """
        values = {outcome.score for several in outcomes.values() for outcome in several}
        facts = self.diagnostics
        if values != {0.5} or not facts.judged:
            return
        note = f" It contradicts itself with the places swapped on {facts.inconsistent:,} of them."
        raise StudyError(
            f"The judge ({self.options.label}) prefers none of the answers that it compared, on "
            f"{facts.judged:,} pairs, so no comparison can be "
            f"decided.{note if facts.inconsistent else ''}"
        )

    @property
    def diagnostics(self) -> JudgeDiagnostics:
        """Properties of all verdicts so far."""
        with self._lock:
            items = list(self._known.items())
        pairs = [
            JudgedPair(judgement, _length(key[1]), _length(key[2])) for key, judgement in items
        ]
        return JudgeDiagnostics.of(pairs)

    def facts(self, **more: Any) -> JudgeFacts:
        """Return the facts about the judge so far; ``more`` are further fields."""
        with self._lock:
            items, costs = list(self._known.items()), {k: dict(v) for k, v in self.costs.items()}
        diagnostics, options = self.diagnostics, self.options
        return JudgeFacts(
            judge=options.label,
            picks=str(options.picks),
            reference=_reference_text(self.reference),
            chosen=self.chosen,
            is_length_controlled=options.length_controlled,
            diagnostics=diagnostics,
            second=None if options.second is None else label_of(options.second),
            agreement=self.agreement[0],
            kappa=self.agreement[1],
            warnings=(*self.warnings, *trust_warnings(diagnostics)),
            unread=self._unread(items),
            costs=dict(sorted(costs.items())),
            **more,
        )

    def _answer(self, row: dspy.Example, name: str, agents: AsksAgents) -> Any:
        """Return the answer of a system, or the response in a field of the row, by its name."""
        if name.startswith("["):
            return row[name[1:-1]]
        key = (row.id, name)
        if key not in self._answers:
            self._answers[key] = agents.ask(Architecture.parse(name), row)
        return self._answers[key]

    def _compared(
        self, row: dspy.Example, candidate: tuple[str, Any], reference: tuple[str, Any]
    ) -> Judgement:
        if self.reads_names:
            return self._looked_up(row, candidate[0], reference[0])
        texts, reference_texts = texts_of(candidate[1]), texts_of(reference[1])
        if texts is None and reference_texts is None:
            return Judgement(excluded="missing", reason="Neither answered.")
        if texts is None or reference_texts is None:
            # A system without an answer loses to any answer: that needs no judge.
            return Judgement(preference=0.0 if texts is None else 1.0)
        if texts == reference_texts:
            return Judgement(preference=0.5, reason="The responses are equal.")
        first, second = sorted((texts, reference_texts))
        key = (row.id, first, second)
        if key not in self._known:
            judgement = self._ask(self.options.judge, row, first, second)
            with self._lock:
                self._rows[row.id] = row
                if key not in self._known:
                    self._n_lost += judgement.excluded in ("unparsable", "failed")
                self._known.setdefault(key, judgement)
            self._check_readable()
        return self._known[key] if texts == first else self._known[key].turned

    def _ask(self, judge: Any, row: dspy.Example, first: Texts, second: Texts) -> Judgement:
        # A scope of its own: the judge's costs are not costs of the architecture.
        with call_scope(example=row.id) as scope:
            try:
                return as_judgement(judge.compare(row, _plain(first), _plain(second)), row)
            except MoaError:
                raise
            except Exception as error:
                raise MetricError(
                    f"The judge raised {type(error).__name__} on example {row.id!r}: {error}"
                ) from error
            finally:
                self._count(scope.log)

    def _count(self, log: Iterable[CallFacts]) -> None:
        with self._lock:
            for call in log:
                if call.attempt > 0:
                    self.n_made += not call.is_reused
                    tokens = call.prompt_tokens + call.completion_tokens
                    cost = {"calls": 1, "tokens": tokens, "usd": call.usd, "seconds": call.seconds}
                    self.costs[call.agent].update(cost)

    def _looked_up(self, row: dspy.Example, name: str, other: str) -> Judgement:
        other = other.strip("[]")
        if not self.options.judge.knows(name, other):
            raise UnknownCallError(f"No judgement of {name!r} and {other!r} is recorded.")
        judgement: Judgement = self.options.judge.compare(row, name, other)
        first, second = sorted(((name,), (other,)))
        if name != other:
            with self._lock:
                turned = judgement if first == (name,) else judgement.turned
                self._known.setdefault((row.id, first, second), turned)
        return judgement

    def _check_readable(self) -> None:
        """End a study whose judge's replies are unreadable or missing."""
        n, n_lost = len(self._known), self._n_lost
        if (n_lost < n and n < _FEWEST_ASKED) or n < _ALL_UNREAD or n_lost <= MOST_UNREAD * n:
            return
        with self._lock:
            replies = self._unread(list(self._known.items()))
        check_readable(
            f"the judge ({self.options.label})",
            n_asked=n,
            n_unread=n_lost,
            replies=replies,
            most=MOST_UNREAD,
        )

    def _unread(self, items: Sequence[tuple[Any, Judgement]]) -> tuple[str, ...]:
        lost = [reply for _, reply in sorted(items, key=lambda item: item[0]) if reply.excluded]
        reasons = [reply.reason for reply in lost if reply.excluded in ("unparsable", "failed")]
        return tuple(" ".join(text.split())[:_READ_REPLY] for text in reasons[:N_SHOWN])

    def _values(self, judged: Sequence[RowJudgement]) -> NDArray[np.float64]:
        """Return the preferences, length-controlled if so configured; NaN without a verdict."""
        values = np.array([_number(row.preference) for row in judged], np.float64)
        return self._at_equal_length(judged, values) if self.options.length_controlled else values

    def _at_equal_length(
        self, judged: Sequence[RowJudgement], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        controlled = values.copy()
        # A system without an answer lost for that reason, not by its length.
        both = np.array([row.length > 0 and row.reference_length > 0 for row in judged], np.bool_)
        rows = np.flatnonzero(both & ~np.isnan(values)).tolist()
        if len(rows) > 1:
            lengths = [judged[row].length for row in rows]
            others = [judged[row].reference_length for row in rows]
            controlled[rows] = at_equal_length(values[rows], lengths, others)
        return controlled

    def _length_controlled(self, judged: Sequence[RowJudgement]) -> float:
        values = np.array([_number(row.preference) for row in judged], np.float64)
        if (gamed := self.options.gamed) is None:
            return float(np.nanmean(self._at_equal_length(judged, values)))
        return length_controlled(
            values,
            [row.length for row in judged],
            [row.reference_length for row in judged],
            difficulty=[row.difficulty for row in judged],
            gamed=gamed,
            align="instruction",
        ).win_rate


def _reference_text(reference: Architecture | str | None) -> str:
    if isinstance(reference, Architecture):
        return f"the answers of {reference}"
    return "none yet" if reference is None else f"the responses in field {reference!r}"


def _plain(texts: Texts) -> Any:
    return texts[0] if len(texts) == 1 else texts


def _length(texts: Texts | None) -> int:
    return sum(map(len, texts or ()))


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def preferences_between(
    compare: CompareAll, first: Architecture, other: Architecture, rows: Sequence[dspy.Example]
) -> list[float] | None:
    """Return the judge's preferences for ``first`` over ``other``, for the rows with a verdict.

    If the budget is reached, only the rows judged until then count. Return None if the judge only
    has recorded comparisons, and not this one.

    Args:
        compare: Method of the evaluator.
        first: An architecture.
        other: Another architecture.
        rows: Questions.
    """
    judgements: list[Judgement] = []
    try:
        judgements = compare(first, other, rows)
    except UnknownCallError:
        return None
    except BudgetReachedError:
        for row in rows:
            with suppress(BudgetReachedError):
                judgements += compare(first, other, [row])
    return [judged.preference for judged in judgements if judged.preference is not None]

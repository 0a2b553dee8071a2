"""What stands beside the pick: Self-MoA, top-k, and a random search of equal size."""

# DOCS: optimize/finals: The last stage: the pick and its rivals on rows that nothing has seen, once.

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import Splits
from moa_dspy.errors import BudgetReachedError, StudyError, UnknownCallError
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.forecast import TOP_K, baseline_combine, self_moa_of, top_k
from moa_dspy.optimize.nodes import Outcome, means, scores
from moa_dspy.optimize.racing import TrialJudge
from moa_dspy.optimize.result import SystemScore, TrialRecord
from moa_dspy.optimize.selection import best_on_val
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.winrate import (
    Interval,
    Verdict,
    mean_interval,
    oracle,
    simultaneous_intervals,
    verdict,
)

_MOST_REPEATS = 200
"""Known architectures in a row after which the space counts as drawn empty."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A system of the comparison; without an architecture it was not run, for the reason given."""

    name: str
    architecture: Architecture | None
    note: str = ""


def own_prompt(chosen: Architecture) -> list[Baseline]:
    """Return the pick without the prompt that the search gave it; nothing if it gave none."""
    if chosen.prompt is None:
        return []
    return [Baseline("own_prompt", replace(chosen, prompt=None), "the pick with its own prompt")]


def fixed_baselines(context: SearchContext, ranking: Sequence[str]) -> list[Baseline]:
    """Return Self-MoA and top-k, or why they cannot be run."""
    combine = baseline_combine(context.space)
    samples = self_moa_of(ranking, context.pool, combine=combine)
    found = [
        Baseline("self_moa", samples)
        if samples
        else Baseline("self_moa", None, f"{ranking[0]} is greedy: its samples are copies")
    ]
    k = min(TOP_K, len(ranking))
    several = [Baseline("top_k", top_k(ranking, k, combine=combine), f"k = {k}")]
    return found + (several if k > 1 else [Baseline("top_k", None, "the pool has one agent")])


def random_baseline(
    context: SearchContext,
    referee: TrialJudge,
    *,
    n: int,
    canonical: Callable[[Architecture], Architecture],
) -> tuple[Baseline, int]:
    """Return the best on val of ``n`` random architectures, and how many could be measured.

    It gets as many trials as the search had. Live, its calls come from the share of
    the budget kept for it; what that share did not reach is said.
    """
    drawn: list[TrialRecord] = []
    context.pool.calls.ledger.share += context.random_share
    architectures = list(islice(random_draws(context.space, canonical, context.seed), n))
    if context.pool.calls.ledger.budget == Budget():
        referee.announce(architectures)
    for architecture in architectures:
        context.show("random baseline", current=str(architecture), trial=len(drawn))
        try:
            drawn.append(referee.judge(architecture, "random", number=len(drawn)))
        except BudgetReachedError:
            break
    limits = context.limits
    fair = [r for r in drawn if not r.is_stopped_early and limits.admit(r)]
    if not fair:
        note = "its share of the budget did not reach one trial"
        return Baseline("random", None, note), len(drawn)
    best = best_on_val(fair, diversity_weight=context.diversity_weight)
    note = f"best of {len(drawn)} random architectures"
    return Baseline("random", Architecture.parse(best.architecture), note), len(drawn)


def random_draws(
    space: SearchSpace, canonical: Callable[[Architecture], Architecture], seed: int
) -> Iterator[Architecture]:
    """Yield the architectures of the random baseline, each once, always in the same order."""
    rng = random.Random(f"random-{seed}")
    seen: set[Architecture] = set()
    repeats = 0
    while repeats < _MOST_REPEATS:
        architecture = canonical(space.draw(rng))
        repeats = repeats + 1 if architecture in seen else 0
        if repeats == 0:
            seen.add(architecture)
            yield architecture


@dataclass(frozen=True, slots=True)
class ComparedSystems:
    """Rows on val and test by name, paired differences on test, and the verdict."""

    val: Mapping[str, SystemScore]
    test: Mapping[str, SystemScore]
    differences: Mapping[str, Interval]
    verdict: Verdict


class TestComparison:
    """Measures the pick and its rivals on val and on test.

    Args:
        context: Gives pool, space, options and progress.
        evaluator: Runs architectures.
        splits: Val was looked at; test is looked at here.
        ranking: Single agents by val score, best first.
    """

    def __init__(
        self,
        context: SearchContext,
        evaluator: Evaluator,
        splits: Splits,
        ranking: Sequence[str],
    ) -> None:
        self._context, self._evaluator, self._splits = context, evaluator, splits
        self._ranking = ranking

    def compare(self, chosen: Architecture, random_baseline: Baseline) -> ComparedSystems:
        """Touch the test rows, once, for the pick, the fixed rivals and every single agent.

        Raises:
            StudyError: If the budget ends before the pick and the best single agent are measured.
        """
        self._context.pool.calls.ledger.share = 1.0
        best = self._ranking[0]
        first = [Baseline("best_single", Architecture.single(best)), Baseline("pick", chosen)]
        fixed = fixed_baselines(self._context, self._ranking)
        rivals = [*first, *own_prompt(chosen), *fixed, random_baseline]
        self._announce(rivals)
        found = {rival.name: self._measure(rival, self._splits.test) for rival in rivals}
        for name in ("best_single", "pick"):
            if isinstance(found[name], str):
                raise StudyError(f"The {name} could not be tested: {found[name]}")
        test = {rival.name: _row(rival, found[rival.name]) for rival in rivals}
        val = {r.name: _row(r, self._measure(r, self._splits.val)) for r in rivals}
        test["oracle"], val["oracle"] = (
            self._oracle(self._splits.test),
            self._oracle(self._splits.val),
        )
        measured = {n: scores(o) for n, o in found.items() if not isinstance(o, str)}
        mine = measured.pop("pick")
        others = {n: s for n, s in measured.items() if test[n].architecture != str(chosen)}
        decided = verdict(
            mine,
            measured["best_single"],
            pick_is_single=not chosen.layers,
            names=(str(chosen), best),
            gain=self._context.gain,
        )
        # The difference that is decided has the verdict's interval, here and there.
        primary = {"best_single": decided.interval} if others.pop("best_single", None) else {}
        level = decided.interval.confidence
        return ComparedSystems(
            val=_ordered(val),
            test=_ordered(test),
            differences=primary | simultaneous_intervals(mine, others, confidence=level),
            verdict=decided,
        )

    def _announce(self, rivals: Sequence[Baseline]) -> None:
        # Money is spent in the order of measuring: what a budget may not reach is not begun.
        if self._context.pool.calls.ledger.budget == Budget():
            wanted = [r.architecture for r in rivals if r.architecture is not None]
            singles = map(Architecture.single, self._ranking)
            self._evaluator.announce(dict.fromkeys([*wanted, *singles]), self._splits.test)

    def _measure(self, rival: Baseline, rows: Sequence[dspy.Example]) -> tuple[Outcome, ...] | str:
        """Return outcomes, or the reason why there are none."""
        if rival.architecture is None:
            return rival.note
        self._context.show("test", current=f"{rival.name}: {rival.architecture}")
        try:
            return self._evaluator.measure(rival.architecture, rows)
        except BudgetReachedError as error:
            return str(error)
        except UnknownCallError:
            return "not in the recording"

    def _oracle(self, rows: Sequence[dspy.Example]) -> SystemScore:
        """Return the best single agent of each question: the ceiling of any choice among them."""
        found = {
            name: self._measure(Baseline(name, Architecture.single(name)), rows)
            for name in self._ranking
        }
        if missing := [name for name, o in found.items() if isinstance(o, str)]:
            return SystemScore("oracle", None, None, note=f"{missing[0]}: {found[missing[0]]}")
        best = oracle({n: scores(o) for n, o in found.items() if not isinstance(o, str)})
        interval = mean_interval(best)
        note = "best single agent of each question"
        return SystemScore(
            "oracle", None, interval.estimate, interval.low, interval.high, note=note
        )


def _row(rival: Baseline, outcomes: tuple[Outcome, ...] | str) -> SystemScore:
    text = str(rival.architecture) if rival.architecture else None
    if isinstance(outcomes, str):
        return SystemScore(rival.name, text, None, note=outcomes)
    interval = mean_interval(scores(outcomes))
    row = SystemScore(
        rival.name, text, interval.estimate, interval.low, interval.high, note=rival.note
    )
    return replace(row, **means(outcomes))


def _ordered(rows: Mapping[str, SystemScore]) -> dict[str, SystemScore]:
    order = ("pick", "best_single", "own_prompt", "self_moa", "top_k", "random", "oracle")
    return {name: rows[name] for name in order if name in rows}

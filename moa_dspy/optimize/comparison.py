"""The comparison on test rows: the pick beside the best single agent and other baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import dspy
import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.data.splits import Splits
from moa_dspy.errors import BudgetReachedError, UnknownCallError
from moa_dspy.optimize.early_facts import COSTS
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.judge_facts import DirectComparison, JudgedSystem
from moa_dspy.optimize.judging import preferences_between
from moa_dspy.optimize.metric import Outcome, means, scores
from moa_dspy.optimize.objectives import best_on_val
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.progress import Progress, StageWork
from moa_dspy.optimize.result import ComparedSystems, SystemScore, TrialRecord
from moa_dspy.optimize.space.programs import (
    SELF_MOA_SAMPLES,
    fixed_baselines,
    read_architecture,
    with_n_calls,
)
from moa_dspy.optimize.trials import TrialJudge
from moa_dspy.pool import Pool
from moa_dspy.winrate.intervals import Interval, mean_interval, oracle
from moa_dspy.winrate.tests import decision_interval, examples_needed, simultaneous_intervals
from moa_dspy.winrate.verdict import (
    CostVerdict,
    CrossFitted,
    Verdict,
    cost_verdict,
    cost_verdicts,
    verdict,
)

MOST_TESTED_OF_FRONT = 8
"""Most members of a front that are tested, from best to cheapest, as each costs like a baseline."""
_UNKNOWN = Interval(0.0, -1.0, 1.0, 0.95)  # for a difference that was not measured
_CHOSEN = ("pick", "best_single", "best_without_limits", "own_prompt")
_ORDER = (*_CHOSEN, "self_moa", "top_k", "random", "oracle")


@dataclass(frozen=True, slots=True)
class Baseline:
    """A system of the comparison; one without an architecture cannot be run, as ``note`` says."""

    name: str
    architecture: Architecture | None
    note: str = ""


def measure_random_baseline(
    options: SearchOptions,
    judge: TrialJudge,
    progress: Progress,
    draws: Iterator[Architecture],
    *,
    n: int,
    may_announce: bool,
) -> Baseline:
    """Return the best on val of ``n`` random architectures, or of those that could be measured.

    It gets as many trials as the search had. Its calls come from the share of the budget
    that is reserved for it; the note says if that was not enough for one trial.

    Args:
        options: Options of the search.
        judge: Measures architectures.
        progress: Shows each of them.
        draws: Random architectures.
        n: Most architectures to measure.
        may_announce: Whether workers may begin with all of them at once.
    """
    drawn, architectures = list[TrialRecord](), list(islice(draws, n))
    if may_announce:
        judge.announce(architectures)
    for architecture in architectures:
        work = StageWork(len(architectures), "trials", judge.n_rows, architecture.calls)
        progress.show("random baseline", current=str(architecture), trial=len(drawn), work=work)
        try:
            drawn.append(judge.judge(architecture, "random", number=len(drawn)))
        except BudgetReachedError:
            break
    fair = [r for r in drawn if not r.is_stopped_early and options.limits.admit(r)]
    if not fair:
        return Baseline("random", None, "its share of the budget did not reach one trial")
    best = best_on_val(fair, diversity_weight=options.diversity_weight)
    note = f"best of {len(drawn)} random architectures"
    return Baseline("random", read_architecture(best.architecture), note)


def compared_baselines(
    options: SearchOptions,
    ranking: Sequence[str],
    pick: Architecture,
    best_single: Architecture,
    random_baseline: Baseline,
) -> list[Baseline]:
    """Return all systems that are compared on test; those that the verdict needs come first.

    Args:
        options: Options of the search.
        ranking: Single agents by val score, best first.
        pick: The choice of the search.
        best_single: The best single agent within the limits.
        random_baseline: See ``measure_random_baseline``.
    """
    baselines = [Baseline("best_single", best_single), Baseline("pick", pick)]
    best = Architecture.single(ranking[0])
    if best != best_single:
        note = "the best single agent if there were no limits"
        baselines.append(Baseline("best_without_limits", best, note))
    if pick.prompt is not None:
        own = replace(pick, prompt=None)
        baselines.append(Baseline("own_prompt", own, "the pick with its own prompt"))
    return [*baselines, *_fixed_baselines(options, ranking, pick), random_baseline]


def _fixed_baselines(
    options: SearchOptions, ranking: Sequence[str], pick: Architecture
) -> list[Baseline]:
    """Return Self-MoA with as many calls as the pick, and top-k, or why they cannot be run."""
    samples, several = fixed_baselines(ranking, options.pool, options.space)
    copies = f"{ranking[0]} is greedy: asked as often as the pick, it says the same each time"
    if options.pool[ranking[0]].is_recorded:  # at an unknown temperature
        copies = f"the table has one answer of {ranking[0]} per question"
    often = with_n_calls(samples, pick.calls) if samples else None
    note = f"k = {len(several.layers[-1])}" if several else "the pool has one agent"
    return [Baseline("self_moa", often, "" if often else copies), Baseline("top_k", several, note)]


@dataclass(frozen=True, slots=True)
class _Measured:
    """The outcomes of a baseline on the rows that could be measured, in the rows' order."""

    baseline: Baseline
    n_rows: int
    outcomes: Mapping[str, Outcome]
    missing: str = ""

    @property
    def is_whole(self) -> bool:
        return len(self.outcomes) == self.n_rows

    @property
    def scores(self) -> list[float]:
        return scores(list(self.outcomes.values()))

    @property
    def scores_read(self) -> list[float]:
        """The scores of the rows on which a judge decided; of all rows if it decided on none."""
        read = [outcome.score for outcome in self.outcomes.values() if not outcome.is_filled]
        return read or self.scores

    def row(self, pool: Pool) -> SystemScore:
        name, architecture = self.baseline.name, self.baseline.architecture
        text = str(architecture) if architecture else None
        # The verdict may use a part of the rows, as that part does not depend on the results.
        is_shown = self.is_whole or (name in ("pick", "best_single") and self.outcomes)
        if not is_shown:
            return SystemScore(name, text, None, note=self.missing)
        interval, n = mean_interval(self.scores_read), len(self.outcomes)
        row = SystemScore(name, text, interval.estimate, interval.low, interval.high, n_rows=n)
        unknown = pool.unknown_costs(architecture.agents if architecture else ())
        costs = {**means(list(self.outcomes.values())), **dict.fromkeys(unknown)}
        row = replace(row, note=self.baseline.note, n_missing=self.n_rows - n, **costs)
        return replace(row, note=f"{row.part}: {self.missing}") if row.part else row


def compare_on_test(
    options: SearchOptions,
    evaluator: Evaluator,
    splits: Splits,
    progress: Progress,
    baselines: Sequence[Baseline],
    ranking: Sequence[str],
    may_announce: bool,
    front: Sequence[TrialRecord] = (),
    on_val: CrossFitted | None = None,
) -> ComparedSystems:
    """Measure the pick, every baseline and every single agent on the test rows, once.

    Members of the front that may cost less come last, so that they take no budget from others.
    If the budget ends before the pick and the best single agent are measured, the verdict uses
    the rows on which both were measured, or says that there are none.

    Args:
        options: Options of the search.
        evaluator: Runs architectures.
        splits: The rows; those of test are used here for the first time.
        progress: Shows each system.
        baselines: Made by ``compared_baselines``.
        ranking: Single agents by val score, best first.
        may_announce: Whether workers may begin with all of them at once.
        front: The Pareto front, best first.
        on_val: Cross-fitted scores on val of pick and best single agent.
    """
    if may_announce:
        every = [*(system.architecture for system in baselines), *map(Architecture.single, ranking)]
        evaluator.announce(dict.fromkeys(filter(None, every)), splits.test)
    measure = _Measurer(evaluator, progress)
    on_test = partial(measure, rows=splits.test)
    single, pick = map(on_test, baselines[:2])
    if single.baseline.architecture == pick.baseline.architecture:
        single = replace(pick, baseline=single.baseline)  # of as many rows where the budget ends
    # Before the other baselines, as the verdict needs it and the budget may end.
    direct = measure.directly(pick, single, splits.test)
    rest = [measure.recorded(baseline, splits.test) for baseline in baselines[2:]]
    test = {system.baseline.name: system for system in (single, pick, *map(on_test, rest))}
    val = {baseline.name: measure(baseline, splits.val) for baseline in (*baselines[:2], *rest)}
    oracles = [measure.oracle(ranking, rows) for rows in (splits.test, splits.val)]
    on_val = on_val if direct is None else None  # on val the two were not compared directly
    others = [record for record in front if record.architecture != str(baselines[1].architecture)]
    decided = _verdict(pick, single, val, direct, on_val, min_gain=options.min_gain)
    if (reason := measure.chance() if decided.n else None) is not None:
        decided, others = decided.by_chance(reason), []  # nothing cheaper can be proven as good
    # What chooses among the answers of single agents needs no new calls on test.
    free = [r for r in others if read_architecture(r.architecture).chooses_among_singles]
    return ComparedSystems(
        val=_ordered(val, oracles[1], options.pool),
        test=_ordered(test, oracles[0], options.pool),
        differences=_differences(test, decided),
        verdict=decided,
        cost_verdict=None if reason is not None else _cost_verdict(options, test, on_val),
        front_verdicts=_for_less(options, _best_of_all(test), _best_of_all(val), others, on_test),
        savings=_for_less(options, pick, val["pick"], free, on_test),
        direct=DirectComparison.of(direct, n_rows=len(splits.test)) if direct else None,
        judged={"val": measure.judged(val), "test": measure.judged(test)},
    )


def _differences(test: Mapping[str, _Measured], decided: Verdict) -> dict[str, Interval]:
    """Return the pick minus each other system that was measured on all test rows."""
    pick = test["pick"]
    if not pick.is_whole:
        return {}
    others = {
        name: system.scores
        for name, system in test.items()
        if system.is_whole and system.baseline.architecture != pick.baseline.architecture
    }
    # A verdict that uses val too, or a judge, has another difference than this one.
    single = others.pop("best_single", None)
    primary = {} if single is None else {"best_single": decision_interval(pick.scores, single)}
    level = decided.interval.confidence
    return primary | simultaneous_intervals(pick.scores, others, confidence=level)


def _cost_verdict(
    options: SearchOptions, test: Mapping[str, _Measured], on_val: CrossFitted | None
) -> CostVerdict | None:
    """Return whether the pick is as good as the best agent of all, for less.

    None without a cost among objectives and limits, or where it was not measured.
    """
    pick, single = test["pick"], _best_of_all(test)
    is_other = pick.baseline.architecture != single.baseline.architecture
    is_known = is_other and pick.is_whole and single.is_whole
    cost = _compared_cost(options, single) if is_known else None
    if cost is None:
        return None
    return cost_verdict(
        pick.scores,
        single.scores,
        costs=_costs(pick),
        single_costs=_costs(single),
        # The scores on val are of the best single agent within the limits only.
        val=on_val if single is test["best_single"] else None,
        cost=cost,
        names=(str(pick.baseline.architecture), str(single.baseline.architecture)),
        margin=options.min_gain,
    )


def _for_less(
    options: SearchOptions,
    single: _Measured,
    on_val: _Measured,
    front: Sequence[TrialRecord],
    measure: Callable[[Baseline], _Measured],
) -> dict[str, CostVerdict]:
    """Return whether those members of the front that cost less on val than a system are as good."""
    cost = _compared_cost(options, single) if single.is_whole and on_val.is_whole else None
    if cost is None:
        return {}
    # Means of the same numbers, added in another order, differ by rounding.
    most, own = _costs(on_val)[cost] * (1 - 1e-9), str(single.baseline.architecture)
    cheaper = [r for r in front if r.architecture != own and getattr(r, cost) < most]
    n = min(len(cheaper), MOST_TESTED_OF_FRONT)
    chosen = (cheaper[round(i * (len(cheaper) - 1) / max(n - 1, 1))] for i in range(n))
    members = [read_architecture(record.architecture) for record in chosen]
    systems = {str(candidate): measure(Baseline("front", candidate)) for candidate in members}
    whole = {name: system for name, system in systems.items() if system.is_whole}
    return cost_verdicts(
        {name: system.scores for name, system in whole.items()},
        single.scores,
        costs={name: _costs(system) for name, system in whole.items()},
        single_costs=_costs(single),
        cost=cost,
        single_name=str(single.baseline.architecture),
        margin=options.min_gain,
    )


def _best_of_all(measured: Mapping[str, _Measured]) -> _Measured:
    """Return the best single agent, whatever it costs."""
    return measured.get("best_without_limits", measured["best_single"])


def _compared_cost(options: SearchOptions, single: _Measured) -> str | None:
    """Return the first of usd, seconds and calls that is an objective or limit, and not 0."""
    costs = _costs(single)
    return next((name for name in options.compared_costs if costs[name] > 0), None)


def _costs(system: _Measured) -> dict[str, float]:
    """Return the mean cost of a question, by the names in ``COSTS``."""
    averages = means(list(system.outcomes.values()))
    return {name: averages[name] for name in COSTS}


@dataclass(frozen=True, slots=True)
class _Measurer:
    evaluator: Evaluator
    progress: Progress

    def __call__(self, baseline: Baseline, rows: Sequence[dspy.Example]) -> _Measured:
        architecture, n_rows = baseline.architecture, len(rows)
        if architecture is None:
            return _Measured(baseline, n_rows, {}, baseline.note)
        text = str(architecture)
        named = text if text == baseline.name else f"{baseline.name}: {text}"
        self.progress.show("test", current=named)
        reason = ""
        try:
            self.evaluator.measure(architecture, rows)
        except BudgetReachedError as error:
            reason = str(error)
        except UnknownCallError:
            reason = "not in the recording"
        known_rows = [row for row in rows if self.evaluator.knows(architecture, [row])]
        pairs = zip(known_rows, self.evaluator.measure(architecture, known_rows), strict=True)
        return _Measured(baseline, n_rows, {row.id: outcome for row, outcome in pairs}, reason)

    def recorded(self, baseline: Baseline, rows: Sequence[dspy.Example]) -> Baseline:
        """Return Self-MoA with as many samples as a recording has; other baselines as they are."""
        architecture = baseline.architecture
        if baseline.name != "self_moa":
            return baseline
        while architecture is not None and len(architecture.layers[0]) > SELF_MOA_SAMPLES:
            try:
                self.evaluator.measure(architecture, rows[:1])
                break
            except UnknownCallError:
                architecture = replace(architecture, layers=(architecture.layers[0][1:],))
            except BudgetReachedError:
                break
        return replace(baseline, architecture=architecture)

    def directly(
        self, pick: _Measured, single: _Measured, rows: Sequence[dspy.Example]
    ) -> list[float] | None:
        """Return the judge's preferences for the pick over the best single agent, if it picks."""
        picked, other = pick.baseline.architecture, single.baseline.architecture
        is_judged = self.evaluator.judging is not None and self.evaluator.judging.picks
        if not is_judged or picked is None or other is None or not picked.layers:
            return None
        return preferences_between(self.evaluator.compare, picked, other, rows)

    def chance(self) -> str | None:
        """Return why the judge's preferences may be chance; None if nothing indicates it."""
        judging = self.evaluator.judging
        return judging.diagnostics.chance if judging is not None and judging.picks else None

    def judged(self, measured: Mapping[str, _Measured]) -> dict[str, JudgedSystem]:
        """Return the judge's statistics of each system; empty without a judge."""
        if (judging := self.evaluator.judging) is None:
            return {}
        by_name = {name: list(system.outcomes.values()) for name, system in measured.items()}
        return {name: judging.system(outcomes) for name, outcomes in by_name.items() if outcomes}

    def oracle(self, ranking: Sequence[str], rows: Sequence[dspy.Example]) -> SystemScore:
        """Return the best single agent of each question: the most that choosing can reach."""
        systems = [self(Baseline(name, Architecture.single(name)), rows) for name in ranking]
        for system in systems:
            if not system.is_whole:
                return SystemScore(
                    "oracle", None, None, note=f"{system.baseline.name}: {system.missing}"
                )
        best = mean_interval(oracle({member.baseline.name: member.scores for member in systems}))
        score = (best.estimate, best.low, best.high)
        return SystemScore("oracle", None, *score, note="best single agent of each question")


def _verdict(
    pick: _Measured,
    single: _Measured,
    val: Mapping[str, _Measured],
    direct: Sequence[float] | None,
    on_val: CrossFitted | None,
    *,
    min_gain: float,
) -> Verdict:
    """Return the verdict from val and the test rows on which both were measured.

    Where a judge compared the two directly, it tests whether that win rate is above one half.
    """
    common = [row for row in pick.outcomes if row in single.outcomes]
    chosen, baseline = pick.baseline.architecture, single.baseline.architecture
    assert chosen is not None  # pick and best single agent always have one
    names = (str(chosen), str(baseline))
    if direct or (common and direct is None):
        return verdict(
            direct or scores([pick.outcomes[row] for row in common]),
            [0.5] * len(direct or ()) or scores([single.outcomes[row] for row in common]),
            pick_is_single=not chosen.layers,
            val=on_val,
            names=names,
            min_gain=min_gain,
        )
    both = names[0] if chosen == baseline else f"both {names[0]} and {names[1]}"
    lack = (
        f"the judge compared no test answers of {both}"
        if common
        else f"no test row was answered by {both}"
    )
    reason = pick.missing or single.missing
    if not chosen.layers:
        text = f"Keep the single model: the search chose {names[0]}; {lack}. {reason}"
        return Verdict("single", None, _UNKNOWN, 0, 0, text)
    gaps = np.array(val["pick"].scores) - np.array(val["best_single"].scores)
    n_more = examples_needed(gaps, min_gain=min_gain)
    needed = f"about {n_more} are needed to see a gain of {100 * min_gain:.3g} points"
    text = f"Not enough examples: {lack}; {needed}. {reason}"
    return Verdict("not_enough_examples", None, _UNKNOWN, 0, n_more, text.rstrip())


def _ordered(
    measured: Mapping[str, _Measured], ceiling: SystemScore, pool: Pool
) -> dict[str, SystemScore]:
    rows = {name: system.row(pool) for name, system in measured.items()} | {"oracle": ceiling}
    return {name: rows[name] for name in _ORDER if name in rows}

"""The closing report of a study: the table of the pick and its baselines, facts and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import floor, log10
from typing import Any, Final, NamedTuple

from moa_dspy.optimize.early_facts import Cost, EarlyFacts, StudyEstimate
from moa_dspy.optimize.judge_facts import JudgedSystem, JudgeFacts
from moa_dspy.optimize.result import StudyResult, SystemScore, TrialRecord
from moa_dspy.winrate.intervals import Interval, points


def amount(value: float) -> str:
    """Return an amount with two digits that count at least, never in powers of ten."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 0.1:
        return f"{value:.2f}"
    decimals = max(5, 1 - floor(log10(value)))
    return f"{value:.{decimals}f}".rstrip("0")


def paid(usd: float | None) -> str:
    """Return a sum of money, or that it is unknown."""
    return "an unknown price" if usd is None else f"{amount(usd)} usd"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


MOST_OF_FRONT: Final = 8


def result_lines(result: StudyResult) -> Iterator[str]:
    """Yield the lines, each a fact."""
    yield from _expected(result)
    if result.early is not None:
        yield from early_lines(result.early, with_judge=result.judge is None)
    if result.explained:
        yield _explained(result.explained)
    yield from _front(result)
    if result.judge is not None:
        yield from judge_lines(result.judge)
    yield from prompt_lines(result)
    yield from _spent(result)
    for note in result.notes:
        yield f"Note: {note}"


def early_lines(early: EarlyFacts, *, with_judge: bool = True) -> Iterator[str]:
    """Yield what the single agents showed; a running study shows the same lines.

    Args:
        early: The facts.
        with_judge: Whether what is known of the judge is told too; else it comes later.
    """
    if early.judge is not None and with_judge:
        yield from judge_lines(early.judge)
    if early.judge is not None and early.judge.picks == "judge":
        yield (
            f"Best single agent on {early.n_rows:,} questions of val: {early.leader}, win rate "
            f"{points(early.leader_score)} % against {early.judge.reference}."
        )
    else:
        yield from _solved_lines(early)
    if early.estimate is not None:
        yield _estimate(early.estimate)


def _solved_lines(early: EarlyFacts) -> Iterator[str]:
    yield (
        f"Best single agent on {early.n_rows:,} questions of val: {early.leader}, "
        f"{points(early.leader_score)} %. {early.unsolved.percent} of them are solved by no agent."
    )
    vote = early.vote_ceiling
    kind = "a vote of different agents with equal weights"
    votes = "" if vote is None else f"{points(vote)} % by {kind}, "
    yield (
        f"At best, on these questions: {votes}{points(early.ceiling)} % by choosing among the "
        "agents' answers; a synthesis can exceed this, as it writes its own."
    )
    if early.is_vote_idle:
        untried, rest = "none is tried as one of the best votes", "baselines, proposals and listed"
        if early.are_answers_unlike:
            untried, rest = "no vote is searched for", "baselines and listed"
        yield (
            f"Two agents agree against {early.leader} on {points(early.contested or 0.0)} % of "
            "the questions only: elsewhere a vote is the answer of its tie-breaker, for several "
            f"calls. For that reason {untried}; {rest} architectures can still be votes."
        )
    if early.lead is not None:
        yield _dominance(early, early.lead)


def _dominance(early: EarlyFacts, lead: Interval) -> str:
    rescued = f"{points(early.rescued)} % of the questions are missed by it and solved by another"
    if not early.is_dominated:
        return f"No agent is clearly better than all others; {early.leader} is best, but {rescued}."
    return (
        f"Warning: {early.leader} is better than all others, by {points(lead.estimate)} points "
        f"{lead.ends} over {early.runner_up}; {rescued}, the most that choosing can add."
    )


def about(likely: float, low: float, high: float, shown: Callable[[float], str] = amount) -> str:
    """Return an expected amount and its range, as every estimate of a study is told."""
    ends = shown(low), shown(high)
    span = "" if ends[0] == ends[1] else f" ({ends[0]} to {ends[1]})"
    return f"about {shown(likely)}{span}"


def paid_about(likely: StudyEstimate, low: StudyEstimate | Cost, high: StudyEstimate | Cost) -> str:
    """Return what a study costs and its range, or that it is unknown."""
    if likely.usd is None:
        return paid(None)
    return f"{about(likely.usd, low.usd or 0.0, high.usd or 0.0)} usd"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _estimate(estimate: StudyEstimate) -> str:
    # An estimate of an older result has no range.
    low, high = estimate.low or estimate, estimate.high or estimate
    judged = f" ({estimate.judge_calls:,.0f} of them by the judge)" if estimate.judge_calls else ""
    calls = about(estimate.calls, low.calls, high.calls, _whole)
    time = about(estimate.seconds, low.seconds, high.seconds, duration)
    whole = (
        f"The whole study takes {calls} calls{judged}, {paid_about(estimate, low, high)}, "
        f"{time if estimate.seconds else 'an unknown time'} without stored answers"
    )
    unit, most = estimate.capped_by, estimate.ceiling
    if unit is None or most is None:
        return f"{whole}."
    limits = {"usd": f"{amount(most)} usd", "seconds": duration(most)}
    limit = limits.get(unit, f"{most:,.0f} {unit}")
    return f"{whole}. Its budget of {limit} is enough for about {100 * estimate.share:.0f} % of it."


def judge_lines(facts: JudgeFacts) -> Iterator[str]:
    """Yield the lines of a report, each a fact; the same early and at the end."""
    diagnostics = facts.diagnostics
    objective = "length-controlled win rate" if facts.is_length_controlled else "win rate"
    basis = objective if facts.picks == "judge" else "the metric; the judge is measured too"
    compares = f"which compares each answer with {facts.reference} ({facts.chosen})"
    yield f"Judge: {facts.judge}, {compares}; the search picks by {basis}."
    lost = [f"{getattr(diagnostics, n)} {n}" for n in ("unparsable", "failed", "missing")]
    lost = [text for text in lost if not text.startswith("0 ")]
    excluded = f"; left out for both systems: {', '.join(lost)}" if lost else ""
    yield (
        f"Judged: {diagnostics.judged:,} of {diagnostics.n:,} pairs of responses{excluded}. "
        f"Ties {points(diagnostics.ties)} %."
    )
    yield from _diagnostic_lines(facts)
    for warning in facts.warnings:
        yield f"Warning on the judge: {warning}"
    for agent, cost in facts.costs.items():
        yield f"Cost of judge {agent}: {cost['calls']:,.0f} calls, {amount(cost['usd'])} usd."
    yield from _final_lines(facts)


def _diagnostic_lines(facts: JudgeFacts) -> Iterator[str]:
    diagnostics = facts.diagnostics
    if diagnostics.consistency is not None:
        yield (
            f"Same verdict in both orders: {diagnostics.consistency.percent} of pairs; "
            f"{diagnostics.inconsistent:,} pairs with opposite verdicts."
        )
    if diagnostics.length is not None:
        length = diagnostics.length
        span = f"[{length.low:+.2f}, {length.high:+.2f}]"
        yield f"Preference and length, rank correlation: {length.estimate:+.2f} {span}."
    if facts.agreement is not None:
        kappa = "" if facts.kappa is None else f", kappa {facts.kappa.estimate:.2f}"
        yield f"Agreement with {facts.second} on a sample: {facts.agreement.percent}{kappa}."


def _final_lines(facts: JudgeFacts) -> Iterator[str]:
    if (direct := facts.direct) is not None:
        left = f", {direct.excluded} left out" if direct.excluded else ""
        yield (
            "For the verdict, pick and best single agent were compared directly: the pick wins "
            f"{points(direct.win_rate)} % of {direct.n} test questions{left}, ties counting half."
        )
    for name, row in facts.systems.get("test", {}).items():
        yield f"- {name} on test: {_judged_system(row)}"
    for name, r in facts.follows.items():
        yield (
            f"{name}: its answer follows the better proposals with rank correlation "
            f"{r['mean']:+.2f} +- {r['standard_error']:.2f} on {r['n']:.0f} questions of val."
        )


def _judged_system(row: JudgedSystem) -> str:
    parts = [f"win rate {_percent(row.win_rate)} on {row.n} questions"]
    if row.length_controlled is not None:
        parts.append(f"length-controlled {_percent(row.length_controlled)}")
    if row.metric is not None:
        parts.append(f"metric {_percent(row.metric)}")
    if row.excluded:
        parts.append(f"{row.excluded} without a verdict")
    return ", ".join(parts)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{points(value)} %"


def _expected(result: StudyResult) -> Iterator[str]:
    expected = result.expected
    if expected is None:
        yield f"Optimism: the pick's val score is about {points(result.optimism)} points too high."
        return
    on_val = result.val.get("pick")
    score = None if on_val is None else on_val.score
    note = "" if score is None else f"its score on val was {points(score)} %, "
    yield (
        f"Expected on test, from val alone: {points(expected.estimate)} % {expected.ends} for a "
        f"pick made this way; {note}with an optimism of {points(result.optimism)} points. The "
        "test score above is the measurement."
    )


def _explained(shares: Mapping[str, float]) -> str:
    named = {name.replace("earlier", "earlier layers"): value for name, value in shares.items()}
    parts = ", ".join(f"{name} {100 * value:.0f} %" for name, value in named.items())
    return f"What explains the differences between architectures on your data: {parts}."


def _front(result: StudyResult) -> Iterator[str]:
    if not result.front:
        return
    records = {record.architecture: record for record in result.trials}
    which = "the only architecture" if (n := len(result.front)) == 1 else f"{n} architectures"
    yield f"Front: {which} that no other beats on every objective; on val, per question:"
    proven = {name for name, entry in result.front_verdicts.items() if entry.kind == "as_good"}
    shown = [name for i, name in enumerate(result.front) if i < MOST_OF_FRONT or name in proven]
    for name in shown:
        mark = " (knee)" if name == result.knee else ""
        yield f"- {name}{mark}{measured_text(records.get(name))}"
        if name in result.front_verdicts:
            yield f"  {result.front_verdicts[name].text}"
    if n > len(shown):
        yield f"- and {n - len(shown)} more in the result."
    if result.knee is not None:
        yield f"Knee: {result.knee}, if the objectives are equally important."
    yield from _savings(result)


_LESS: Final = {"calls": "fewer calls", "usd": "less money", "seconds": "less time"}


def _savings(result: StudyResult) -> Iterator[str]:
    """Yield what val chose for less, and what spares most of those that test shows as good."""
    if result.for_less is not None:
        record = next(r for r in result.trials if r.architecture == result.for_less)
        yield f"Cheaper, no worse than the pick on val: {result.for_less}{measured_text(record)}."
    proven = {name: entry for name, entry in result.savings.items() if entry.kind == "as_good"}
    if not proven:
        return
    name, saving = min(proven.items(), key=lambda item: item[1].ratio)
    yield (
        f"As good as the pick for {100 * (1 - saving.ratio):.0f} % {_LESS[saving.cost]}: {name}, "
        f"{points(saving.estimate, sign='+')} points {saving.interval.ends} against the pick on "
        f"{saving.n:,} test questions, so not worse by {points(saving.margin)} points."
    )


def measured_text(record: TrialRecord | None) -> str:
    """Return what val said of an architecture and its costs, to stand after its name."""
    if record is None:
        return ""
    usd = "" if record.usd is None else f", {amount(1000 * record.usd)} usd per 1,000"
    seconds = "" if record.seconds is None else f", {amount(record.seconds)} s"
    return f": {points(record.score)} %, {record.calls:.1f} calls{usd}{seconds}"


def prompt_lines(result: StudyResult) -> Iterator[str]:
    """Yield what became of every prompt tried, with its diff where it was accepted."""
    for prompt in result.prompts:
        name, origin = prompt.get("name", "?"), prompt.get("origin", "")
        author = f", by {origin}" if origin else ""
        yield f"Prompt {name}{author}: {_fate(prompt)}."
        if prompt.get("accepted") and (diff := str(prompt.get("diff") or "")):
            yield from (f"  {line}" for line in diff.splitlines())


def _fate(prompt: Mapping[str, Any]) -> str:
    accepted, val = prompt.get("accepted"), prompt.get("val")
    refused = "not proven better, so not used"
    fate = "tried" if accepted is None else "accepted" if accepted else refused
    if not val:
        return f"{fate}, but not measured on all val questions" if accepted is None else fate
    score = f"{points(val['score'])} % on val with {val['architecture']}"
    own = val.get("own")
    beside = "" if own is None else f", {points(own)} % with the aggregator's own prompt"
    return f"{fate}; {score}{beside}"


def _spent(result: StudyResult) -> Iterator[str]:
    n, size = len(result.trials), result.space_size
    space = "" if size is None else f" of {size:,} possible"
    if size is not None and n > size:
        space = f"; the space has {size:,}, and baselines outside it were measured too"
    end = f"; {result.stopped_by.rstrip('.')}" if result.stopped_by else ""
    yield f"Search: {n:,} architectures measured{space}{end}."
    is_late = " seconds is reached" in (result.stopped_by or "")
    beyond = " in all; a budget of seconds ends calls, not the computation of the result"
    usd = result.usd if result.calls_made else 0.0
    spent = f"{result.calls_made:,} calls made, {result.calls_reused:,} reused, {paid(usd)}"
    yield f"Cost: {spent}, {duration(result.seconds)}{beyond if is_late else ''}."
    if failed := _counts({agent: str(n) for agent, n in result.failures.items() if n}):
        yield f"Failed responses: {failed}."
        yield from (f"{n:,} times: {text}" for text, n in result.failure_reasons.items())
    yield from _cut(result)
    shares = {name: row.failures for name, row in result.test.items() if row.failures}
    if unanswered := _counts({name: f"{points(share)} %" for name, share in shares.items()}):
        yield f"Test questions without an answer, which score 0: {unanswered}."


def _cut(result: StudyResult) -> Iterator[str]:
    limited, filtered = (
        _counts({agent: str(n[reason]) for agent, n in result.cut.items() if n.get(reason)})
        for reason in ("length", "content_filter")
    )
    if limited:
        yield f"Responses cut by the token limit: {limited}. Raise `max_tokens` of these agents."
    if filtered:
        yield f"Responses ended by the endpoint's content filter: {filtered}."


def _counts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


ORDER: Final = ("pick", "best_single", "self_moa", "top_k", "random", "oracle")
"""Rows that stand first; others follow as the study named them."""

NONE: Final = "—"


class Column(NamedTuple):
    """A column of fixed width; those of a higher rank are left out first in a narrow terminal."""

    head: str
    width: int
    rank: int


TABLE_COLUMNS: Final = {
    "test": Column("test %", 13, 0),
    "difference": Column("pick minus\nrow, points", 13, 0),
    "val": Column("val %", 5, 3),
    "calls": Column("calls/\nquest.", 6, 2),
    "usd": Column("usd/1,000\nquestions", 9, 1),
    "seconds": Column("s/\nquest.", 6, 4),
}


def row_names(result: StudyResult) -> list[str]:
    """Return the names of the rows that the study has, in the table's order."""
    rows = {**result.test, **result.val}
    return [n for n in ORDER if n in rows] + [n for n in rows if n not in ORDER]


def row_cells(result: StudyResult, name: str) -> dict[str, str]:
    """Return the cells of one row as text, by column."""
    row, val = result.test.get(name), result.val.get(name)
    system = row or val
    cells = dict.fromkeys(TABLE_COLUMNS, NONE)
    cells |= {"system": name, "architecture": _row_label(system)}
    if val is not None and val.score is not None:
        cells["val"] = points(val.score)
    if row is None or row.score is None:
        return cells
    interval = result.score_interval(row)
    cells["test"] = f"{points(row.score)}{_brackets(*interval)}\n{row.part}".rstrip()
    cells["difference"] = NONE if name == "pick" else _difference(result.differences.get(name))
    cells["calls"] = NONE if row.calls is None else f"{row.calls:.1f}"
    cells["usd"] = NONE if row.usd is None else amount(1000 * row.usd)
    cells["seconds"] = NONE if row.seconds is None else amount(row.seconds)
    return cells


def _row_label(row: SystemScore | None) -> str:
    if row is None:
        return NONE
    if row.score is None:
        return f"not run: {row.note}" if row.note else "not run"
    return row.architecture or row.note or NONE


def _brackets(low: float | None, high: float | None, *, sign: str = "") -> str:
    if low is None or high is None:
        return ""
    return f"\n[{points(low, sign=sign)}, {points(high, sign=sign)}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return points(interval.estimate, sign="+") + _brackets(interval.low, interval.high, sign="+")


def brackets_line(result: StudyResult) -> str:
    """Return what the brackets of the table are, and what the verdict counts besides."""
    level = f"{100 * result.verdict.interval.confidence:.3g} %"
    sentence = (
        f"In brackets: 95 % intervals of scores, and {level} intervals of differences on these "
        "test questions: for the best single agent alone, for the other rows simultaneously."
    )
    return sentence if (more := verdict_rows(result)) is None else f"{sentence} {more}"


def verdict_rows(result: StudyResult) -> str | None:
    """Return the difference that the verdict rests on; None where it is that of the table."""
    decided, shown = result.verdict.interval, result.differences.get("best_single")
    if shown is None or decided == shown or result.verdict.p_value is None:
        return None
    difference = f"{points(decided.estimate, sign='+')} points {decided.ends}"
    if result.judge is not None and result.judge.direct is not None:
        return f"The verdict is of another difference, of answers judged directly: {difference}."
    return (
        "The verdict counts the val questions too, each judged by a choice that was made without "
        f"it: {difference} on {result.verdict.n:,} questions of val and test together."
    )


def verdict_lines(result: StudyResult) -> list[str]:
    """Return the verdicts; where costs were asked about, that on costs is the headline."""
    if result.cost_verdict is None:
        return [result.verdict.text]
    return [result.cost_verdict.text, result.verdict.text]


def program_line(result: StudyResult) -> str:
    """Return which program the study writes, and whether it is the pick."""
    reason = "the pick" if result.recommended == result.pick else "the best single agent"
    return f"Program: {result.recommended} ({reason})"

"""The lines below a study's table: what to expect, what was known early, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from moa_dspy.optimize.early import EarlyFacts, Estimate
from moa_dspy.optimize.report._numbers import amount, duration, points
from moa_dspy.optimize.result import StudyResult, TrialRecord
from moa_dspy.winrate import Interval

MOST_OF_FRONT: Final = 8


def facts(result: StudyResult) -> Iterator[str]:
    """Yield the lines, each a fact."""
    yield from _expected(result)
    if result.early is not None:
        yield from early_lines(result.early)
    if result.explained:
        yield _explained(result.explained)
    yield from _front(result)
    yield from prompt_lines(result)
    yield from _spent(result)
    for note in result.notes:
        yield f"Note: {note}"


def early_lines(early: EarlyFacts) -> Iterator[str]:
    """Yield what the single agents told; a running study shows the same lines."""
    yield (
        f"Best single agent on {early.n_rows:,} questions of val: {early.leader}, "
        f"{points(early.leader_score)} %. No agent solves {_share(early.unsolved)} of them."
    )
    vote = early.vote_ceiling
    votes = "" if vote is None else f"one vote {points(vote)} %, "
    yield (
        f"At best, on these questions: {votes}choosing among the agents' answers "
        f"{points(early.ceiling)} %; a synthesis writes its own."
    )
    if early.lead is not None:
        yield _dominance(early, early.lead)
    if early.estimate is not None:
        yield _estimate(early.estimate)


def _dominance(early: EarlyFacts, lead: Interval) -> str:
    rescued = f"{points(early.rescued)} % of the questions are missed by it and solved by another"
    if not early.is_dominated:
        return f"No agent is clearly above all others; {early.leader} is best, but {rescued}."
    return (
        f"Warning: {early.leader} is above every other agent, by {points(lead.estimate)} points "
        f"{_span(lead)} over {early.rival}; {rescued}, the most that choosing can add."
    )


def _estimate(estimate: Estimate) -> str:
    end = f"; the budget of {estimate.capped_by} ends it there" if estimate.capped_by else ""
    return (
        f"Estimate of the whole study, nothing stopped early: {estimate.calls:,.0f} calls, "
        f"{amount(estimate.usd)} usd, {duration(estimate.seconds)}{end}."
    )


def _expected(result: StudyResult) -> Iterator[str]:
    expected = result.expected
    if expected is None:
        yield f"Optimism: val flatters the pick by about {points(result.optimism)} points."
        return
    on_val = result.val.get("pick")
    said = "" if on_val is None or on_val.score is None else f"val said {points(on_val.score)} %, "
    yield (
        f"On new questions we expect {points(expected.estimate)} % {_span(expected)} of a pick "
        f"made this way; {said}an optimism of {points(result.optimism)} points."
    )


def _explained(shares: Mapping[str, float]) -> str:
    parts = [f"{name} {100 * value:.0f} %" for name, value in shares.items()]
    return f"What explains the differences between architectures on your data: {', '.join(parts)}."


def _front(result: StudyResult) -> Iterator[str]:
    if not result.front:
        return
    records = {record.architecture: record for record in result.trials}
    n = len(result.front)
    yield f"Front: {n} architectures that no other beats on every objective; on val, per question:"
    for name in result.front[:MOST_OF_FRONT]:
        mark = " (knee)" if name == result.knee else ""
        yield f"- {name}{mark}{_costs(records.get(name))}"
    if n > MOST_OF_FRONT:
        yield f"- and {n - MOST_OF_FRONT} more in the result."
    if result.knee is not None:
        yield f"Knee: {result.knee}, if the objectives matter alike."


def _costs(record: TrialRecord | None) -> str:
    if record is None:
        return ""
    usd = f"{amount(1000 * record.usd)} usd per 1,000"
    return (
        f": {points(record.score)} %, {record.calls:.1f} calls, {usd}, {amount(record.seconds)} s"
    )


def prompt_lines(result: StudyResult) -> Iterator[str]:
    """Yield what became of every prompt tried, with its diff where it was accepted."""
    for prompt in result.prompts:
        name, origin = prompt.get("name", "?"), prompt.get("origin", "")
        made = f", by {origin}" if origin else ""
        yield f"Prompt {name}{made}: {_fate(prompt)}."
        if prompt.get("accepted") and (diff := str(prompt.get("diff") or "")):
            yield from (f"  {line}" for line in diff.splitlines())


def _fate(prompt: Mapping[str, Any]) -> str:
    accepted = prompt.get("accepted")
    if accepted is None:
        return "tried"
    return "accepted" if accepted else "not proven better, so not used"


def _spent(result: StudyResult) -> Iterator[str]:
    space = "" if result.space_size is None else f" of {result.space_size:,} possible"
    end = f"; {result.stopped_by.rstrip('.')}" if result.stopped_by else ""
    yield f"Search: {len(result.trials):,} architectures measured{space}{end}."
    yield (
        f"Cost: {result.calls_made:,} calls made, {result.calls_reused:,} reused, "
        f"{amount(result.usd)} usd, {duration(result.seconds)}."
    )
    if failed := _counts({agent: str(n) for agent, n in result.failures.items() if n}):
        yield f"Failed responses: {failed}."
    shares = {name: row.failures for name, row in result.test.items() if row.failures}
    if unanswered := _counts({name: f"{points(share)} %" for name, share in shares.items()}):
        yield f"Test questions without an answer, which score 0: {unanswered}."


def _counts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _share(interval: Interval) -> str:
    return f"{points(interval.estimate)} % {_span(interval)}"


def _span(interval: Interval) -> str:
    return f"[{points(interval.low)}, {points(interval.high)}]"

"""Facts that follow from the single agents' answers, before more money is spent.

Upper bounds on the score of a vote and of a choice among the answers, the lead of one agent, and
the check that the scores can tell systems apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, combinations, islice
from math import comb
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import StudyError
from moa_dspy.optimize.judge_facts import JudgeFacts, shown_reply
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.winrate import Interval, co_failure, oracle, simultaneous_intervals

MOST_CELLS: Final = 40_000_000
"""Limit on sets of agents x answers, below which every set is tried: a third of a second."""
_AT_ONCE = 512  # a block of this size fits into the processor's cache

_Floats = NDArray[np.float64]


def vote_ceiling(ballots: Ballots, *, max_width: int) -> float:
    """Return a score that no vote of up to ``max_width`` agents, weighing one each, beats here.

    In [0, 1]. Every set of agents is tried; its best agents decide ties, as in all votes of a
    search. If there are too many sets, an upper bound is returned that the best may not reach.

    Args:
        ballots: Answers of each agent alone.
        max_width: Maximum number of members of a vote, at least 1; a vote of one is that agent.
    """
    ballots, width = ballots.ranked(), min(max_width, len(ballots.agents))
    members, values, starts = _answers(ballots)
    if not starts.size:
        return 0.0
    n, sizes = len(ballots.agents), range(1, width + 1)
    if sum(comb(n, k) for k in sizes) * values.size > MOST_CELLS:
        return _bound(ballots, width)
    best, n_answers = 0.0, np.diff(starts, append=values.size)
    # Of as many votes, those with the best member are more: 1/2 is more than 1/4 + 1/8 + ...
    counts = 1 + 0.5 ** np.array(sizes)
    sets = chain.from_iterable(combinations(range(n), k) for k in sizes)
    while block := list(islice(sets, _AT_ONCE)):
        votes = np.zeros((n, len(block)))
        for column, seats in enumerate(block):
            votes[list(seats), column] = counts[: len(seats)]
        standing = members @ votes
        most = np.maximum.reduceat(standing, starts, axis=0).repeat(n_answers, axis=0)
        won = values @ ((standing == most) & (standing > 0))
        best = max(best, float(won.max()) / ballots.codes.shape[1])
    return best


def _bound(ballots: Ballots, width: int) -> float:
    """Bound the score of every vote: an answer of one agent wins only where this decides ties."""
    given = np.where(ballots.codes >= 0, ballots.scores, 0.0)
    # Where an agent is silent, another may decide a tie.
    may_win = _is_shared(ballots.codes) | (ballots.codes < 0).any(0)
    alone = np.where(may_win, 0.0, given).mean(1).max()
    together = _best_cover(np.where(may_win, given, 0.0), width)
    return min(_best_cover(given, width), float(alone) + together)


def _answers(ballots: Ballots) -> tuple[_Floats, _Floats, NDArray[np.intp]]:
    """Return the agents that gave each answer, (answers, agents), its score, and each row's start.

    Rows on which all answers score 0 are left out, as every vote scores 0 there.
    """
    members: list[NDArray[np.bool_]] = []
    values: list[float] = []
    starts: list[int] = []
    for codes, scores in zip(ballots.codes.T, ballots.scores.T, strict=True):
        answers = [codes == code for code in np.unique(codes[codes >= 0])]
        worth = [float(scores[agent].max()) for agent in answers]
        if max(worth, default=0.0) > 0:
            starts.append(len(values))
            members += answers
            values += worth
    table = np.array(members, np.float64).reshape(len(values), len(ballots.agents))
    return table, np.array(values), np.array(starts, np.intp)


def _best_cover(scores: _Floats, width: int) -> float:
    """Bound the mean best score within any ``width`` agents, (agents, rows).

    The mean best score of a set is submodular, so no set beats the greedily built one by
    more than the sum of the ``width`` largest gains that single agents would still add to it
    (Nemhauser, Wolsey & Fisher 1978).
    """
    covered = np.zeros(scores.shape[1])
    bound = float(scores.max(0).mean())
    for _ in range(width):
        gains = (np.maximum(scores, covered) - covered).mean(1)
        bound = min(bound, float(covered.mean() + np.sort(gains)[-width:].sum()))
        covered = np.maximum(covered, scores[gains.argmax()])
    return bound


def contested_share(ballots: Ballots, leader: str) -> float:
    """Return the share of rows on which two or more agents agree against ``leader``."""
    own = ballots.codes[ballots.agents.index(leader)]
    return float((_is_shared(ballots.codes) & (ballots.codes != own)).any(0).mean())


def agreed_share(ballots: Ballots) -> float:
    """Return the share of rows on which any two agents give the same answer."""
    return float(_is_shared(ballots.codes).any(0).mean())


def _is_shared(codes: NDArray[np.int16]) -> NDArray[np.bool_]:
    n_givers: NDArray[np.intp] = ((codes[:, None] == codes) & (codes >= 0)).sum(1)
    return n_givers > 1


COSTS: Final = ("usd", "seconds", "calls")
"""Objectives that are costs."""
SOLVED = 0.5
"""A row counts as solved from this score on, as in ``co_failure``."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one question: calls, tokens, usd, and seconds to the answer."""

    calls: float = 0.0
    tokens: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.seconds + other.seconds,
        )

    def __mul__(self, n: float) -> Cost:
        return Cost(n * self.calls, n * self.tokens, n * self.usd, n * self.seconds)


def middle_of(simulations: Sequence[Mapping[str, Cost]]) -> dict[str, Cost]:
    """Return the likely cost of each stage; the stages add up to the likely cost of the study.

    In each unit, it is the mean of the middle third of the simulations by the cost of the whole
    study, which is near their median.
    """
    middles: dict[str, dict[str, float]] = {name: {} for name in simulations[0]}
    n_cut = (len(simulations) - 1) // 3
    for unit in (cost_field.name for cost_field in fields(Cost)):
        ordered = sorted(simulations, key=lambda simulation: getattr(simulation["all"], unit))
        middle = ordered[n_cut : len(simulations) - n_cut]
        for name, costs in middles.items():
            costs[unit] = fmean(getattr(simulation[name], unit) for simulation in middle)
    return {name: Cost(**costs) for name, costs in middles.items()}


READ_PER_WRITTEN: Final = 10
"""Tokens that a processor reads in the time of writing one: measured 4 to 27, three models."""


@dataclass(frozen=True, slots=True)
class AgentCosts:
    """The cost of a question to one agent alone, and of further tokens that it reads and writes.

    Attributes:
        alone: Mean cost of a question.
        reply_tokens: Mean tokens of a reply, as billed.
        text_tokens: Mean tokens of its answer for another agent that reads it.
        usd_per_prompt_token, usd_per_reply_token: Prices of this agent.
        is_greedy: Whether all samples of it are equal.
        max_concurrent: Requests at a time; None means no limit.
        is_local: Whether it runs on this machine's processor, where reading takes time.
        processor_share: Share of the processor that a question takes; 0 if the time is of many.
    """

    alone: Cost
    reply_tokens: float = 0.0
    text_tokens: float = 0.0
    usd_per_prompt_token: float = 0.0
    usd_per_reply_token: float = 0.0
    is_greedy: bool = False
    max_concurrent: int | None = None
    is_local: bool = False
    processor_share: float = 0.0

    def reading(self, tokens: float, *, reply: float | None = None) -> Cost:
        """Return the cost with ``tokens`` more tokens to read and a reply of ``reply`` tokens."""
        n = max(1.0, self.alone.calls)  # each turn of a conversation reads these tokens
        tokens *= n
        less = 0.0 if reply is None else max(0.0, self.reply_tokens - n * reply)
        usd = tokens * self.usd_per_prompt_token - less * self.usd_per_reply_token
        seconds = self._seconds_per_token * (tokens - READ_PER_WRITTEN * less)
        return self.alone + Cost(0.0, tokens - less, usd, seconds)

    @property
    def _seconds_per_token(self) -> float:
        """Seconds per token that is read: 0 on servers, which read faster than replies vary."""
        read, written = self.alone.tokens - self.reply_tokens, READ_PER_WRITTEN * self.reply_tokens
        return self.alone.seconds / max(1.0, read + written) if self.is_local else 0.0


@dataclass(frozen=True, slots=True)
class StudyEstimate:
    """Expected calls, price and time of the whole study, the single agents on val included.

    Attributes:
        calls: Requests to models, without regard to the budget.
        usd: At the prices of the pool; None if one of them is unknown.
        seconds: Wall time.
        capped_by: The limit of the budget that ends the study early, or None.
        ceiling: Value of that limit, in its own unit; None if no limit ends the study.
        share: Part of the study that the budget pays for, in (0, 1].
        judge_calls: Number of calls of a judge.
        tokens: Prompt and completion tokens.
        low: Lower end of a range that contains nine studies of ten; None if unknown.
        high: Upper end of this range.
        stages: Cost of each stage, in order; empty if unknown.
    """

    calls: float
    usd: float | None
    seconds: float
    capped_by: str | None = None
    ceiling: float | None = None
    share: float = 1.0
    judge_calls: float = 0.0
    tokens: float = 0.0
    low: Cost | None = None
    high: Cost | None = None
    stages: Mapping[str, Cost] = field(default_factory=dict[str, Cost])

    def within(self, limits: Any) -> StudyEstimate:
        """Return the estimate with the limit reached first, of a ``Budget`` or a like object."""
        shares = {
            name: limit / needed
            for name in (cost_field.name for cost_field in fields(Cost))
            if (limit := getattr(limits, name)) is not None and (needed := getattr(self, name))
        }
        first = min(shares, key=lambda name: shares[name], default=None)
        if first is None or shares[first] >= 1:
            return self
        ceiling = float(getattr(limits, first))
        return replace(self, capped_by=first, ceiling=ceiling, share=shares[first])

    def with_own_work(self, seconds: float) -> StudyEstimate:
        """Return the estimate with additional seconds, in which no call is made."""
        both = (self.low, self.high)
        low, high = (end and replace(end, seconds=end.seconds + seconds) for end in both)
        return replace(self, seconds=self.seconds + seconds, low=low, high=high)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyEstimate:
        """Return the estimate from the result of ``asdict``."""
        ends = {name: content.get(name) for name in ("low", "high")}
        costs = {name: None if end is None else Cost(**end) for name, end in ends.items()}
        stages = {name: Cost(**cost) for name, cost in content.get("stages", {}).items()}
        return cls(**{**content, **costs, "stages": stages})


IDLE: Final = 0.01
"""Share of rows below which votes are not tried: it bounds their gain, and so small a gain takes
tens of thousands of questions to show."""


@dataclass(frozen=True, slots=True)
class EarlyFacts:
    """Facts about every mixture that follow from its single agents alone, on the rows of val.

    Attributes:
        n_rows: Rows measured.
        leader: The best single agent.
        leader_score: Its mean score, in [0, 1].
        unsolved: Share of rows on which every agent scores below 0.5, with a 95 % interval.
        ceiling: Mean of the best score of each row: the maximum of any choice among the answers.
        vote_ceiling: Score that no vote of one set of agents, with equal weights, one sample each
            and ties to the best agent, exceeds; None if no vote may be tried or answers are not
            ballots.
        agreed: Share of rows on which two or more agents give the same answer; None if no vote may
            be tried.
        contested: Share of rows on which two or more agents give the same answer, other than the
            leader's. On all other rows a vote with the leader returns the leader's answer. None
            if no vote may be tried.
        runner_up: The agent that comes closest to the leader; None in a pool of one.
        lead: Leader minus runner_up, paired; simultaneous 95 % interval for the leads over all
            agents; the runner_up is the agent with the smallest lower end.
        rescued: Share of rows that the leader misses and another agent solves.
        estimate: Expected cost of the whole study; None if it was not computed.
        judge: Reliability of the judge, from its judgements so far; None without a judge.
    """

    n_rows: int
    leader: str
    leader_score: float
    unsolved: Interval
    ceiling: float
    vote_ceiling: float | None = None
    contested: float | None = None
    runner_up: str | None = None
    lead: Interval | None = None
    rescued: float = 0.0
    estimate: StudyEstimate | None = None
    judge: JudgeFacts | None = None
    agreed: float | None = None

    @property
    def are_answers_unlike(self) -> bool:
        """True if answers are free text, of which practically no two are equal."""
        return self.agreed is not None and self.runner_up is not None and self.agreed < IDLE

    @property
    def is_vote_idle(self) -> bool:
        """True if agents agree against the leader on so few rows that votes cannot pay.

        On free text no two answers are equal: a vote then returns its tie-breaker's answer at the
        price of several calls. None is tried as one of the best, and only tried ones are picked.
        """
        return self.contested is not None and self.contested < IDLE

    @property
    def is_dominated(self) -> bool:
        """True if the leader is clearly above every other agent."""
        return self.lead is not None and self.lead.low > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EarlyFacts:
        """Return the facts whose ``to_json`` was ``content``."""
        plain = dict(content)
        lead, estimate, judge = plain.pop("lead"), plain.pop("estimate"), plain.pop("judge", None)
        return cls(
            unsolved=Interval(**plain.pop("unsolved")),
            **plain,
            lead=None if lead is None else Interval(**lead),
            estimate=None if estimate is None else StudyEstimate.from_json(estimate),
            judge=None if judge is None else JudgeFacts.from_json(judge),
        )


def early_facts(
    scores: Mapping[str, Sequence[float] | NDArray[np.float64]],
    *,
    ballots: Ballots | None = None,
    max_width: int = 1,
    estimate: StudyEstimate | None = None,
    judge: JudgeFacts | None = None,
) -> EarlyFacts:
    """Return the facts about mixtures that follow from single agents' scores on the same rows.

    Args:
        scores: Scores in [0, 1] per row, by agent, at least one row.
        ballots: Ballots of the answers; None if no vote may be tried.
        max_width: Maximum number of members of a vote.
        estimate: Expected cost of the whole study.
        judge: Facts about the judge, in a study with one.

    Raises:
        MetricError: If there is no agent or no row, or if agents have different rows.
    """
    best = oracle(scores)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    leader = max(means, key=lambda name: round(means[name], 12))
    leader_scores = np.asarray(scores[leader], np.float64)
    leads = simultaneous_intervals(leader_scores, {n: s for n, s in scores.items() if n != leader})
    runner_up = min(leads, key=lambda name: leads[name].low) if leads else None
    return EarlyFacts(
        n_rows=best.size,
        leader=leader,
        leader_score=means[leader],
        unsolved=co_failure(scores, threshold=SOLVED),
        ceiling=float(best.mean()),
        vote_ceiling=None if ballots is None else vote_ceiling(ballots, max_width=max_width),
        contested=None if ballots is None else contested_share(ballots, leader),
        runner_up=runner_up,
        lead=None if runner_up is None else leads[runner_up],
        rescued=float(((leader_scores < SOLVED) & (best >= SOLVED)).mean()),
        estimate=estimate,
        judge=judge,
        agreed=None if ballots is None else agreed_share(ballots),
    )


Undecidable = Literal["all_wrong", "all_right", "all_equal"]
"""Reason why scores cannot decide: all 0, all 1, or equal for all agents on every row."""


def undecidable(scores: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> Undecidable | None:
    """Return why the single agents' scores cannot tell any two systems apart, or None.

    Args:
        scores: Per row, by agent, all on the same rows.
    """
    table = np.array([np.asarray(row, np.float64) for row in scores.values()])
    if not table.size:
        return None
    if (table <= 0).all():
        return "all_wrong"
    if (table >= 1).all():
        return "all_right"
    # A single agent is equal to itself, but its mixtures may still differ from it.
    return "all_equal" if len(table) > 1 and (np.ptp(table, axis=0) < 1e-12).all() else None


def check_decidable(
    scores: Mapping[str, Sequence[float] | NDArray[np.float64]],
    *,
    gold: str,
    replies: Mapping[str, Sequence[str]],
) -> None:
    """Stop a study if the single agents' scores cannot tell systems apart.

    Equal scores are no error for copies of one model, whose replies are equal on every row.

    Args:
        scores: Per row, by agent.
        gold: Expected answer of the first row, as text; empty if it is not known.
        replies: Replies of each agent, per row.

    Raises:
        StudyError: If all scores are 0, all are 1, or the agents score equally on every row.
    """
    case = undecidable(scores)
    are_copies = len({tuple(texts) for texts in replies.values()}) == 1
    if case is None or (case == "all_equal" and are_copies):
        return
    n_rows = len(next(iter(scores.values())))
    subject = f"All {len(scores)} agents score" if len(scores) > 1 else "The only agent scores"
    where = f"all {n_rows:,} questions of val" if n_rows > 1 else "the only question of val"
    statement = {
        "all_wrong": f"{subject} 0 on {where}",
        "all_right": f"{subject} 100 % on {where}",
        "all_equal": f"{subject} the same on each of {where}",
    }[case]
    shown = "; ".join(f"{name} replied {shown_reply(texts[0])}" for name, texts in replies.items())
    raise StudyError(
        f"{statement}, so no comparison can be decided. Is the metric or the format of the answers "
        f"wrong? {f'Expected {shown_reply(gold)}; ' if gold else ''}{shown}."
    )

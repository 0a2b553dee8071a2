"""Weights of a vote, learned from recorded answers, and the loss of a vote that stops early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.votes.ballots import Ballots, StopRule, stopped_scores, won_by
from moa_dspy.optimize.votes.smoothing import (
    REDRAWN,
    DrawnAnswers,
    answer_sampler,
    drawn_answers,
    redrawn_gains,
)

_Floats: TypeAlias = NDArray[np.float64]
_Rows: TypeAlias = NDArray[np.intp]
VoteWeights: TypeAlias = Mapping[str, float]
"""The weight of each member of a vote."""

RIDGES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Penalties on the deviation of a weight (inverse variances); the likeliest one is taken."""
_FREE = 1e-3  # penalty on level and slope: makes the maximum unique, too small to matter
_N_NEWTON_STEPS = 15
_CONVERGED = 1e-6
_DECIMALS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The different answers to each row on which agents differ.

    Attributes:
        given: (answers, members), 1.0 where the member gave the answer.
        worth: (answers,), the mean score of the members that gave it.
        starts: (rows,), the index of the first answer of each row.
        sizes: (rows,), the number of its answers.
    """

    given: _Floats
    worth: _Floats
    starts: _Rows
    sizes: _Rows

    @classmethod
    def of(cls, ballots: Ballots) -> _Table:
        codes, answers = ballots.codes, np.arange(max(int(ballots.codes.max()) + 1, 1))
        is_given = (codes[:, :, None] == answers).transpose(1, 2, 0)
        counts = is_given.sum(2)
        worth = np.einsum("qlm,mq->ql", is_given, ballots.scores) / np.maximum(counts, 1)
        differs = ((counts > 0).sum(1) > 1) & (worth.sum(1) > 0)
        is_answer = (counts > 0) & differs[:, None]
        sizes = is_answer.sum(1)[differs]
        starts = np.concatenate([[0], sizes.cumsum()])[:-1]
        return cls(is_given[is_answer].astype(np.float64), worth[is_answer], starts, sizes)


def learned_weights(ballots: Ballots, *, ridge: float | None = None) -> tuple[_Floats, float]:
    """Return the weight of each agent's answer (their mean is 1), and the ridge used.

    A conditional logit: the chance that an answer is the right one among the different answers
    to a question is the softmax of the sums of its members' weights. A graded score counts as
    the chance to be right. A weight is a + b x + d, with x the log-odds of the agent's mean
    score: ``a`` and ``b`` are free, and the ridge penalty shrinks ``d`` to 0. The ridge is the
    one that makes the answers likeliest (Laplace's approximation), unless it is given.

    Neither names nor the order of the agents matter. An agent that would only do harm gets 0.
    """
    table, x = _Table.of(ballots), _log_odds(ballots)
    if not table.given.size:
        return np.ones(len(ballots.agents)), ridge or RIDGES[-1]
    fits = [_fit(table, x, ridge=strength) for strength in (RIDGES if ridge is None else (ridge,))]
    best = max(range(len(fits)), key=lambda i: fits[i][1])
    weights = fits[best][0].clip(0.0)
    mean = weights.mean()
    scaled = weights / mean if mean > 0 else np.ones(len(weights))
    return scaled, RIDGES[best] if ridge is None else ridge


def _log_odds(ballots: Ballots) -> _Floats:
    n = ballots.scores.shape[1]
    share = ballots.scores.mean(1).clip(0.5 / n, 1 - 0.5 / n)
    odds = np.log(share / (1 - share))
    centred: _Floats = odds - odds.mean()
    return centred


def _fit(table: _Table, x: _Floats, *, ridge: float) -> tuple[_Floats, float]:
    """Return the weights of the greatest penalised likelihood, and Laplace's log evidence."""
    n_agents = len(x)
    columns = np.column_stack([np.ones(n_agents), x, np.eye(n_agents)])
    penalty = np.r_[_FREE, _FREE, np.full(n_agents, ridge)]
    seen = table.given @ columns
    at = _equal_weights(len(penalty))
    loss, slope, bend = _likelihood(table, seen, at, penalty)
    for _ in range(_N_NEWTON_STEPS):
        step, before = np.linalg.solve(bend, slope), loss
        # The loss is convex: a halved step always helps in the end.
        for size in (1.0, 0.5, 0.25, 0.125, 0.0625):
            improved = _likelihood(table, seen, at - size * step, penalty)
            if improved[0] <= loss:
                at, (loss, slope, bend) = at - size * step, improved
                break
        if before - loss < _CONVERGED * (1 + abs(loss)):
            break
    evidence = 0.5 * n_agents * np.log(ridge) - loss - 0.5 * np.linalg.slogdet(bend)[1]
    return columns @ at, float(evidence)


def _equal_weights(n: int) -> _Floats:
    """Return the parameters of weights that are all 1, to which the penalties shrink."""
    weights = np.zeros(n)
    weights[0] = 1.0
    return weights


def _likelihood(
    table: _Table, seen: _Floats, at: _Floats, penalty: _Floats
) -> tuple[float, _Floats, _Floats]:
    """Return minus the penalised log-likelihood, its gradient and its Hessian."""
    starts, sizes, worth = table.starts, table.sizes, table.worth
    utility = seen @ at
    utility -= np.maximum.reduceat(utility, starts).repeat(sizes)
    chance = np.exp(utility)
    size = np.add.reduceat(chance, starts)
    chance /= size.repeat(sizes)
    log_chance = utility - np.log(size).repeat(sizes)
    deviation = at - _equal_weights(len(at))
    loss = 0.5 * float(penalty @ deviation**2) - float(worth @ log_chance)
    expected = np.add.reduceat(worth, starts).repeat(sizes) * chance
    mean = np.add.reduceat(chance[:, None] * seen, starts, axis=0).repeat(sizes, axis=0)
    scaled = (seen - mean) * np.sqrt(expected)[:, None]
    slope = penalty * deviation - (worth - expected) @ seen
    return loss, slope, scaled.T @ scaled + np.diag(penalty)


Members: TypeAlias = tuple[str, ...]
Rule: TypeAlias = Callable[[Ballots], Sequence[VoteWeights]]
"""Makes a fixed number of votes from ballots with the best agent first; a vote of one member is
that agent alone, and an empty one means that no such members are admitted."""
N_FOLDS: Final = 10
N_PARTITIONS: Final = 3
"""Random partitions into folds that are averaged, as a single one is noisy."""
COLUMNS: Final = 24_000
"""Redrawn questions of a partition."""
MOST_SETS: Final = 2_000
"""Most sets of agents that are tried until one is admitted."""


@dataclass(frozen=True, slots=True, eq=False)
class CrossFittedVotes:
    """Ways of making a vote, each scored on rows that did not choose its members and weights.

    Attributes:
        votes: The vote that each way makes from all rows; no two are alike.
        smoothed: (ways, rows), the score, on redrawn answers to a row, of the vote made without it.
        recorded: (partitions, ways, rows), the same on the recorded answers.
        folds: (partitions, rows), the number of the fold with which a row was left out.
        ranking: All agents, best recorded mean first.
    """

    votes: tuple[VoteWeights, ...]
    smoothed: _Floats
    recorded: _Floats
    folds: NDArray[np.intp]
    ranking: Members

    def gains(self, over: int) -> tuple[_Floats, _Floats]:
        """Return by how much each way beats the one at ``over``, and the standard error of that."""
        return redrawn_gains(self.smoothed, self.recorded.mean(0), over=over)


def cross_fit(
    ballots: Ballots,
    *,
    widths: tuple[int, int],
    seed: int,
    admits: Callable[[Members], bool],
    admits_weighted: Callable[[Members], bool] | None = None,
    columns: int = COLUMNS,
    partitions: int = N_PARTITIONS,
) -> CrossFittedVotes:
    """Return the votes of the best agents, equal and weighted, cross-fitted; makes no call.

    The ways: the best k agents with equal weights, for each admitted width; the best agents of
    the greatest width, and the widest admitted vote, with learned weights and with weights
    halfway between learned and equal; the mean of the two with learned weights. Each is made from
    nine tenths of the rows and scored on the rest, ten times, in each of three partitions, on
    answers half of which are redrawn (see ``smooth``). With fewer than ten rows nothing can be
    left out, and no weights are learned.

    Args:
        ballots: The answers of every agent alone.
        widths: Fewest and most members of a vote with equal weights.
        seed: Seed of partitions and redrawing.
        admits: Whether these members may vote with equal weights; a single one answers alone.
        admits_weighted: Whether they may vote with weights, in any number; None allows none.
        columns: Redrawn questions of a partition.
        partitions: Number of random partitions of the rows.
    """
    from threadpoolctl import threadpool_limits

    # Tables this small are slower on several threads, and far slower beside other processes.
    with threadpool_limits(1):
        ranked = ballots.ranked()
        ways = _ways(ranked, widths, admits, admits_weighted)
        return _cross_fit(ranked, ways, seed, columns=columns, partitions=partitions)


def _cross_fit(
    ranked: Ballots, ways: Sequence[Rule], seed: int, *, columns: int, partitions: int
) -> CrossFittedVotes:
    n = ranked.codes.shape[1]
    all_votes = [dict(vote) for rule in ways for vote in rule(ranked)]
    kept = [i for i, item in enumerate(all_votes) if item and item not in all_votes[:i]]
    votes = tuple(all_votes[i] for i in kept)
    rng = np.random.default_rng([seed, n])
    folds = np.array([rng.permutation(np.arange(n) % N_FOLDS) for _ in range(partitions)])
    smoothed, recorded = np.zeros((len(votes), n)), np.zeros((partitions, len(votes), n))
    sampler = answer_sampler(ranked)
    for part, fold in enumerate(folds):
        drawn = drawn_answers(sampler, n, seed=seed + part, columns=columns)
        for k in range(N_FOLDS):
            outside = np.flatnonzero(fold == k)
            inside = np.flatnonzero(fold != k) if n >= N_FOLDS else np.arange(n)
            if not len(outside):
                continue
            training = ranked.take(inside).ranked()
            now = [vote for rule in ways for vote in rule(training)]
            for i, place in enumerate(kept):
                vote = now[place] or {training.agents[0]: 1.0}
                counted = _counted(vote, training.agents, ranked, drawn, outside)
                recorded[part, i, outside] = counted[0]
                smoothed[i, outside] += counted[1] / partitions
    return CrossFittedVotes(votes, smoothed, recorded, folds, ranked.agents)


def _ways(
    ranked: Ballots,
    widths: tuple[int, int],
    admits: Callable[[Members], bool],
    admits_weighted: Callable[[Members], bool] | None,
) -> list[Rule]:
    n, (fewest, most) = len(ranked.agents), widths
    equal = range(max(fewest, 2), min(most, n) + 1)
    ways: list[Rule] = [partial(_equal, width=k, admits=admits) for k in (1, *equal)]
    if admits_weighted is None or ranked.codes.shape[1] < N_FOLDS:
        return ways
    may = admits_weighted
    widest = next((k for k in range(n, 1, -1) if _best_of(ranked, k, may)), 0)
    weighted = sorted({min(most, widest), widest} - {0, 1})
    ridges = {width: _ridge(ranked, width, may) for width in weighted}
    return [*ways, partial(_all_weighted, ridges=ridges, admits=may)]


def _best_of(ranked: Ballots, width: int, admits: Callable[[Members], bool]) -> Members | None:
    """Return the first admitted set of ``width`` agents, sets with the best agents first."""
    sets = islice(combinations(ranked.agents, width), MOST_SETS)
    return next((members for members in sets if admits(members)), None)


def _equal(ranked: Ballots, *, width: int, admits: Callable[[Members], bool]) -> list[VoteWeights]:
    return [dict.fromkeys(_best_of(ranked, width, admits) or (), 1.0)]


def _ridge(ranked: Ballots, width: int, admits: Callable[[Members], bool]) -> float:
    members = _best_of(ranked, width, admits)
    return learned_weights(ranked.among(members))[1] if members else RIDGES[-1]


def _weighted(
    ranked: Ballots, *, width: int, admits: Callable[[Members], bool], ridge: float
) -> list[VoteWeights]:
    """Return the vote with learned weights, and that with weights halfway to equal ones."""
    members = _best_of(ranked, width, admits)
    if members is None:
        return [{}, {}]
    learned = learned_weights(ranked.among(members), ridge=ridge)[0]
    return [_rounded_vote(members, learned), _rounded_vote(members, (learned + 1) / 2)]


def _all_weighted(
    ranked: Ballots, *, ridges: Mapping[int, float], admits: Callable[[Members], bool]
) -> list[VoteWeights]:
    """Return the votes with weights of each width, and the mean of those with learned weights.

    Args:
        ranked: Agents, best first.
        ridges: By number of members.
        admits: Whether these members may vote with weights.
    """
    pairs = [_weighted(ranked, width=k, admits=admits, ridge=ridges[k]) for k in ridges]
    votes = [vote for pair in pairs for vote in pair]
    return [*votes, _mean_vote([learned for learned, _ in pairs], admits)]


def _mean_vote(votes: Sequence[VoteWeights], admits: Callable[[Members], bool]) -> VoteWeights:
    """Return the mean of votes that are given the same sum of weights; {} for less than two."""
    members = tuple(dict.fromkeys(name for vote in votes for name in vote))
    if len(votes) < 2 or not all(votes) or not admits(members):
        return {}
    totals = [(vote, sum(vote.values())) for vote in votes]
    shares = [[vote.get(name, 0.0) / total for name in members] for vote, total in totals]
    return _rounded_vote(members, np.mean(shares, 0) * len(members))


def _rounded_vote(members: Members, weights: _Floats) -> VoteWeights:
    rounded = {name: round(float(w), _DECIMALS) for name, w in zip(members, weights, strict=True)}
    vote = {name: weight for name, weight in rounded.items() if weight > 0}
    # Equal weights are always written as 1, so that equal votes compare equal.
    return dict.fromkeys(vote, 1.0) if len(set(vote.values())) == 1 else vote


def _counted(
    vote: VoteWeights, best_first: Members, ranked: Ballots, drawn: DrawnAnswers, outside: _Rows
) -> tuple[_Floats, _Floats]:
    """Return the score of a vote on the recorded answers to some rows, and on redrawn ones."""
    order = sorted(vote, key=best_first.index)
    if len(set(vote.values())) > 1:
        order[1:] = sorted(order[1:], key=lambda name: (-vote[name], name))
    seats = [ranked.agents.index(name) for name in order]
    counts = np.array([vote[name] for name in order])
    rows, codes, right = drawn
    n_each = len(rows) // ranked.codes.shape[1]
    # Columns stand row by row, each row's draws side by side.
    places = (outside[:, None] * n_each + np.arange(n_each)).ravel()
    at = np.ix_(np.array(seats), np.array(places))
    won = won_by(codes[at], right[at].astype(np.float32), counts)
    cells = np.ix_(np.array(seats), np.array(outside))
    recorded = won_by(ranked.codes[cells], ranked.scores[cells], counts)
    return recorded, won.reshape(len(outside), n_each).mean(1)


@dataclass(frozen=True, slots=True, eq=False)
class StoppedVotes:
    """One vote under several stop rules, on rows half of whose answers are redrawn.

    Attributes:
        stops: The rules.
        calls: Members that are asked on average.
        exact_calls: The same where a member is skipped only if it cannot change the answer.
        gains: Score minus that of the vote of all members.
        errors: Standard errors of the gains: from the sample of rows, and from chance in the
            recorded answers, half of which the redrawn ones repeat.
    """

    stops: tuple[StopRule, ...]
    calls: NDArray[np.float64]
    exact_calls: float
    gains: NDArray[np.float64]
    errors: NDArray[np.float64]


STOPPED_COLUMNS: Final = 24_000
"""Redrawn questions of a vote that stops."""


def stop_early(
    ballots: Ballots,
    members: Sequence[str],
    stops: Sequence[StopRule],
    weights: Mapping[str, float],
    *,
    seed: int,
    columns: int = STOPPED_COLUMNS,
    asks_all: bool = False,
) -> StoppedVotes:
    """Return the change in score, and the number of members asked, under each stop rule.

    Args:
        ballots: The answers of every agent alone.
        members: Members of the vote, in the order in which it reads them. The first decides ties
            and is asked first, then the heavier ones.
        stops: The rules.
        weights: Weights of members that do not count 1.
        seed: Seed of the redrawing.
        columns: Redrawn questions.
        asks_all: Whether the vote asks members that cannot change its answer any more.
    """
    ranked = ballots.ranked()
    order = [members[0], *sorted(members[1:], key=lambda member: -weights.get(member, 1.0))]
    seats = [ranked.agents.index(name) for name in order]
    first = [order.index(name) for name in members]
    counts = np.array([weights.get(name, 1.0) for name in order])
    n = ranked.codes.shape[1]
    _, codes, right = drawn_answers(answer_sampler(ranked), n, seed=seed, columns=columns)
    recorded = stopped_scores(ranked.codes[seats], ranked.scores[seats], counts, first, stops)[0]
    worth = right[seats].astype(np.float64)
    won, depth = stopped_scores(codes[seats], worth, counts, first, stops, asks_all=asks_all)
    gaps = won.reshape(len(won), n, -1).mean(2)
    gaps, luck = (gaps - gaps[-1])[:-1], (recorded - recorded[-1])[:-1]
    squares = gaps.var(1) + (1 - REDRAWN) ** 2 * luck.var(1)
    errors = np.sqrt(squares / (n - 1)) if n > 1 else np.ones(len(gaps))
    calls = depth.mean(1)
    return StoppedVotes(tuple(stops), calls[:-1], float(calls[-1]), gaps.mean(1), errors)

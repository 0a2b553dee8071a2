"""Redrawn answers of single agents, and the score of every vote of the best ones on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import DataError
from moa_dspy.optimize.votes.ballots import AnswerModel, Ballots, fit_answers

Masks = NDArray[np.uint32]
LARGEST_POOL: Final = 15
"""Agents at most: the rank of a group's vote, and whether it is right, then fit into one byte."""
_LAYERS_AT_ONCE = 512  # the table of a block then stays in the cache
_COLUMNS_AT_ONCE = 2048
_CELLS_AT_ONCE = 1 << 22  # layers x rows x answers: 32 MB
_MOST_ONES = 255


@dataclass(frozen=True, slots=True, eq=False)
class AnswerGroups:
    """Groups of agents with one answer in every column, and which of them are right.

    A group is the set of agents with the same answer: a bit mask, and in the 16 bits above it the
    mask of its members that are right. Columns in which no agent is right are left out, as every
    vote on them is wrong.
    """

    rows: NDArray[np.intp]  # (columns,)
    groups: Masks  # (columns, agents), a column's groups first, then 0

    @classmethod
    def of(cls, rows: NDArray[np.intp], codes: NDArray[np.int16], right: NDArray[np.bool_]) -> Self:
        """Return the groups of ``codes``, (agents, columns); -1 is no answer and no group."""
        right = right & (codes >= 0)
        kept = np.flatnonzero(right.any(0))
        rows, codes, right = rows[kept], codes[:, kept], right[:, kept]
        bit = (1 << np.arange(len(codes), dtype=np.uint32))[:, None]
        correct = (right * bit).sum(0, dtype=np.uint32)
        free = codes >= 0
        groups = np.zeros(codes.shape, np.uint32)
        for i, code in enumerate(codes):
            members = (codes[i:] == code) & free[i]
            group = (members * bit[i:]).sum(0, dtype=np.uint32)
            groups[i] = group | (group & correct) << np.uint32(16)
            free[i:] &= ~members
        return cls(rows, np.ascontiguousarray(np.sort(groups.T, axis=1)[:, ::-1]))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return the columns of all ``parts``."""
        every = list(parts)
        return cls(
            np.concatenate([p.rows for p in every]), np.concatenate([p.groups for p in every])
        )


def count_right(groups: AnswerGroups, layers: Masks, *, n_rows: int) -> NDArray[np.int32]:
    """Return how many columns of each row every layer's vote gets right, (layers, rows).

    A tie goes to the group of the layer's first agent among the tied, and that agent must be
    right. The count is exact. Time grows with columns x layers: one byte each is read from a
    table of the standing of every group in every layer, and a column's greatest standing wins.
    """
    n_groups = (groups.groups > 0).sum(1)
    kinds, kind = np.unique(groups.groups[groups.groups > 0], return_inverse=True)
    place = np.zeros(groups.groups.shape, np.intp)
    place[groups.groups > 0] = kind
    right = np.zeros((len(layers), n_rows), np.int32)
    for start in range(0, len(layers), _LAYERS_AT_ONCE):
        block = slice(start, start + _LAYERS_AT_ONCE)
        table = _standings(kinds, layers[block], groups.groups.shape[1])
        for n in np.unique(n_groups):
            columns = np.flatnonzero(n_groups == n)
            _add_winners(table, place[columns, :n], groups.rows[columns], right[block])
    return right


def _add_winners(
    table: NDArray[np.uint8],
    place: NDArray[np.intp],
    rows: NDArray[np.intp],
    right: NDArray[np.int32],
) -> None:
    for start in range(0, len(rows), _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        best = table.take(place[part, 0], axis=0)
        for slot in place[part, 1:].T:
            np.maximum(best, table.take(slot, axis=0), out=best)
        best &= 1
        ends = np.union1d(
            np.flatnonzero(np.diff(rows[part])) + 1, np.arange(0, len(best), _MOST_ONES)
        )
        for first, last in zip(ends, [*ends[1:], len(best)], strict=True):
            # A byte holds the sum of at most 255 columns, and sums of bytes are fast.
            right[:, rows[start + first]] += best[first:last].sum(0, dtype=np.uint8)


def _standings(kinds: Masks, layers: Masks, n_agents: int) -> NDArray[np.uint8]:
    """Return 2 x (rank of the group's vote in the layer) + (right), (kinds, layers)."""
    members = (kinds & np.uint32(0xFFFF)).astype(np.uint16)[:, None] & layers.astype(np.uint16)
    correct = (kinds >> np.uint32(16)).astype(np.uint16)[:, None]
    first = members & (~members + np.uint16(1))
    standing = _ranks(n_agents).take(members)
    return standing | ((correct & first) > 0)


def _ranks(n_agents: int) -> NDArray[np.uint8]:
    """Return twice the rank of every set of agents: by size, then by how early its first is.

    A set of size s whose first agent is f has s + f <= n_agents, so the ranks fit into a byte.
    """
    pairs = [(s, -f) for s in range(1, n_agents + 1) for f in range(n_agents - s + 1)]
    rank = {pair: 2 * i for i, pair in enumerate(sorted(pairs), 1)}
    sets = range(1, 1 << n_agents)
    firsts = ((mask & -mask).bit_length() - 1 for mask in sets)
    return np.array(
        [0, *(rank[m.bit_count(), -f] for m, f in zip(sets, firsts, strict=True))], np.uint8
    )


_Layer = tuple[str, ...]
PSEUDO_ROWS: Final = 240_000
"""Redrawn rows: the gains of the best votes then have a Monte Carlo error (sd) of 0.0004; with
60,000 it is 0.0008, and picks change."""
SHORTLIST: Final = 10
"""Number of best agents whose votes are scored; 8, 10 and 12 gave the same picks."""


@dataclass(frozen=True, slots=True, eq=False)
class SmoothedVotes:
    """Scores of votes on rows whose answers are half redrawn from a model of all agents.

    Attributes:
        layers: Members of each vote, in the order of ``ranking``; the best agent alone first.
        per_row: (layers, rows), in [0, 1].
        recorded: (layers, rows), the same on the recorded answers.
        ranking: All agents, best recorded mean first.
    """

    layers: tuple[_Layer, ...]
    per_row: NDArray[np.float32]
    recorded: NDArray[np.float32]
    ranking: tuple[str, ...]

    def expected(self) -> NDArray[np.float64]:
        """Return the mean score of every layer; the greatest of them is biased upwards."""
        means: NDArray[np.float64] = self.per_row.mean(1, dtype=np.float64)
        return means

    def gains(self, incumbent: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return by how much each layer beats ``incumbent``, and the standard error of that.

        Both are exactly 0 for the incumbent; see ``redrawn_gains``.

        Raises:
            DataError: the incumbent is none of ``layers``, in any order of its names.
        """
        sets = [frozenset(layer) for layer in self.layers]
        if len(set(incumbent)) < len(incumbent) or frozenset(incumbent) not in sets:
            raise DataError(
                f"`incumbent` must be one of the {len(sets)} smoothed votes of "
                f"{', '.join(self.ranking)}, but got {tuple(incumbent)}."
            )
        at = sets.index(frozenset(incumbent))
        return redrawn_gains(self.per_row, self.recorded, over=at)


def redrawn_gains(
    redrawn: NDArray[np.floating], recorded: NDArray[np.floating], *, over: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return by how much each vote beats the one at ``over``, and the standard error of that.

    The error has two sources, the sample of rows and the answer model. The model reproduces the
    observed score of every agent, so gains on redrawn answers repeat a share of the chance in
    the recorded ones. This share is the slope, through the origin, of the redrawn gains on the
    recorded ones; that redrawn answers vary less within a row does not reduce it. The error of
    the model is the difference of the two gains beyond what chance in the answers explains, on
    average over the votes (method of moments).

    A single row shows no error; then it is 1, the greatest gain there is.

    Args:
        redrawn: (votes, rows), scores on redrawn answers.
        recorded: (votes, rows), scores of the same votes on the recorded ones.
        over: Index of the vote that the others are compared with.
    """
    gaps = redrawn.astype(np.float64) - redrawn[over]
    n, is_other = gaps.shape[1], np.arange(len(gaps)) != over
    if n < 2:
        return gaps[:, 0], is_other.astype(np.float64)
    observed = recorded.astype(np.float64) - recorded[over]
    off = observed - gaps
    beyond = off.mean(1) ** 2 - off.var(1, ddof=1) / n
    model = max(float(beyond[is_other].mean()), 0.0) if is_other.any() else 0.0
    gains, seen = gaps.mean(1), observed.mean(1)
    follows = float(np.clip(gains @ seen / (seen @ seen), 0.0, 1.0)) if seen.any() else 1.0
    errors = np.sqrt(follows**2 * observed.var(1, ddof=1) / n + model)
    errors[~(gaps.any(1) | observed.any(1))] = 0.0
    return gains, errors


def score_layers(ballots: Ballots, layers: Masks) -> NDArray[np.float32]:
    """Return the score of every layer's vote on the recorded answers, (layers, rows).

    The score is that of ``Ballots.vote``, for all layers at once; the agents stand best first,
    and bit i of a mask is the agent at i.
    """
    n_agents, n_rows = ballots.codes.shape
    codes = relabelled(ballots.codes)  # among few agents there are few different answers
    is_answer = codes[:, :, None] == np.arange(max(int(codes.max()) + 1, 1))
    # One vote each, plus a fraction below one vote: of tied answers the one given first wins.
    counts = (is_answer << n_agents) + (is_answer << np.arange(n_agents)[::-1, None, None])
    scores = np.zeros((len(layers), n_rows), np.float32)
    step = max(1, _CELLS_AT_ONCE // is_answer[0].size)
    for start in range(0, len(layers), step):
        block = slice(start, start + step)
        is_member = (layers[block, None] >> np.arange(n_agents)) & 1 > 0
        backing = np.einsum("lm,mqa->lqa", is_member.astype(np.int64), counts)
        winner = np.where(backing.max(2) > 0, backing.argmax(2), -2)
        for agent in reversed(range(n_agents)):  # the first that gave it is written last
            gave = is_member[:, agent, None] & (codes[agent] == winner)
            scores[block] = np.where(gave, ballots.scores[agent], scores[block])
    return scores


def admit_all(layer: _Layer) -> bool:
    """Admit every ``layer``."""
    return True


def smooth(
    ballots: Ballots,
    *,
    widths: range | tuple[int, int],
    seed: int,
    admits: Callable[[_Layer], bool] = admit_all,
    pseudo: int = PSEUDO_ROWS,
    shortlist: int = SHORTLIST,
) -> SmoothedVotes:
    """Return the smoothed score of every vote among the best agents; makes no call.

    The agents are ranked by their recorded means, a model of which agents answer alike is
    fitted, every answer is redrawn from it with chance 1/2, and all votes are scored on the
    redrawn rows. Neither names nor the order of the agents matter, except where means are equal.

    Args:
        ballots: The answers of every agent alone.
        widths: Widths of the votes; a pair is the smallest and the largest. Greater widths than
            there are agents in the shortlist are no error.
        seed: The same ballots, order and seed give the same numbers.
        admits: Whether a layer, best agent first, may vote. Each agent of the shortlist alone is
            always included.
        pseudo: Number of rows to draw, rounded up to a multiple of the recorded ones.
        shortlist: Number of best agents that may vote.

    Raises:
        DataError: ``pseudo`` or ``shortlist`` is out of range.
    """
    if pseudo < 1 or not 1 <= shortlist <= LARGEST_POOL:
        raise DataError(
            f"`pseudo` must be at least 1 and `shortlist` in 1 to {LARGEST_POOL}, "
            f"but got {pseudo} and {shortlist}."
        )
    ranked = ballots.ranked()
    best = ranked.agents[:shortlist]
    seats = _seats(best, widths, admits)
    n_rows = ranked.codes.shape[1]
    n_each = -(-pseudo // n_rows)
    groups = _redrawn(ranked, n_best=len(best), n_each=n_each, seed=seed)
    masks = np.array([sum(1 << i for i in seat) for seat in seats], np.uint32)
    right = count_right(groups, masks, n_rows=n_rows)
    layers = tuple(tuple(best[i] for i in seat) for seat in seats)
    recorded = score_layers(ranked.among(best), masks)
    return SmoothedVotes(layers, (right / n_each).astype(np.float32), recorded, ranked.agents)


def _redrawn(ranked: Ballots, *, n_best: int, n_each: int, seed: int) -> AnswerGroups:
    codes = relabelled(ranked.codes)
    model = fit_answers(codes, ranked.scores)
    sampler = AnswerSampler.of(model, codes[:n_best], ranked.scores[:n_best])
    return AnswerGroups.joined(
        AnswerGroups.of(*chunk) for chunk in sampler.redraw(n_each=n_each, seed=seed)
    )


def _seats(
    agents: _Layer, widths: range | tuple[int, int], admits: Callable[[_Layer], bool]
) -> list[tuple[int, ...]]:
    allowed = widths if isinstance(widths, range) else range(widths[0], widths[1] + 1)
    wider = (
        seats
        for width in range(2, len(agents) + 1)
        if width in allowed
        for seats in combinations(range(len(agents)), width)
    )
    admitted = (seats for seats in wider if admits(tuple(agents[i] for i in seats)))
    return [*((i,) for i in range(len(agents))), *admitted]


REDRAWN: Final = 0.5
_CHUNK = 4096  # columns: small enough that the arrays of a chunk stay in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSampler:
    """Draws a new answer of every agent on every row.

    A draw is a number x in [0, 1). The number of limits below it is the index of what was drawn:
    first the recorded answer, then the answers of the row, a lone answer, no answer.
    """

    limits: NDArray[np.float32]  # (draws - 1, agents, rows), rising along the first axis
    codes: NDArray[np.int16]  # (agents, rows, draws)
    scores: NDArray[np.float32]  # (agents, rows, draws)

    @classmethod
    def of(cls, model: AnswerModel, codes: NDArray[np.int16], scores: NDArray[np.float64]) -> Self:
        """Return the sampler of the agents in ``codes``, the first of those in ``model``."""
        n_agents, n_rows = codes.shape
        n_answers = model.quality.shape[1]
        limits = np.empty((n_answers + 2, n_agents, n_rows), np.float32)
        shared = model.shared[:n_agents].cumsum(2).transpose(2, 0, 1)
        limits[0] = 1 - REDRAWN
        limits[1:-1] = 1 - REDRAWN + REDRAWN * shared
        # Subtracted from 1, so that an agent that always answers has a limit of exactly 1.
        limits[-1] = 1 - REDRAWN * model.lone[:n_agents] * model.silence[:n_agents, None]
        label = np.full((n_agents, n_rows, n_answers + 3), -1, np.int16)
        label[:, :, 0] = codes
        label[:, :, 1:-2] = np.arange(n_answers)
        label[:, :, -2] = n_answers + np.arange(n_agents)[:, None]
        worth = np.zeros(label.shape, np.float32)
        worth[:, :, 0] = scores
        worth[:, :, 1:-2] = model.quality
        worth[:, :, -2] = model.lone_score[:n_agents, None]
        return cls(limits, label, worth)

    def redraw(
        self, *, n_each: int, seed: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int16], NDArray[np.bool_]]]:
        """Yield rows (columns,), codes and correctness (both (agents, columns)), chunk by chunk.

        Every row is redrawn ``n_each`` times; a column is one redrawn row. A graded score becomes
        right with that chance: the mean stays, and equal answers of a column are equally right.
        """
        random = np.random.default_rng(seed)
        n_agents, n_rows, n_draws = self.codes.shape
        step = max(1, _CHUNK // n_each)
        for start in range(0, n_rows, step):
            part = slice(start, min(start + step, n_rows))
            rows = np.arange(part.start, part.stop)
            x = random.random((n_agents, len(rows), n_each), np.float32)
            drawn = np.zeros(x.shape, np.int16)
            for limit in self.limits[:, :, part, None]:
                drawn += x > limit
            place = np.arange(n_agents * len(rows)).reshape(n_agents, len(rows), 1) * n_draws
            place = place + drawn
            codes, scores = self.codes[:, part].ravel(), self.scores[:, part].ravel()
            right = random.random((1, len(rows), n_each), np.float32) < scores.take(place)
            lines = (n_agents, len(rows) * n_each)
            yield rows.repeat(n_each), codes.take(place).reshape(lines), right.reshape(lines)


def relabelled(codes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the codes numbered from 0 in every row, in the order in which agents give them.

    So draws do not depend on which agent was coded first.
    """
    order = np.arange(len(codes))[:, None]
    leader = (codes[:, None] == codes).argmax(1)
    new = ((leader == order) & (codes >= 0)).cumsum(0) - 1
    label = np.take_along_axis(new, leader, 0)
    return np.where(codes >= 0, label, -1).astype(np.int16)


def answer_sampler(ranked: Ballots) -> AnswerSampler:
    """Return the sampler of new answers of all agents, which stand best first."""
    codes = relabelled(ranked.codes)
    return AnswerSampler.of(fit_answers(codes, ranked.scores), codes, ranked.scores)


DrawnAnswers: TypeAlias = tuple[NDArray[np.intp], NDArray[np.int16], NDArray[np.bool_]]
"""The row of each column; (agents, columns): answers, and whether they are right."""


def drawn_answers(sampler: AnswerSampler, n: int, *, seed: int, columns: int) -> DrawnAnswers:
    """Return at least ``columns`` columns of redrawn answers, those of a row side by side.

    Args:
        sampler: Sampler of ``n`` rows.
        n: Number of rows.
        seed: The same seed draws the same answers.
        columns: Rounded up to a multiple of ``n``.
    """
    parts = list(sampler.redraw(n_each=-(-columns // n), seed=seed))
    rows = np.concatenate([rows for rows, _, _ in parts])
    codes = np.concatenate([codes for _, codes, _ in parts], axis=1)
    right = np.concatenate([right for _, _, right in parts], axis=1)
    return rows, codes, right

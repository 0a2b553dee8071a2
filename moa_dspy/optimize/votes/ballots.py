"""Recorded answers of single agents as ballots, the votes they decide, and a model of answers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import DataError

_Answer = Hashable
_Floats = NDArray[np.float64]
_SAME_MEAN_DECIMALS = 12
_SUM_DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """The answers of every agent alone on the same rows, and their scores.

    Attributes:
        agents: Names, none twice.
        codes: (agents, rows); equal where the answers of a row are equal, -1 is no answer.
            Codes of different rows are unrelated.
        scores: (agents, rows), in [0, 1].

    Raises:
        DataError: no agent, no row, a name given twice, shapes that differ, or a score that
            is not a number in [0, 1].
    """

    agents: tuple[str, ...]
    codes: NDArray[np.int16]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check that the three fit together."""
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise DataError(f"`agents` must be different names, at least one; got {self.agents}.")
        if self.codes.ndim != 2 or self.codes.shape != self.scores.shape:
            raise DataError(
                "`codes` and `scores` must both be (agents, rows), but have the shapes "
                f"{self.codes.shape} and {self.scores.shape}."
            )
        if len(self.codes) != len(self.agents) or not self.codes.shape[1]:
            raise DataError(
                f"`codes` must have a line per agent ({len(self.agents)}) and at least one row, "
                f"but has the shape {self.codes.shape}."
            )
        if not bool(((self.scores >= 0) & (self.scores <= 1)).all()):
            raise DataError("Every score must be a number in [0, 1].")

    @classmethod
    def of(
        cls,
        answers: Mapping[str, Sequence[_Answer]],
        scores: Mapping[str, Sequence[float] | _Floats],
    ) -> Self:
        """Return the ballots of agents whose ``answers`` stand in the order of the rows.

        Args:
            answers: By agent; None is a row that the agent did not answer.
            scores: By agent, in [0, 1].

        Raises:
            DataError: the agents or the numbers of rows of the two differ.
        """
        if set(answers) != set(scores):
            raise DataError(
                f"`answers` and `scores` must be of the same agents, but are of "
                f"{', '.join(sorted(answers))} and of {', '.join(sorted(scores))}."
            )
        lengths = {len(row) for row in (*answers.values(), *scores.values())}
        if len(lengths) > 1:
            raise DataError(f"Every agent must have the same rows; the counts are {lengths}.")
        rows = [_codes_of(row) for row in zip(*answers.values(), strict=True)]
        codes = np.array(rows, np.int16).reshape(len(rows), len(answers)).T
        values = np.array([scores[agent] for agent in answers], np.float64)
        return cls(tuple(answers), codes, values)

    def take(self, rows: NDArray[np.intp]) -> Self:
        """Return the same agents on some ``rows``, in the order given."""
        return type(self)(self.agents, self.codes[:, rows], self.scores[:, rows])

    def among(self, agents: Sequence[str]) -> Self:
        """Return some ``agents``, in the order given."""
        seats = [self.agents.index(name) for name in agents]
        return type(self)(tuple(agents), self.codes[seats], self.scores[seats])

    def ranked(self) -> Self:
        """Return the agents best mean score first; the order they have breaks ties."""
        means = np.round(self.scores.mean(1), _SAME_MEAN_DECIMALS)
        order = np.argsort(-means, kind="stable")
        agents = tuple(self.agents[i] for i in order)
        return type(self)(agents, self.codes[order], self.scores[order])

    def vote(
        self,
        layer: Sequence[str],
        *,
        ranking: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> NDArray[np.float64]:
        """Return the score per row of the answer that most of ``layer`` gave.

        A row on which no agent of ``layer`` answered scores 0, whatever was recorded there.

        Args:
            layer: Names, in any order.
            ranking: Ties go to the answer of the member that stands first here; None takes the
                order of ``ranked``. Give it when these rows are scored by a ranking that was
                made on other rows.
            weights: Weight of an agent's answer; 1 if it is not named. Ties go to the answer of
                the best agent of the layer, then of the heaviest, then of the first by name.

        Raises:
            DataError: an empty layer, a name twice, or one that is unknown or not ranked.
        """
        places = {agent: i for i, agent in enumerate(ranking or self.ranked().agents)}
        unknown = set(layer) - (places.keys() & set(self.agents))
        if unknown or not layer or len(set(layer)) < len(layer):
            raise DataError(
                f"`layer` must be different agents of {', '.join(self.agents)}, "
                f"but got {tuple(layer)}."
            )
        order = sorted(layer, key=places.__getitem__)
        if weights:
            weight_of = dict(weights)
            order[1:] = sorted(order[1:], key=lambda agent: (-weight_of.get(agent, 1.0), agent))
        seats = [self.agents.index(agent) for agent in order]
        counts = np.array([(weights or {}).get(agent, 1.0) for agent in order])
        return won_by(self.codes[seats], self.scores[seats], counts)


def waves_of(codes: NDArray[np.int16]) -> NDArray[np.intp]:
    """Return the wave in which each member of a vote that stops early is asked, row by row.

    The waves are those of ``moa_dspy.waves.Waves`` with equal weights: (members, rows), 0 is the
    first wave, -1 is never asked.

    Args:
        codes: (members, rows), in the order of asking, which is also the order of breaking ties.
    """
    n_members, n_rows = codes.shape
    places, waves = np.arange(n_members)[:, None], np.full(codes.shape, -1)
    n_asked = np.zeros(n_rows, np.intp)
    for wave in range(n_members):
        asked_codes = np.where(places < n_asked, codes, -1)
        totals = ((asked_codes[:, None] == asked_codes) & (asked_codes >= 0)).sum(1)
        leader, most = totals.argmax(0), totals.max(0)
        # On a tie the answer that was given first wins, so never one that was not given yet.
        is_rival = (asked_codes >= 0) & (asked_codes != asked_codes[leader, np.arange(n_rows)])
        lacks = np.where(is_rival, totals + (places < leader), 0).max(0) - most
        left = n_members - n_asked
        n_next = np.where(left > 0, np.maximum(-(-(left + lacks) // 2), 0), 0)
        if not n_next.any():
            break
        waves[(places >= n_asked) & (places < n_asked + n_next)] = wave
        n_asked = n_asked + n_next
    return waves


def won_by(
    codes: NDArray[np.int16], scores: NDArray[np.floating], weights: _Floats
) -> NDArray[np.float64]:
    """Return the score per row of the answer with the greatest sum of ``weights``.

    Args:
        codes: (members, rows); ties go to the answer of the first member.
        scores: (members, rows).
        weights: (members,), of up to four digits, so that rounding finds equal sums.
    """
    backing = np.zeros(codes.shape)
    for code, weight in zip(codes, weights, strict=True):
        backing += weight * (codes == code)
    backing = np.where(codes >= 0, backing.round(_SUM_DECIMALS), 0.0)
    winner = backing.argmax(0)[None]
    won = np.take_along_axis(scores, winner, 0)[0]
    return np.where(backing.max(0) > 0, won, 0.0)


StopRule: TypeAlias = tuple[Literal["agree", "lead"], float]
"""A rule by which a vote may stop before it is decided: ``Architecture.agree`` or ``lead``."""
_LATER = 1e-6  # taken off a sum per place at which its answer begins: breaks ties
_ROUNDED = 1e-4  # weights have two decimals, and shares of them few more


def stopped_scores(
    codes: NDArray[np.int16],
    scores: NDArray[np.float64],
    weights: NDArray[np.float64],
    first: Sequence[int],
    stops: Sequence[StopRule],
    *,
    asks_all: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return scores and members asked, (rules, columns): of each rule, and of the whole vote last.

    Args:
        codes: (members, columns), in the order of asking; -1 is no answer.
        scores: (members, columns).
        weights: Weights of the members.
        first: Places of the members, best first, in the order in which groups are formed.
        stops: The rules.
        asks_all: Whether members are asked that cannot change the answer any more.
    """
    won, ahead = _leaders(codes, scores, weights)
    left = weights.sum() - weights.cumsum()
    columns = np.arange(codes.shape[1])
    # The rest may draw an answer level that was given earlier, which then wins the tie.
    exact = _first_true((ahead > left[:, None] + _LATER / 2) & (not asks_all))
    stopped = [(won[-1], exact)]
    for kind, value in reversed(stops):
        if kind == "lead":
            place = _first_true((ahead > _ROUNDED) & (ahead >= value * left[:, None] - _ROUNDED))
            stopped.append((won[place, columns], place))
        else:
            group = codes[list(first[: int(value)])]
            alike = (group == group[0]).all(0) & (group[0] >= 0)
            places = np.where(alike, int(value) - 1, np.maximum(exact, int(value) - 1))
            stopped.append((np.where(alike, scores[first[0]], won[-1]), places))
    stopped.reverse()
    return np.array([row for row, _ in stopped]), np.array([place for _, place in stopped]) + 1


def _first_true(is_enough: NDArray[np.bool_]) -> NDArray[np.intp]:
    is_enough[-1] = True
    places: NDArray[np.intp] = is_enough.argmax(0)
    return places


def _leaders(
    codes: NDArray[np.int16], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, after each member, the score of the leading answer, and by how much it leads."""
    n_members, n_columns = codes.shape
    at = np.arange(n_columns)
    totals = np.zeros((max(int(codes.max()) + 1, 1) + 1, n_columns))  # the last one is of no answer
    worth = np.zeros_like(totals)
    won, ahead = np.zeros(codes.shape), np.zeros(codes.shape)
    for place in range(n_members):
        code, is_given = codes[place], codes[place] >= 0
        is_new = is_given & (totals[code, at] == 0)
        worth[code[is_new], at[is_new]] = scores[place, is_new]
        totals[code, at] += np.where(is_given, weights[place] - _LATER * place * is_new, 0.0)
        leader = totals.argmax(0)
        top = totals[leader, at]
        won[place] = worth[leader, at]
        totals[leader, at] = -1.0
        second = totals.max(0)
        # An answer that was not given yet loses every tie.
        ahead[place] = top - np.where(second > 0, second, -_LATER * n_members)
        totals[leader, at] = top
    return won, ahead


def _codes_of(row: Sequence[_Answer]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [-1 if answer is None else seen.setdefault(answer, len(seen)) for answer in row]


DISCOUNTS: Final = (0.0, 0.25, 0.5, 0.75)
_NOVELTY = 1.0
_LARGEST_TILT = 10.0
_CONVERGED = 1e-4
_N_NEWTON_STEPS = 25


@dataclass(frozen=True, slots=True, eq=False)
class AnswerModel:
    """A model of the answer of each agent to a row, given the answers of the others.

    The chance that agent m gives answer l, which c_l others gave and which scores S_l, goes as
    (c_l - discount) exp(t_m S_l); that of an answer which none of the others gave, or of none,
    as (1 + discount K) exp(u_m), where K counts the different answers of the others. This is
    the prediction rule of Pitman & Yor 1997, tilted by quality. t_m and u_m make m's expected
    score on shared answers, and its share of lone ones, equal those observed: the maximum of the
    pseudo-likelihood (Besag 1975).

    Attributes:
        shared: (agents, rows, answers), the chance of each answer of the row.
        lone: (agents, rows), the chance of an answer that none of the others gave, or of none.
        quality: (rows, answers), the mean score of the agents that gave the answer.
        silence: (agents,), the share of ``lone`` that is no answer at all.
        lone_score: (agents,), the mean score of answers that no other agent gave.
        log_likelihood: Greater is better.
    """

    shared: _Floats
    lone: _Floats
    quality: _Floats
    silence: _Floats
    lone_score: _Floats
    log_likelihood: float


@dataclass(frozen=True, slots=True, eq=False)
class _Observed:
    """Recorded answers, and how they agree."""

    codes: NDArray[np.int16]
    scores: _Floats
    others: _Floats  # (agents, rows, answers): how many of the others gave the answer
    quality: _Floats  # (rows, answers)
    alone: NDArray[
        np.bool_
    ]  # (agents, rows): no other agent gave the agent's answer, or it has none


def fit_answers(codes: NDArray[np.int16], scores: _Floats) -> AnswerModel:
    """Return the model with the discount that makes the answers likeliest.

    Args:
        codes: (agents, rows), small numbers from 0 in every row; -1 is no answer.
        scores: (agents, rows), in [0, 1].
    """
    return _fitted(
        codes.shape, codes.astype(np.int16).tobytes(), scores.astype(np.float64).tobytes()
    )


@lru_cache(maxsize=2)  # a choice among votes asks for the model of its rows twice
def _fitted(shape: tuple[int, ...], codes: bytes, scores: bytes) -> AnswerModel:
    code_table = np.frombuffer(codes, np.int16).reshape(shape)
    seen = _observed(code_table, np.frombuffer(scores, np.float64).reshape(shape))
    models = [_fit(seen, discount) for discount in DISCOUNTS]
    return max(models, key=lambda model: model.log_likelihood)


def _observed(codes: NDArray[np.int16], scores: _Floats) -> _Observed:
    answers = np.arange(max(int(codes.max()) + 1, 1))
    is_answer = codes[:, :, None] == answers
    counts = is_answer.sum(0)
    quality = np.einsum("mql,mq->ql", is_answer, scores) / np.maximum(counts, 1)
    others = (counts - is_answer).astype(np.float64)
    return _Observed(codes, scores, others, quality, ~(is_answer & (others > 0)).any(2))


def _fit(seen: _Observed, discount: float) -> AnswerModel:
    base = np.where(seen.others > 0, seen.others - discount, 0.0)
    fresh = _NOVELTY + discount * (seen.others > 0).sum(2)
    own = np.maximum(seen.codes, 0)[:, :, None].astype(np.intp)
    own_quality = np.take_along_axis(seen.quality[None], own, 2)[:, :, 0]
    score = np.where(seen.alone, 0.0, own_quality).sum(1)
    tilt, lift = _tilts(*_levels(base, seen.quality), fresh, score, seen.alone.sum(1))
    n_alone, n_rows = seen.alone.sum(1), seen.codes.shape[1]
    # An agent that was never, or always, alone has its maximum at infinity: exactly 0, or 1.
    weight = base * (np.exp(tilt[:, None, None] * seen.quality) * (n_alone < n_rows)[:, None, None])
    lone = fresh * (np.exp(lift) * (n_alone > 0))[:, None]
    total = weight.sum(2) + lone
    likelihood = np.where(seen.alone, lone, np.take_along_axis(weight, own, 2)[:, :, 0]) / total
    spoken = seen.alone & (seen.codes >= 0)
    return AnswerModel(
        shared=weight / total[:, :, None],
        lone=lone / total,
        quality=seen.quality,
        silence=(seen.codes < 0).sum(1) / np.maximum(n_alone, 1),
        lone_score=np.where(spoken, seen.scores, 0.0).sum(1) / np.maximum(spoken.sum(1), 1),
        log_likelihood=float(np.log(likelihood + 1e-12).sum()),
    )


def _levels(base: _Floats, quality: _Floats) -> tuple[_Floats, _Floats]:
    """Return ``base`` summed over the answers of a row with equal scores, and these scores.

    The fit needs no more, and right and wrong are two scores however many answers there are.
    """
    order = quality.argsort(1)
    ordered = np.take_along_axis(quality, order, 1)
    rises = np.diff(ordered, axis=1, prepend=ordered[:, :1]) > 0
    level = np.empty_like(order)
    np.put_along_axis(level, order, rises.cumsum(1), 1)
    member = level[:, :, None] == np.arange(int(level.max()) + 1)
    values = np.where(member, quality[:, :, None], 0.0).max(1)
    return np.matmul(base.transpose(1, 0, 2), member).transpose(1, 0, 2), values


def _tilts(
    base: _Floats, quality: _Floats, fresh: _Floats, score: _Floats, n_alone: NDArray[np.int_]
) -> tuple[_Floats, _Floats]:
    """Return t and u by Newton's method, two equations per agent."""
    tilt, lift = np.zeros(len(base)), np.zeros(len(base))
    for _ in range(_N_NEWTON_STEPS):
        weight = base * np.exp(tilt[:, None, None] * quality)
        lone = fresh * np.exp(lift)[:, None]
        total = weight.sum(2) + lone
        p = lone / total
        mean = (weight * quality).sum(2) / total
        square = (weight * quality**2).sum(2) / total
        off_score, off_alone = mean.sum(1) - score, p.sum(1) - n_alone
        tt = (square - mean**2).sum(1) + 1e-6
        uu = (p * (1 - p)).sum(1) + 1e-6
        tu = -(mean * p).sum(1)
        # Two equations that nearly coincide must not lead to a division by zero.
        determinant = np.maximum(tt * uu - tu**2, 1e-9 * tt * uu + 1e-12)
        before = tilt, lift
        tilt = _stepped(tilt, (uu * off_score - tu * off_alone) / determinant)
        lift = _stepped(lift, (tt * off_alone - tu * off_score) / determinant)
        if max(np.abs(tilt - before[0]).max(), np.abs(lift - before[1]).max()) < _CONVERGED:
            break
    return tilt, lift


def _stepped(value: _Floats, step: _Floats) -> _Floats:
    # An agent that is always right, or never answers, would go to infinity.
    return np.clip(value - np.clip(step, -1, 1), -_LARGEST_TILT, _LARGEST_TILT)

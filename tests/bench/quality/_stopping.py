"""The rules of the pick, and of what stops early for less, without a search around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize import SearchSpace
from moa_dspy.optimize.objectives import cheapest_as_good, stopping_vote
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import CandidateScores, choose
from moa_dspy.optimize.space.programs import read_architecture
from moa_dspy.optimize.votes.ballots import StopRule, stopped_scores
from tests.bench.quality._folder import Answers, Scores
from tests.bench.quality._rule import evidence_of
from tests.bench.quality._split import Draw, Task, error

MIN_GAIN: Final = 0.03
"""The smallest gain worth having, as a search has it by default."""
N_MEASURED: Final = 3
"""Votes that a search measures before any other."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Scores and calls of votes on recorded answers, counted on arrays."""

    answers: Answers
    ranking: tuple[str, ...]

    def __call__(self, arch: Architecture, *, asks_all: bool = False) -> tuple[Scores, float]:
        """Return the score of every question, and the calls of one on average."""
        if not arch.layers:
            return self.answers.scores[self.answers.names.index(str(arch))], 1.0
        members, weights = sorted(arch.layers[-1], key=self.ranking.index), dict(arch.weights)
        order = [members[0], *sorted(members[1:], key=lambda name: -weights.get(name, 1.0))]
        rows = [self.answers.names.index(name) for name in order]
        rule: StopRule = ("agree", arch.agree) if arch.agree else ("lead", arch.lead or 1.0)
        won, asked = stopped_scores(
            self.answers.codes[rows],
            self.answers.scores[rows],
            np.array([weights.get(name, 1.0) for name in order]),
            [order.index(name) for name in members],
            [rule],
        )
        # The last line is that of the whole vote, which exact stopping does not change.
        at = 0 if is_early(arch) and not asks_all else 1
        return won[at], float(len(members)) if asks_all else float(asked[at].mean())


def is_early(arch: Architecture) -> bool:
    """Return True if it may stop before it is decided."""
    return (arch.agree, arch.lead) != (None, None)


def of_all(arch: Architecture) -> Architecture:
    """Return the same vote, which does not."""
    return replace(arch, agree=None, lead=None)


def one_rule(task: Task) -> dict[str, Any]:
    """Choose on the dev questions as a search with calls as an objective does, and judge."""
    draw = Draw.of(task)
    dev = draw.dev.best_first
    evidence = evidence_of(dev)
    on_dev, judged = Counted(dev, evidence.ranking), Counted(draw.judged, evidence.ranking)
    options = choose(evidence, may_be_unmeasured=True).options
    votes = [option.architecture for option in options if option.architecture.layers][:N_MEASURED]
    space = SearchSpace(dev.names)
    stops: list[StopRule] = [("lead", share) for share in sorted(space.lead, reverse=True)]
    stops.extend(("agree", n) for n in sorted(space.agree, reverse=True))
    early = [stopping_vote(evidence, vote, stops, min_gain=MIN_GAIN) for vote in votes]
    new = [CandidateScores(arch, *on_dev(arch), usd=0.0) for arch in (*votes, *filter(None, early))]
    evidence = replace(evidence, measured=(*evidence.measured, *new))
    choice = choose(evidence)
    records = {candidate.architecture: _record(candidate) for candidate in evidence.measured}
    less = cheapest_as_good(evidence, choice, records, cost="calls", min_gain=MIN_GAIN)
    found = {"split": task.split, "pick": str(choice.picked)}
    return found | _judged(choice.picked, less, judged) if choice.picked.layers else found


def _judged(picked: Architecture, less: TrialRecord | None, judged: Counted) -> dict[str, Any]:
    full, n = judged(of_all(picked), asks_all=True)
    chosen = picked if less is None else read_architecture(less.architecture)
    own, n_own = judged(of_all(chosen), asks_all=True)
    scores, calls = judged(chosen)
    return {
        "members": n,
        "full": float(full.mean()),
        "exact_calls": judged(of_all(picked))[1] / n,
        "for_less": None if less is None else less.architecture,
        "is_early": is_early(chosen),
        "less_calls": calls / n,
        "less_minus_full": 100 * float((scores - full).mean()),
        "less_minus_full_se": 100 * error(scores - full),
        "own_calls": calls / n_own,
        "less_minus_own": 100 * float((scores - own).mean()),
        "less_minus_own_se": 100 * error(scores - own),
    }


def _record(candidate: CandidateScores) -> TrialRecord:
    score = float(candidate.scores.mean())
    text = str(candidate.architecture)
    return TrialRecord(0, text, "votes", score, score, 0.0, candidate.calls, None, None, 1)

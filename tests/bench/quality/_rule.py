"""The rule of the pick without a search around it: quick enough for many splits and pools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.selection import CandidateScores, Evidence, choose
from moa_dspy.optimize.votes import PSEUDO_ROWS, Ballots
from tests.bench.quality._baselines import BASELINES, Dev, picked_before
from tests.bench.quality._folder import Answers
from tests.bench.quality._paired import lead
from tests.bench.quality._rows import calibration, kind_of
from tests.bench.quality._split import (
    Draw,
    Drawn,
    Facts,
    Task,
    calibration_of,
    error,
    errors_of,
)
from tests.bench.quality._votes import MOST, Weights, vote_scores, weights_of

N_CALIBRATED: Final = 80
"""Smoothed votes whose gains are held against the truth."""
SLOW: Final = ("caruana7",)
"""Baselines that take longer than the rule and are never near it."""


def run_rule(task: Task) -> Drawn:
    """Choose by the rule on the dev questions, and by the baselines; judge all."""
    draw = Draw.of(task)
    evidence, dev = evidence_of(draw.dev.best_first), draw.dev
    choice = choose(evidence, may_be_unmeasured=True)
    chosen = {"ours": weights_of_pick(choice.picked, dev), "today": _before(evidence, dev)}
    chosen |= {name: rule(dev) for name, rule in BASELINES.items() if name not in SLOW}
    rows = {name: vote_scores(draw.best_first, weights) for name, weights in chosen.items()}
    ways = evidence.ways
    return Drawn(
        task,
        scores={name: float(scores.mean()) for name, scores in rows.items()},
        facts={
            "models": draw.pool.n_models,
            "members": float(sum(weight > 0 for weight in chosen["ours"])),
            **({} if ways is None else calibration_of(ways, draw)),
            **_smoothed_calibration(evidence, choice.incumbent, draw),
        },
        halving={},
        errors={name: error(scores - rows["ours"]) for name, scores in rows.items()},
        verdict="",
        pool=draw.pool.names,
    )


def _smoothed_calibration(evidence: Evidence, incumbent: Architecture, draw: Draw) -> Facts:
    """Return the same of smoothed votes over the incumbent, of some that are drawn."""
    votes = evidence.smoothed
    assert votes is not None  # there are ballots
    members = frozenset(incumbent.layers[-1] if incumbent.layers else incumbent.agents)
    sets = [frozenset(layer) for layer in votes.layers]
    if members not in sets:
        return {}
    base, (gains, errors) = sets.index(members), votes.gains(tuple(members))
    n = min(N_CALIBRATED, len(sets))
    drawn = np.random.default_rng(draw.n).choice(len(sets), n, replace=False)
    kept = [base, *(int(i) for i in drawn if i != base)]
    layers = [dict.fromkeys(votes.layers[i], 1.0) for i in kept]
    found = errors_of(layers, (gains[kept], errors[kept]), 0, draw)
    return {f"smoothed_{name}": value for name, value in found.items()}


def each_pool(drawn: Iterable[Drawn]) -> dict[str, dict[str, float]]:
    """Return, per pool, what every rival leads by, on average over sizes and splits."""
    found: dict[str, list[Drawn]] = {}
    for draw in drawn:
        found.setdefault(draw.task.pool, []).append(draw)
    return {
        pool: {
            name: fmean(pool_draw.scores[name] - pool_draw.scores["ours"] for pool_draw in of_pool)
            for name in of_pool[0].scores
            if name != "ours"
        }
        for pool, of_pool in found.items()
    }


def evidence_of(dev: Answers, *, pseudo: int = PSEUDO_ROWS) -> Evidence:
    """Return what a search knows before its first mixture; votes are of any width with weights."""
    singles = {name: dev.scores[i] for i, name in enumerate(dev.names)}
    found = Evidence(
        singles=singles,
        measured=tuple(
            CandidateScores(Architecture.single(name), scores, calls=1, usd=0.0)
            for name, scores in singles.items()
        ),
        ballots=Ballots(dev.names, dev.codes, dev.scores),
        widths=(2, MOST),
        admits=lambda members: True,
        admits_weighted=lambda members: True,
        shrink=_as_measured,
        seed=0,
    )
    return found.counted(pseudo)


def _as_measured(
    evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
) -> tuple[Sequence[float], Sequence[float]]:
    gaps = [candidate.scores - incumbent.scores for candidate in measured]
    return [float(gap.mean()) for gap in gaps], [error(gap) for gap in gaps]


def weights_of_pick(arch: Architecture, dev: Dev) -> Weights:
    """Return what each model, best first, counts in a pick."""
    members, weights = arch.layers[-1] if arch.layers else arch.agents, dict(arch.weights)
    weight_of = {name: weights.get(name, 1.0) for name in members}
    return tuple(weight_of.get(name, 0.0) for name in dev.best_first.names)


def _before(evidence: Evidence, dev: Dev) -> Weights:
    assert evidence.smoothed is not None  # there are ballots
    picked = picked_before(evidence.smoothed, dev)
    places = {dev.best_first.names.index(name) for name in picked}
    return weights_of(places, dev.n_models)


def rule_row(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return the row of one pool and size: means, and every rival's lead."""
    task, names = drawn[0].task, list(drawn[0].scores)
    gaps = {name: [draw.scores[name] - draw.scores["ours"] for draw in drawn] for name in names}
    shared = {name: fmean(draw.errors[name] ** 2 for draw in drawn) for name in names}
    rivals = [name for name in names if name not in ("ours", "today")]
    best = max(rivals, key=lambda name: fmean(gaps[name]))
    return {
        "pool": kind_of(task),
        "dev": task.dev,
        "splits": len(drawn),
        **{name: fmean(draw.scores[name] for draw in drawn) for name in names},
        "models": fmean(draw.facts["models"] for draw in drawn),
        "members": fmean(draw.facts["members"] for draw in drawn),
        "baseline_minus_ours": {
            name: asdict(lead(gaps[name], shared=shared[name])) for name in (*rivals, "today")
        },
        "best_baseline": best,
        "ours_minus_best_baseline": -fmean(gaps[best]),
        "calibration": calibration([draw.facts for draw in drawn]),
        "calibration_smoothed": calibration([draw.facts for draw in drawn], of="smoothed_"),
    }

"""The layered search on resampled splits of a fully recorded space."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from statistics import fmean
from typing import Any, Final

import numpy as np

from tests.bench.quality._baselines import BASELINES, Dev
from tests.bench.quality._folder import Indices
from tests.bench.quality._paired import lead, standard_error
from tests.bench.quality._quickstart import Quickstart, quickstart
from tests.bench.quality._votes import every_vote, vote_scores

N_VAL: Final = 200
FIRST_SEED: Final = 1_000


def layered(n_splits: int, *, first: int, n_jobs: int) -> dict[str, Any]:
    """Return the mean test scores of our pick and of its rivals, over resampled splits."""
    splits = range(first, first + n_splits)
    if n_jobs == 1:
        drawn = [run(split) for split in splits]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(n_jobs, mp_context=context) as processes:
            drawn = list(processes.map(run, splits))
    # A rival that could not be run in some split, as copies of a greedy agent, is in no row.
    names = [n for n in drawn[0] if not n.startswith("_") and all(n in draw for draw in drawn)]
    row: dict[str, Any] = {name: fmean(draw[name] for draw in drawn) for name in names}
    leads = {name: [draw[name] - draw["ours"] for draw in drawn] for name in names}
    rivals = [name for name in names if name not in ("ours", "optimum")]
    row["baseline_minus_ours"] = {name: asdict(lead(leads[name])) for name in rivals}
    row["optimism"] = fmean(draw["_val"] - draw["ours"] for draw in drawn)
    net = [draw["_expected"] - draw["ours"] - draw["_control"] for draw in drawn]
    row["reported_minus_truth"], row["reported_minus_truth_se"] = fmean(net), standard_error(net)
    row["coverage"] = fmean(draw["_is_covered"] for draw in drawn)
    row["trials"] = fmean(draw["_trials"] for draw in drawn)
    return {"splits": n_splits, "layered": row}


def run(split: int) -> dict[str, float]:
    """Search on 200 of the 500 rows; return the scores of all on the other 300."""
    world = quickstart()
    order = np.random.default_rng(FIRST_SEED + split).permutation(len(world.rows))
    val, test = order[:N_VAL], order[N_VAL:]
    result = world.search(val, test)
    rows = {name: row.score for name, row in result.test.items() if row.score is not None}
    expected = result.expected
    if expected is None:
        raise RuntimeError("The search reports no expected score.")
    truth = rows["pick"]
    beside = ("best_single", "self_moa", "random")
    found: dict[str, float] = {name: rows[name] for name in beside if name in rows}
    return {
        "ours": truth,
        **found,
        **_rivals(world, val, test),
        "_val": result.val["pick"].score or 0.0,
        "_expected": expected.estimate,
        "_is_covered": float(expected.low <= truth <= expected.high),
        "_control": _control(world, val, test),
        "_trials": len(result.trials),
    }


def _rivals(world: Quickstart, val: Indices, test: Indices) -> Mapping[str, float]:
    """Return test scores of votes chosen by rule, of the best on val, and of the best there is."""
    dev = Dev.of(world.singles.at(val))
    models = [world.singles.names.index(name) for name in dev.best_first.names]
    table = world.singles.at(test).of(models)
    chosen = {name: choose(dev) for name, choose in BASELINES.items() if name != "best_single"}
    found = {name: float(vote_scores(table, weights).mean()) for name, weights in chosen.items()}
    seen = {**dict(enumerate(dev.votes.means)), **_means(world, val)}
    truth = {**dict(enumerate(every_vote(table).means)), **_means(world, test)}
    best = max(seen, key=lambda name: seen[name])
    return {**found, "best_on_val": float(truth[best]), "optimum": float(max(truth.values()))}


def _control(world: Quickstart, val: Indices, test: Indices) -> float:
    """Return how much better the vote of all agents, which nobody chose, does on val."""
    everybody = (1,) * world.singles.n_models
    seen, truth = (vote_scores(world.singles.at(rows), everybody) for rows in (val, test))
    return float(seen.mean() - truth.mean())


def _means(world: Quickstart, rows: Indices) -> dict[Any, float]:
    return {name: float(scores[rows].mean()) for name, scores in world.others.items()}

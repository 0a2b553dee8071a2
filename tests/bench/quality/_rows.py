"""All draws of a cell become one row: means, paired bounds, and how honest the search was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from statistics import fmean
from typing import Any

from tests.bench.quality._paired import lead, standard_error
from tests.bench.quality._split import Drawn, Task

NOT_A_RIVAL = ("ours", "recommended", "optimum", "ours_agree2")
SMALLEST_GAP = 0.001
"""Of which a share can be closed."""


def row_of(drawn: Sequence[Drawn], ceiling: float | None) -> dict[str, Any]:
    """Return the row of one pool and size; every score is a fraction.

    Args:
        drawn: Of all splits.
        ceiling: What the best choice of this pool could reach; None of several pools.
    """
    task = drawn[0].task
    names = list(dict.fromkeys(name for draw in drawn for name in draw.scores))
    means = {name: fmean(_column(drawn, name)) for name in names}
    # Paired, as a rival may have chosen on fewer splits than we did.
    leads = {
        name: lead(_gaps(drawn, name), shared=_shared(drawn, name))
        for name in names
        if name not in NOT_A_RIVAL
    }
    best = max(leads, key=lambda name: leads[name].mean)
    behind = leads[best].mean
    return {
        "pool": kind_of(task),
        "dev": task.dev,
        "splits": len(drawn),
        **means,
        "models": fmean(draw.facts["models"] for draw in drawn),
        "sampler_splits": len(_column(drawn, "tpe300")),
        "ours_on_sampler_splits": _ours_where(drawn, "tpe300"),
        "verdicts": {
            kind: fmean(draw.verdict == kind for draw in drawn)
            for kind in ("mixture", "single", "not_enough_examples")
        },
        "way_to_ours": _share(
            means["recommended"] - means["best_single"], means["ours"] - means["best_single"]
        ),
        "ours_calls": fmean(draw.facts["calls"] for draw in drawn),
        "agree2_minus_ours": _mean_gap(drawn, "ours_agree2"),
        "agree2_calls": fmean(draw.facts["calls_agree2"] for draw in drawn),
        "baseline_minus_ours": {name: asdict(interval) for name, interval in leads.items()},
        "best_baseline": best,
        "ours_minus_best_baseline": -behind,
        "ceiling": ceiling,
        "gap_closed": None
        if ceiling is None
        else _share(-behind, ceiling - means["ours"] - behind),
        **honesty(drawn),
    }


def honesty(drawn: Sequence[Drawn]) -> dict[str, float | None]:
    """Return the signed mean of reported minus truth, less that of the control, and coverage."""
    facts = [draw.facts for draw in drawn]
    net = [f["reported_minus_truth"] - f["control"] for f in facts]
    return {
        "optimism": fmean(f["optimism"] for f in facts),
        "optimism_reported": fmean(f["optimism_reported"] for f in facts),
        "reported_minus_truth": fmean(net),
        "reported_minus_truth_se": standard_error(net),
        "absolute_error": fmean(abs(f["reported_minus_truth"]) for f in facts),
        "calibration": calibration(facts),
        "control": fmean(f["control"] for f in facts),
        "coverage": fmean(f["is_covered"] for f in facts),
        "members": fmean(f["members"] for f in facts),
        "cells": max(f["cells"] for f in facts),
        "seconds": fmean(f["seconds"] for f in facts),
    }


def kind_of(task: Task) -> str:
    """Return the pool; random ones are one kind."""
    return task.pool.partition(":")[0]


def calibration(facts: Sequence[Mapping[str, float]], *, of: str = "") -> float | None:
    """Return the true error of a gain over the stated one; None where neither is there."""
    names = [f"{of}{name}" for name in ("gain_square", "gain_stated")]
    rows = [[row[name] for name in names] for row in facts if names[0] in row]
    if not rows:
        return None
    true, stated = map(fmean, zip(*rows, strict=True))
    return sqrt(max(true, 0.0) / stated) if stated else None


def halving_of(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return what halving reaches with more labels: beside the rows, not among them."""
    task = drawn[0].task
    means = {name: fmean(draw.halving[name] for draw in drawn) for name in drawn[0].halving}
    return {"pool": kind_of(task), "dev": task.dev, **means}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is to be reached, over all cells."""
    leads = {
        f"{name}, {row['pool']} {row['dev']}": interval
        for row in rows
        for name, interval in row["baseline_minus_ours"].items()
    }
    largest = max(leads, key=lambda name: float(leads[name]["mean"]))
    return {
        "largest_baseline_lead": leads[largest]["mean"],
        "largest_baseline_lead_of": largest,
        "bounds_above_0": [
            name for name, interval in leads.items() if (interval["low"] or 0.0) > 0
        ],
        "mean_ours_minus_best_baseline": fmean(row["ours_minus_best_baseline"] for row in rows),
    }


def _column(drawn: Sequence[Drawn], name: str) -> list[float]:
    """Return a score per split, of the splits that have it."""
    return [draw.scores[name] for draw in drawn if name in draw.scores]


def _share(part: float, whole: float) -> float | None:
    """Return part / whole; None where there is nothing to close."""
    return part / whole if whole > SMALLEST_GAP else None


def _gaps(drawn: Sequence[Drawn], name: str) -> list[float]:
    """Return baseline minus ours per split, of the splits that have both."""
    return [draw.scores[name] - draw.scores["ours"] for draw in drawn if name in draw.scores]


def _shared(drawn: Sequence[Drawn], name: str) -> float:
    """Return the mean variance of the gap that the judged questions give, which splits share."""
    return fmean(draw.errors[name] ** 2 for draw in drawn if name in draw.errors)


def _mean_gap(drawn: Sequence[Drawn], name: str) -> float | None:
    gaps = _gaps(drawn, name)
    return fmean(gaps) if gaps else None


def _ours_where(drawn: Sequence[Drawn], name: str) -> float | None:
    ours = [draw.scores["ours"] for draw in drawn if name in draw.scores]
    return fmean(ours) if ours else None

"""Times the pairwise similarities of a folder's models: all at once, against a plain double loop.

Usage: python tests/bench/diversity_speed.py FOLDER [--json] [--models N] [--all]

FOLDER holds responses.parquet with columns instruction_id, model, response; only instructions
that every model answered count. For each metric: seconds of ``pairwise_similarity`` over all
models and instructions, of the clock and of the processor; processor seconds that a double loop
over pairs would take, extrapolated from a sample of instructions; the ratio of processor seconds,
which a busy machine disturbs least; and the largest difference between the two on the sample.
Metrics without a form for all pairs at once are listed with extrapolated seconds, unless --all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moa_dspy.diversity import DIVERSITY_METRICS, PairwiseMetric, pairwise_similarity

Texts = list[list[str]]
Matrix = NDArray[np.float64]
N_SAMPLED = 5


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine, one process; extrapolated ones are in proportion to pairs."""

    metric: str
    seconds: float
    cpu_seconds: float
    is_extrapolated: bool
    double_loop_cpu_seconds: float
    ratio: float
    max_abs_difference: float


def read_texts(folder: Path, *, n_models: int | None) -> tuple[list[str], Texts]:
    """Return the models in name order and their responses, (models, instructions).

    Raises:
        ValueError: no instruction was answered by every model.
    """
    table = pq.read_table(
        folder / "responses.parquet", columns=["instruction_id", "model", "response"]
    )
    answers: dict[str, dict[Any, str]] = {}
    for row in table.to_pylist():
        answers.setdefault(row["model"], {})[row["instruction_id"]] = row["response"] or ""
    models = sorted(answers)[:n_models]
    common = sorted(set.intersection(*(set(answers[m]) for m in models)))
    if not common:
        raise ValueError(f"{folder}: no instruction was answered by all of {len(models)} models.")
    return models, [[answers[m][i] for i in common] for m in models]


def timed(compute: Callable[[], Matrix]) -> tuple[Matrix, float, float]:
    """Return the result, and seconds of the clock and of the processor."""
    start, cpu_start = perf_counter(), process_time()
    result = compute()
    return result, perf_counter() - start, process_time() - cpu_start


def double_loop(name: str, texts: Sequence[Sequence[str]]) -> Matrix:
    """Ask the one-question metric for every pair and question."""
    metric = DIVERSITY_METRICS[name]()
    similarities = np.eye(len(texts))
    for i, j in combinations(range(len(texts)), 2):
        pairs = zip(texts[i], texts[j], strict=True)
        mean = float(np.mean([1 - metric([a, b]) for a, b in pairs]))
        similarities[i, j] = similarities[j, i] = mean
    return similarities


def time_metric(name: str, texts: Texts, *, run_all: bool) -> Timing:
    n_questions = len(texts[0])
    # Evenly spread: an instruction set is often sorted by source.
    places = sorted({int(p) for p in np.linspace(0, n_questions - 1, N_SAMPLED)})
    sample = [[row[p] for p in places] for row in texts]
    scale = n_questions / len(places)
    looped, _, loop_cpu = timed(lambda: double_loop(name, sample))
    at_once, seconds, cpu = timed(lambda: pairwise_similarity(name, sample))
    extrapolate = not run_all and not isinstance(DIVERSITY_METRICS[name](), PairwiseMetric)
    if extrapolate:
        seconds, cpu = seconds * scale, cpu * scale
    else:
        _, seconds, cpu = timed(lambda: pairwise_similarity(name, texts))
    return Timing(
        metric=name,
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu, 3),
        is_extrapolated=extrapolate,
        double_loop_cpu_seconds=round(loop_cpu * scale, 3),
        ratio=round(loop_cpu * scale / max(cpu, 1e-9), 1),
        max_abs_difference=float(np.abs(looped - at_once).max()),
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time all pairwise similarities of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", type=int, help="only the first N models by name")
    parser.add_argument("--all", action="store_true", help="run what would be extrapolated")
    options = parser.parse_args(arguments)
    models, texts = read_texts(options.folder, n_models=options.models)
    for name in DIVERSITY_METRICS:
        pairwise_similarity(name, [[row[0]] for row in texts])  # loads what is loaded late
    timings = [time_metric(name, texts, run_all=options.all) for name in DIVERSITY_METRICS]
    if options.json:
        sizes = {"n_models": len(models), "n_questions": len(texts[0])}
        print(json.dumps({**sizes, "metrics": {t.metric: asdict(t) for t in timings}}))
        return
    print(f"{len(models)} models, {len(texts[0])} questions")
    for t in timings:
        about = "about " if t.is_extrapolated else ""
        print(
            f"{t.metric:16} {about}{t.seconds:.1f} s (processor {t.cpu_seconds:.1f}), "
            f"double loop about {t.double_loop_cpu_seconds:.0f} s, ratio {t.ratio:.1f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])

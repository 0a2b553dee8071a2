"""Holds the shipped search against simple rules, on questions that it never saw.

Usage: python tests/bench/search_quality.py FOLDER [--json] [--splits 20] [--jobs 2] ...
       python tests/bench/search_quality.py FOLDER --honest 400 --dev 200 [--json]
       python tests/bench/search_quality.py FOLDER --rule [--subpools 24] [--json]
       python tests/bench/search_quality.py FOLDER --power [--json]
       python tests/bench/search_quality.py --layered [--splits 200] [--json]

FOLDER has questions.parquet, letters.parquet or responses.parquet, and perhaps models.csv:
recorded answers of any models. Splits are `default_rng(1000 + split).permutation(questions)`: the
first `dev` questions are looked at, those after the first 1,700 judge. The pool is `all` models or
those in the `middle`: by models.csv's `strength`, else within 0.20 of the median accuracy. All
choose a vote of at most 7 from the same answers, with weights of any width; a tie goes to who is
best on dev. The search has 300 test rows of its own, which are judged as well.

rows: one per pool and size; scores are fractions, means over the splits.
 ours: what the pick scores; recommended: what `compile` returns, and `verdicts`, how often each
  verdict is said; way_to_ours: recommended, on the way from the best single to ours.
 today: the rule of the pick before it cross-fitted; best_single, ..., random: what each chose;
  weighted7, half_weighted7, weighted_all: with learned weights; agree2_top7: the two best, the
  others only if these disagree; optimum: the best vote of seven of the best 18 models.
 ours_calls: calls per question of the pick; agree2_calls, agree2_minus_ours: share of its calls,
  and what is lost, where its two best are asked first and the others only if they disagree.
 baseline_minus_ours: paired by split, with `low`, its one-sided 95 % bound, which allows for
  the judged questions that splits share. Samplers may have fewer splits: `sampler_splits`.
 optimism: dev score of our pick minus its truth; optimism_reported: what the search says it is.
 reported_minus_truth: of our expected score, less the same of a set that nobody chose
  (`control`), with its standard error; absolute_error: its mean size; coverage: of its 95 %
  interval, the sampling error of the truth taken out; calibration: the true error of the gains
  of votes over the stated one.
 ceiling: the best vote of one half of the questions, on the other; gap_closed: ours, on the
  way to it from the best baseline; null where there is no gap.
 cells: answers to dev questions that the search looked at, at most models x dev.
subpools: with `--subpools N --seed S`, the models of each random pool, by its seed.
halving: rules that had as many cells and more labels than those of the rows.
honest: with `--honest`, what is known of our number alone, over more splits.
rule: with `--rule`, rows of the rule of the pick alone, on the same splits without a search around
 it: what `ours` picks where every vote that the rule looks at may be picked; calibration_smoothed:
 as calibration, of gains on redrawn answers of votes that are not cross-fitted.
power: with `--power`, the chance of the verdict "mixture" of the rule's pick on 300 test rows, and
 `way_to_ours`, the share of its gain that is then handed over, by what a row of val counts; bound:
 of a pick known beforehand, on as many new rows as val and test have, at 6 %.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.bench.quality._ceiling import ceiling
from tests.bench.quality._layered import layered
from tests.bench.quality._power import power_row, run_power
from tests.bench.quality._rows import halving_of, honesty, kind_of, row_of, summary
from tests.bench.quality._rule import each_pool, rule_row, run_rule
from tests.bench.quality._split import Drawn, Task, read, run


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """One task per split, pool and size; sizes that are more than a third are left out."""
    answers = read(options.folder)
    sizes = [n for n in options.dev if 3 * n <= answers.n_questions]
    pools = [name for name in options.pools if answers.pool(name).n_models > 1]
    if options.subpools:
        pools = [f"sub:{options.seed + i}" for i in range(options.subpools)]
    if not sizes or not pools:
        raise SystemExit(
            f"{options.folder}: {answers.n_questions} questions and {answers.n_models} models "
            f"are too few for dev sizes {options.dev} and pools {options.pools}."
        )
    n_splits = options.honest or options.splits
    n_samplers = n_splits if options.samplers is None else options.samplers
    return [
        Task(
            options.folder,
            pool,
            n,
            split,
            has_rivals=not options.honest,
            has_samplers=split - options.first < n_samplers,
        )
        for pool in pools
        for n in sizes
        for split in range(options.first, options.first + n_splits)
    ]


def run_all(
    tasks: Sequence[Task], *, n_jobs: int, run: Callable[[Task], Drawn] = run
) -> Iterator[Drawn]:
    """Yield what comes of each task, in order."""
    if n_jobs == 1:
        yield from map(run, tasks)
        return
    # Not forked: threads of the libraries that are loaded by now would be lost in a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_jobs, mp_context=context) as processes:
        yield from processes.map(run, tasks)


def quality(options: argparse.Namespace) -> dict[str, Any]:
    cells: dict[tuple[str, int], list[Drawn]] = {}
    run_one = run_power if options.power else run_rule if options.rule else run
    for drawn in run_all(tasks_of(options), n_jobs=options.jobs, run=run_one):
        cell = cells.setdefault((kind_of(drawn.task), drawn.task.dev), [])
        cell.append(drawn)
        if len(cell) == 1:
            print(f"{drawn.task.pool}, {drawn.task.dev} dev questions", file=sys.stderr)
    answers = read(options.folder)
    printed: dict[str, Any] = {"questions": answers.n_questions}
    if options.honest:
        rows = [
            {"pool": pool, "dev": dev, "splits": len(drawn), **honesty(drawn)}
            for (pool, dev), drawn in cells.items()
        ]
        return {**printed, "honest": rows}
    if options.power:
        return {**printed, "power": [power_row(drawn) for drawn in cells.values()]}
    if options.rule:
        printed["rule"] = [rule_row(drawn) for drawn in cells.values()]
        each = each_pool(draw for cell in cells.values() for draw in cell)
        return printed | {"each_pool": each, "subpools": _subpools(cells.values())}
    kinds = {pool for pool, _ in cells}
    highest = {pool: None if pool == "sub" else ceiling(answers.pool(pool)) for pool in kinds}
    rows = [row_of(drawn, highest[pool]) for (pool, _), drawn in cells.items()]
    printed |= {
        "rows": rows,
        "summary": summary(rows),
        "halving": list(map(halving_of, cells.values())),
        "subpools": _subpools(cells.values()),
    }
    return printed


def _subpools(cells: Iterable[Sequence[Drawn]]) -> dict[str, tuple[str, ...]]:
    every = (draw for cell in cells for draw in cell)
    return {draw.task.pool: draw.pool for draw in every if "sub" in draw.task.pool}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Hold the search against simple rules.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--splits", type=int, help="20; of --layered 200")
    parser.add_argument("--first", type=int, default=0, help="number of the first split")
    parser.add_argument("--dev", type=int, nargs="+", default=[100, 200, 500])
    parser.add_argument("--pools", nargs="+", default=["all", "middle"])
    parser.add_argument("--subpools", type=int, help="random pools of 6 to 12 models instead")
    parser.add_argument("--seed", type=int, default=0, help="of the first random pool")
    parser.add_argument("--samplers", type=int, help="splits on which Optuna chooses; default all")
    parser.add_argument("--honest", type=int, help="splits; nothing but the honesty of our number")
    parser.add_argument("--rule", action="store_true", help="the rule alone, without a search")
    parser.add_argument("--power", action="store_true", help="the chance of the verdict alone")
    parser.add_argument("--layered", action="store_true", help="search layers of the quickstart")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    if options.folder is None and not options.layered:
        parser.error("give a FOLDER, or --layered")
    started = time.perf_counter()
    if options.layered:
        printed = layered(options.splits or 200, first=options.first, n_jobs=options.jobs)
    else:
        options.splits = options.splits or 20
        printed = quality(options)
    printed["seconds"] = time.perf_counter() - started
    print(json.dumps(printed, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Counts the calls that votes spare by stopping, and what that costs in accuracy.

Usage: python tests/bench/stopping.py FOLDER [--json] [--splits 2] [--dev 200] [--pools all middle]
                                      [--rule]

FOLDER, pools and splits are those of `search_quality.py`. A search with the shipped defaults and
``objectives = ["win_rate", "calls"]`` picks on the dev questions; its votes then answer the judged
questions, asked by the library's own waves. Means over the splits whose pick is a vote:

 members: of the pick; full: its score where all of them are asked, so many calls per question.
 exact_calls: share of these calls where asking ends once the others cannot change the answer;
  exact_changes: judged questions on which the answer is another then.
 less: how many splits have a vote that the search says is no worse than its pick for fewer calls
  (`for_less`), of these `early` ones that may stop before they are decided. less_calls: its calls
  over those of the full pick, and 1 where there is none but the pick; less_minus_full: its score
  minus that of the full pick in points, with its standard error over judged questions; own_calls
  and less_minus_own, against all members of the same vote.

With ``--rule`` no search is around it: the three best of the votes that the rule of the pick looks
at are measured, and once more with the stopping that a search would try. Calls are then counted on
arrays, and not by the waves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.space.programs import read_architecture
from tests.bench.quality._folder import Answers, Indices, Scores
from tests.bench.quality._replay import Replay, answer_text, answered
from tests.bench.quality._search import N_TEST, N_TRAIN, study
from tests.bench.quality._split import Draw, Task, error, read
from tests.bench.quality._stopping import one_rule

OBJECTIVES = ("win_rate", "calls")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an architecture answers to the judged questions, and at how many calls each."""

    texts: tuple[str | None, ...]
    scores: Scores
    calls: float

    @classmethod
    def of(
        cls, architecture: Architecture, replay: Replay, judged: Answers, *, stop_early: bool = True
    ) -> Asked:
        """Ask, question by question."""
        members = architecture.layers[-1] if architecture.layers else architecture.agents
        mixture = replay.student(architecture, stop_early=stop_early)
        places = {name: replay.names.index(name) for name in architecture.agents}
        texts: list[str | None] = []
        scores, calls = np.zeros(judged.n_questions), np.zeros(judged.n_questions)
        for q in range(judged.n_questions):
            codes = {name: int(judged.codes[at, q]) for name, at in places.items()}
            given = {name: answer_text(code) for name, code in codes.items()}
            found = answered(mixture, given)
            texts.append(None if found is None else found.final.text)
            # Where nothing is answered all have been asked.
            calls[q] = len(members) if found is None else found.calls
            if found is not None:
                scores[q] = judged.scores[places[found.final.agent], q]
        return cls(tuple(texts), scores, float(calls.mean()))


def one_split(task: Task) -> dict[str, Any]:
    """Search on one draw, and return what its votes spare on the judged questions."""
    draw = Draw.of(task)
    others = _others(draw)
    result, replay = study(
        draw.pool, draw.order[: task.dev], others, objectives=OBJECTIVES, seed=task.split
    )
    print(
        f"{task.pool}, {task.dev}, split {task.split}: {result.pick}", file=sys.stderr, flush=True
    )
    whole = replace(result.pick, agree=None, lead=None)
    found: dict[str, Any] = {"split": task.split, "pick": str(result.pick)}
    if whole.combine != "vote" or not whole.layers:
        return found
    full = Asked.of(whole, replay, draw.judged, stop_early=False)
    exact = Asked.of(whole, replay, draw.judged)
    changes = sum(a != b for a, b in zip(exact.texts, full.texts, strict=True))
    found |= {
        "members": len(whole.layers[-1]),
        "full": float(full.scores.mean()),
        "exact_calls": exact.calls / full.calls,
        "exact_changes": changes + int((exact.scores != full.scores).sum()),
    }
    return found | _for_less(result, replay, draw, full)


def _others(draw: Draw) -> Indices:
    n_others = min(N_TRAIN + N_TEST, (len(draw.order) - draw.start) // 2)
    return draw.order[draw.start : draw.start + n_others]


def _for_less(result: StudyResult, replay: Replay, draw: Draw, full: Asked) -> dict[str, Any]:
    """Return what is said of what asks fewer than the pick; of the pick itself where nothing is."""
    chosen = result.pick if result.for_less is None else read_architecture(result.for_less)
    asked = Asked.of(chosen, replay, draw.judged)
    whole = replace(chosen, agree=None, lead=None)
    own = Asked.of(whole, replay, draw.judged, stop_early=False)
    gap, own_gap = asked.scores - full.scores, asked.scores - own.scores
    return {
        "for_less": result.for_less,
        "is_early": (chosen.agree, chosen.lead) != (None, None),
        "less_calls": asked.calls / full.calls,
        "less_minus_full": 100 * float(gap.mean()),
        "less_minus_full_se": 100 * error(gap),
        "own_calls": asked.calls / own.calls,
        "less_minus_own": 100 * float(own_gap.mean()),
        "less_minus_own_se": 100 * error(own_gap),
    }


MEANS = ("members", "full", "exact_calls", "exact_changes", "less_calls", "less_minus_full")
MORE_MEANS = ("less_minus_full_se", "own_calls", "less_minus_own", "less_minus_own_se")


def row_of(task: Task, splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of one pool and size; what no split has is null."""
    means: dict[str, float | None] = {}
    for name in (*MEANS, *MORE_MEANS):
        values = [float(split[name]) for split in splits if name in split]
        means[name] = fmean(values) if values else None
    counts = {"votes": sum("full" in split for split in splits)}
    counts["less"] = sum(split.get("for_less") is not None for split in splits)
    counts["early"] = sum(split.get("is_early", False) for split in splits)
    head = {"pool": task.pool, "dev": task.dev, "splits": len(splits)}
    return {**head, **counts, **means, "each": list(splits)}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Count the calls that stopping votes spare.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--dev", type=int, nargs="+", default=[200])
    parser.add_argument("--pools", nargs="+", default=["all", "middle"])
    parser.add_argument("--rule", action="store_true", help="the rules alone, without a search")
    options = parser.parse_args(arguments)
    run_one = one_rule if options.rule else one_split
    started, answers = time.perf_counter(), read(options.folder)
    rows = []
    for pool in options.pools:
        for dev in options.dev:
            tasks = [Task(options.folder, pool, dev, split) for split in range(options.splits)]
            rows.append(row_of(tasks[0], list(map(run_one, tasks))))
    printed = {"questions": answers.n_questions, "rows": rows}
    printed["seconds"] = time.perf_counter() - started
    print(json.dumps(printed, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

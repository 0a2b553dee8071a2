"""Times what a search does besides waiting for models: a replay, and its own work per trial.

Usage: python tests/bench/study_speed.py [--json] [--trials 100] [--rows 200] [--at 100 1000]

replay_seconds: a finished study of 7 calls per architecture and row, run again over its file;
replay_calls are those that it makes. The study is made before, by agents that answer at once.
replay_cpu_seconds: processor time of the same, which other work on the machine does not lengthen.
replay_over_reading: replay_seconds over reading_seconds, which reading every call of the study
from SQLite takes, each by its key.
trial_overhead_ms_at_N: our search without any measuring after N trials: the sampler, the space,
and what is kept of a trial, with two objectives and 12 agents; processor time, the mean of 20
trials after the first. tpe_ms_at_N is Optuna's default TPE with one objective,
overhead_over_tpe_at_N the ratio.
storage_ms_at_N: what a file that a dashboard can read adds to a trial of a random search.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import dspy
import optuna

from moa_dspy.adapters import ADAPTERS
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Calls, CallStore
from moa_dspy.data import METRICS
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import OBJECTIVES, ModelSearch, SearchSpace, TrialRecord
from moa_dspy.optimize.sampler import PerformanceDiversitySampler
from moa_dspy.optimize.storage import LiveStorage, make_study
from moa_dspy.optimize.trials import Proposal, Trials
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

AGENTS = tuple(f"agent{n}" for n in range(6))
N_TIMED = 20


def pool_of(store: CallStore) -> Pool:
    def script(agent: str) -> Callable[[str], str]:
        def reply(prompt: str) -> str:
            first = prompt.split()[0]
            # Each errs on other rows: a study in which all are always right decides nothing.
            is_wrong = first.isdecimal() and int(first) % 7 == int(agent[-1])
            # Every agent has words of its own, so that other references are another question.
            return f"{agent} says {sum(map(ord, prompt)) % 9973}: {first}{'x' * is_wrong}"

        return reply

    return scripted_pool({name: script(name) for name in AGENTS}, calls=Calls(store))


def rows_of(split: str, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(
            id=f"{split}-{i}", question=f"{i} {split} is the question", answer=f"{i}"
        ).with_inputs("question")
        for i in range(n)
    ]


def run_study(path: Path, *, n_trials: int, n_rows: int) -> tuple[float, int, str]:
    """Return seconds, calls made, and the pick, of a study over the file."""
    store = CallStore(path)
    pool = pool_of(store)
    space = SearchSpace(AGENTS, ("synthesize",), max_depth=2, min_width=3, max_width=3)
    student = MixtureOfAgents(
        "question -> answer", Architecture.single(AGENTS[0]), pool=pool, adapter=ADAPTERS["plain"]()
    )
    search = ModelSearch(METRICS["answer_match"], pool, space=space, n_trials=n_trials)
    started = perf_counter()
    search.compile(
        student,
        trainset=rows_of("train", 1),
        valset=rows_of("val", n_rows),
        testset=rows_of("test", n_rows),
    )
    seconds = perf_counter() - started
    store.close()
    return seconds, search.result.calls_made, str(search.result.pick)


def reading_seconds(path: Path) -> float:
    """Return how long it takes to read the calls of a store, one query each, in any order."""
    store = CallStore(path, memory_bytes=0)
    keys = [key for (key,) in store.database.rows("SELECT key FROM calls")]
    random.Random(0).shuffle(keys)
    started = perf_counter()
    for key in keys:
        store.get(key)
    seconds = perf_counter() - started
    store.close()
    return seconds


def replayed(*, n_trials: int, n_rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.sqlite"
        made, n_calls, pick = run_study(path, n_trials=n_trials, n_rows=n_rows)
        started = process_time()
        seconds, n_again, again = run_study(path, n_trials=n_trials, n_rows=n_rows)
        cpu_seconds = process_time() - started
        reading = reading_seconds(path)
    return {
        "replay_seconds": seconds,
        "replay_cpu_seconds": cpu_seconds,
        "reading_seconds": reading,
        "replay_over_reading": seconds / reading,
        "replay_calls": n_again,
        "replayed_calls": n_calls,
        "replay_finds_the_same": pick == again,
        "seconds_when_made": made,
    }


def overhead(moments: Sequence[int]) -> dict[str, float]:
    """Return milliseconds per trial of our sampler and of TPE, and of the storage, by moment."""
    printed: dict[str, float] = {}
    agents = tuple(f"agent{n}" for n in range(12))
    space = SearchSpace(agents, max_depth=2, max_width=4)
    ours = timed(space, moments, PerformanceDiversitySampler(space, seed=0))
    # As Optuna's users have it, with one objective: with two it takes several times as long.
    tpe = timed(space, moments, optuna.samplers.TPESampler(seed=0), names=("win_rate",))
    with tempfile.TemporaryDirectory() as folder:
        storage = LiveStorage(Path(folder) / "study.sqlite3", "bench")
        random_sampler = optuna.samplers.RandomSampler(seed=0)
        stored = timed(space, moments, random_sampler, storage)
        storage.close()
    plain = timed(space, moments, optuna.samplers.RandomSampler(seed=0))
    for moment in moments:
        printed[f"trial_overhead_ms_at_{moment}"] = ours[moment]
        printed[f"tpe_ms_at_{moment}"] = tpe[moment]
        printed[f"overhead_over_tpe_at_{moment}"] = ours[moment] / tpe[moment]
        printed[f"storage_ms_at_{moment}"] = stored[moment] - plain[moment]
    return printed


def timed(
    space: SearchSpace,
    moments: Sequence[int],
    sampler: Any,
    storage: LiveStorage | None = None,
    *,
    names: Sequence[str] = ("win_rate", "diversity"),
) -> dict[int, float]:
    """Return milliseconds per trial after each number of trials."""
    rng = random.Random(0)
    objectives = [OBJECTIVES[name]() for name in names]

    def measure(proposal: Proposal) -> None:
        architecture = proposal.architecture
        values: dict[str, Any] = {n: rng.random() for n in ("win_rate", "score", "diversity")}
        costs: dict[str, Any] = {"calls": architecture.calls, "usd": 0.0, "seconds": 1.0}
        number, text = len(trials.records), str(architecture)
        record = TrialRecord(number, text, proposal.origin, rows=200, **values, **costs)
        rows = [float(rng.random() < record.score) for _ in range(200)]
        told_values = [getattr(record, name) for name in names]
        trials.tell(proposal, trials.start(proposal), record, told_values, row_scores=rows)

    trials = Trials(
        study=make_study(objectives, seed=0, sampler=sampler, storage=storage),
        space=space,
        ranking=space.agents,
        canonical=lambda arch: arch,
        seed=0,
    )
    found = {}
    singles = [Architecture.single(name) for name in space.agents]
    for proposal in trials.fresh(singles, origin="single"):
        measure(proposal)
    for moment in moments:
        # Random ones are as good as any to fill a study, and quicker.
        while (n_left := moment - len(trials.records)) > 0:
            drawn = [space.draw(rng) for _ in range(n_left)]
            for proposal in trials.fresh(drawn, origin="random"):
                measure(proposal)
        if (asked := trials.ask()) is not None:
            # The first proposal reads all trials at once: no study jumps to a thousand.
            measure(asked)
        started = process_time()
        while len(trials.records) < moment + 1 + N_TIMED and (asked := trials.ask()) is not None:
            measure(asked)
        found[moment] = 1_000 * (process_time() - started) / N_TIMED
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time a search without its models.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200, help="of val, and of test")
    parser.add_argument("--no-replay", action="store_true", help="time the trials alone")
    parser.add_argument("--at", type=int, nargs="+", default=[100, 1_000], help="trials")
    options = parser.parse_args(arguments)
    printed = overhead(options.at)
    if not options.no_replay:
        printed |= replayed(n_trials=options.trials, n_rows=options.rows)
    print(json.dumps(printed, indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])

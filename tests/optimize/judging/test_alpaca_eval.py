"""Recorded verdicts of AlpacaEval 2, as a judged search measures its single agents."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.budget import Ledger
from moa_dspy.data import BENCHMARKS
from moa_dspy.data.recorded import read_recorded
from moa_dspy.judges import RecordedPairs
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, JudgeOptions, SearchSpace
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import PreferenceMetric
from moa_dspy.optimize.options import SearchOptions, named_diversity, named_objectives
from moa_dspy.optimize.progress import Progress, silent
from moa_dspy.optimize.singles import measure_single_agents
from moa_dspy.testing import recorded_pool
from moa_dspy.winrate import GamedRows

BASELINE = "gpt4_1106_preview"
TABLE_2A = ("Together-MoA", "Together-MoA-Lite", "gpt-4o-2024-05-13", "Qwen1.5-110B-Chat")
"""The order of the paper's table 2a (arXiv:2406.04692), of the systems whose outputs are there."""


@pytest.fixture(scope="module")
def folder() -> Path:
    default = Path(__file__).parents[3].parent / "shared" / "alpaca_eval"
    found = Path(os.environ.get("MOA_DSPY_ALPACA_EVAL", default))
    if not (found / "preferences.parquet").exists():
        pytest.skip(f"NOT RUN: no recorded preferences in {found}: set MOA_DSPY_ALPACA_EVAL")
    return found


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def measured(
    folder: Path, table: Mapping[tuple[str, str, str], float | None], responses: str, **lc: Any
) -> tuple[Any, Judging]:
    """Measure the recorded systems alone, on all instructions, against the baseline's responses."""
    recorded = read_recorded(
        folder / responses,
        question="instruction_id",
        model="model",
        response="response",
        questions=folder / "instructions.parquet",
        text="instruction",
    )
    difficulty = {
        row["instruction_id"]: float(row["instruction_difficulty"])
        for row in table_of(folder / "instruction_difficulty.csv")
    }
    rows = BENCHMARKS["alpaca_eval"].read(folder)
    rows = [row.copy(difficulty=difficulty[row.id]) for row in rows]
    rows = [row.with_inputs("instruction") for row in rows]
    pool = recorded_pool(recorded)
    agents = tuple(name for name in pool if name != BASELINE)
    judge = JudgeOptions(judge=RecordedPairs(table), picks="judge", reference="reference", **lc)
    options = SearchOptions(
        metric=None,
        pool=pool,
        space=SearchSpace(agents, max_depth=0),
        objectives=named_objectives(["win_rate"]),
        diversity=named_diversity("tfidf"),
        judge=judge,
        num_threads=1,
    )
    judging = Judging.of(options, {"val": rows})
    student = MixtureOfAgents("instruction -> response", agents[0], pool=pool, adapter=PlainChat())
    metric = PreferenceMetric(judging.preference)
    evaluator = Evaluator(student, metric, num_threads=1, judging=judging)
    progress = Progress(silent, Ledger(), 1)
    return measure_single_agents(options, evaluator, rows, progress), judging


@pytest.mark.slow
def test_single_agents_ranking_and_length_controlled_win_rates_are_the_published_ones(
    folder: Path,
) -> None:
    table = {
        (row["model"], "reference", str(row["instruction_id"])): row["preference"]
        for row in pq.read_table(folder / "preferences.parquet").to_pylist()
        if row["model"] != BASELINE
    }
    hard = {
        row["instruction_id"]: float(row["instruction_difficulty"])
        for row in table_of(folder / "instruction_difficulty.csv")
    }
    gamed = table_of(folder / "lc_gamed_baselines.csv")
    singles, judging = measured(
        folder,
        table,
        "responses.parquet",
        length_controlled=False,
        difficulty="difficulty",
        gamed=GamedRows(
            [float(row["preference_reconstructed"]) for row in gamed],
            [float(row["std_delta_len"]) for row in gamed],
            [hard[row["instruction_id"]] for row in gamed],
        ),
    )
    published = {row["model"]: row for row in table_of(folder / "leaderboard.csv")}
    published.pop(BASELINE)
    assert len(published) == 20
    found = {name: judging.system(singles.outcomes[name]) for name in published}
    for name, row in published.items():
        system = found[name]
        assert system.win_rate is not None
        assert system.length_controlled is not None
        assert 100 * system.win_rate == pytest.approx(float(row["win_rate"]), abs=1e-6)
        # Of its 803 rows the leaderboard took the difficulty of other instructions: 9.03.
        is_shifted = name == "text_davinci_001"
        wanted = 6.58 if is_shifted else float(row["length_controlled_winrate"])
        assert 100 * system.length_controlled == pytest.approx(wanted, abs=0.15)
        assert system.n == int(row["n_total"])
    by_rate = sorted(published, key=lambda name: -float(published[name]["win_rate"]))
    assert list(singles.ranking) == by_rate
    # A replay of preferences asks no judge.
    assert judging.costs == {}
    # The two instructions without a judgement are left out, not lost.
    assert found["text_davinci_001"].excluded == 2


@pytest.mark.slow
def test_the_papers_outputs_as_candidates_come_in_the_order_of_its_table(folder: Path) -> None:
    # No verdict on a single instruction is recorded for these outputs: the published
    # length-controlled win rate of a system stands for each of its verdicts.
    published = {row["model"]: row for row in table_of(folder / "paper_leaderboard.csv")}
    ids = [str(row.id) for row in BENCHMARKS["alpaca_eval"].read(folder)]
    table = {
        (name, "reference", i): float(row["length_controlled_winrate"]) / 100
        for name, row in published.items()
        for i in ids
    }
    singles, _ = measured(folder, table, "paper_responses.parquet")
    ranked = [name for name in singles.ranking if name in TABLE_2A]
    assert tuple(ranked) == TABLE_2A
    for name, row in published.items():
        lengths = [o.judged.length for o in singles.outcomes[name] if o.judged is not None]
        assert int(sum(lengths) / len(lengths)) == int(row["avg_length"])

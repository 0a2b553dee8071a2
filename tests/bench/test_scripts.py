"""The benchmark scripts run, and print what their README promises."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from moa_dspy.winrate import Coefficients, GamedRows, length_controlled, standardised_length_gaps
from tests.bench.made_up_answers import write_letters
from tests.bench.walks import forward

Vector = NDArray[np.float64]
BENCH = Path(__file__).parent
N = 40
MISSING = 7
C = "2.782559402207126"


def run(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCH / script), *arguments, "--json"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    printed: dict[str, Any] = json.loads(out.stdout)
    return printed


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class World:
    """Two models and a baseline on 40 instructions; "gappy" lacks one."""

    difficulty: Vector
    gamed: GamedRows
    wins: dict[str, Vector]
    lengths: dict[str, Vector]


def some_world() -> World:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=N)
    wins = {"base": np.full(N, 0.5), "full": generator.random(N), "gappy": generator.random(N)}
    lengths = {name: generator.uniform(500, 3_000, N).round() for name in [*wins, "wordy"]}
    wins["gappy"][MISSING] = lengths["gappy"][MISSING] = np.nan
    gaps = standardised_length_gaps(lengths.pop("wordy"), lengths["base"])
    return World(hard, GamedRows(generator.random(N), gaps, hard), wins, lengths)


def write_inputs(folder: Path, world: World) -> None:
    rows: list[dict[str, object]]
    rows = [
        {"instruction_id": k, "instruction_difficulty": d} for k, d in enumerate(world.difficulty)
    ]
    write_csv(folder / "instruction_difficulty.csv", rows)
    pairs = zip(world.gamed.length_gaps, world.gamed.preferences, strict=True)
    rows = [
        {"instruction_id": k, "std_delta_len": gap, "preference_reconstructed": p}
        for k, (gap, p) in enumerate(pairs)
    ]
    write_csv(folder / "lc_gamed_baselines.csv", rows)
    tables = {"preferences": ("preference", world.wins), "responses": ("n_chars", world.lengths)}
    for file, (column, table) in tables.items():
        rows = [
            {"instruction_id": k, "model": m, column: None if np.isnan(v[k]) else v[k]}
            for m, v in table.items()
            for k in range(N)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet")


def write_published(folder: Path, world: World) -> None:
    board: list[dict[str, object]] = []
    weights: list[dict[str, object]] = []
    for name, own in world.wins.items():
        judged, w, lc, c = own[~np.isnan(own)], Coefficients(), 0.5, ""
        if name != "base":
            columns = (own, world.lengths[name], world.lengths["base"])
            fit = length_controlled(
                *columns, difficulty=world.difficulty, gamed=world.gamed, c=float(C)
            )
            w, lc, c = fit.coefficients, fit.win_rate, C
        error = judged.std(ddof=1) / judged.size**0.5
        numbers = (100 * judged.mean(), 100 * lc, 100 * error)
        names = ("win_rate", "length_controlled_winrate", "standard_error")
        board.append({"model": name, **dict(zip(names, numbers, strict=True))})
        weights.append(
            {"model": name, "w_difficulty": w.difficulty, "w_model": w.model, "implied_C": c}
        )
    write_csv(folder / "leaderboard.csv", board)
    write_csv(folder / "lc_published_weights.csv", weights)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose published numbers are our own."""
    world = some_world()
    write_inputs(tmp_path, world)
    write_published(tmp_path, world)
    return tmp_path


@pytest.mark.slow
def test_alpaca_eval_replay_finds_what_was_published(folder: Path) -> None:
    printed = run("alpaca_eval_replay.py", str(folder))
    assert printed["max_abs_diff_win_rate"] < 1e-9
    assert printed["max_abs_diff_standard_error"] < 1e-9
    assert printed["max_abs_diff_lc"] < 1e-9
    assert printed["max_abs_diff_lc_cross_validated"] < 20
    assert list(printed["lc_by_own_difficulty"]) == ["gappy"]
    assert printed["models"]["gappy"]["n"] == N - 1
    assert printed["lc_seconds_per_model"] > 0


@pytest.mark.slow
def test_alpaca_eval_replay_leaves_out_coefficients_of_another_fit(folder: Path) -> None:
    path = folder / "lc_published_weights.csv"
    with path.open(encoding="utf-8") as file:
        rows: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file)]
    rows[1]["w_model"] = 9.0
    write_csv(path, rows)
    printed = run("alpaca_eval_replay.py", str(folder))
    assert printed["models"]["full"]["diff_lc"] is None
    assert printed["models"]["gappy"]["diff_lc"] is not None


@pytest.mark.slow
def test_intervals_prints_a_coverage_per_cell() -> None:
    printed = run("intervals.py", "--simulations", "20")
    assert len(printed["cells"]) == 9
    assert all(0.5 <= cell["coverage"] <= 1 for cell in printed["cells"].values())


@pytest.mark.slow
def test_mixture_overhead_prints_every_ratio_against_its_baseline() -> None:
    printed = run("mixture_overhead.py", "--quick")
    for kind in ("sync", "async"):
        # Two waits of 40 ms cannot pass faster.
        assert printed[f"wall_over_critical_path_{kind}"] >= 1
        assert printed[f"cpu_over_predicts_{kind}"] == pytest.approx(
            printed[f"cpu_ms_per_mixture_{kind}"] / printed[f"cpu_ms_per_7_predicts_{kind}"]
        )
        assert printed[f"calls_per_second_over_plain_lm_{kind}"] == pytest.approx(
            printed[f"calls_per_second_{kind}"] / printed[f"calls_per_second_of_plain_lm_{kind}"]
        )
    gathers = printed["seconds_of_two_gathers"]
    assert printed["throughput_over_gather"] == pytest.approx(
        gathers / printed["seconds_of_mixtures_at_once"]
    )
    assert gathers >= 2 * 0.040
    assert {"memory_mb_store_off", "memory_mb_store_on"} < set(printed)


@pytest.mark.slow
def test_call_store_prints_every_ratio_with_its_baseline() -> None:
    printed = run("call_store.py", "--calls", "300", "--hits", "100")
    assert printed["stored_calls"] == 300
    for ratio, bare in (
        ("sqlite_hits_over_raw_sqlite3", "sqlite_raw_selects_per_second"),
        ("postgresql_hits_over_bare_select", "postgresql_bare_selects_per_second"),
    ):
        assert 0 < printed[ratio] < 2
        assert printed[bare] > 0
    assert printed["node_lookups_per_second"] > 0
    assert printed["open_seconds"] > 0
    assert printed["replay_rss_mb"] > 0


@pytest.mark.slow
def test_chaos_loses_nothing_pays_nothing_twice_and_finds_the_same() -> None:
    printed = run("chaos.py", "--quick")
    assert printed["kills"] == 4
    assert (printed["calls_lost"], printed["calls_paid_twice"]) == (0, 0)
    assert printed["same_pick"] is True
    assert sum(printed["faults"].values()) > 0


@pytest.mark.slow
def test_scale_out_prints_a_speed_up_and_counts_what_is_asked_twice() -> None:
    sizes = ("--val", "6", "--test", "6", "--trials", "4", "--latency-ms", "20")
    printed = run("scale_out.py", "--workers", "1", "2", *sizes)
    assert printed["duplicate_calls"] == 0
    assert printed["same_result"] is True
    seconds = printed["seconds_of_1"] / printed["seconds_of_2"]
    assert printed["speedup_at_2"] == pytest.approx(seconds)


@pytest.mark.slow
def test_search_statistics_prints_every_share_with_its_error() -> None:
    printed = run("search_statistics.py", "--quick")
    verdicts, racing, costs = (printed[part] for part in ("verdicts", "racing", "cost_verdicts"))
    cells = [*costs["worse_by_the_margin"], *costs["equally_good"]]
    assert all(cell["se"] == pytest.approx(error(cell["as_good"], 50)) for cell in cells)
    assert {row["world"] for row in costs["graded_worse_by_the_margin"]} >= {"rare losses"}
    nothing = verdicts["where_nothing_pays"]
    by_chance = "two_answers_by_chance"
    known = {"eight_coins", "one_model_knows_all", "copies_of_one_model", "pure_noise", by_chance}
    assert set(nothing) == known
    # Five picks on 200 questions each: the mean of 8 points has an error of 1.4.
    assert 0 < verdicts["votes_that_gain_8_points"]["mean_gain"] < 0.3
    assert verdicts["layered_that_gains_8_points"]["picked"] > 0
    shares = [*nothing.values(), *verdicts["power"], verdicts["votes_that_gain_8_points"]]
    assert all(cell["se"] == pytest.approx(error(cell["mixture"], 5)) for cell in shares)
    assert {cell["world"] for cell in racing["equal_arms"]} >= {"binary", "graded"}
    drops = [*racing["equal_arms"], *racing["uncorrected_baseline"]]
    assert all(cell["se"] == pytest.approx(error(cell["share"], 5)) for cell in drops)
    worst = [cell["rows_of_bad_arms"] for cell in racing["bad_arms"] if cell["bad_by"] == 0.3]
    # Arms 30 points worse of 8 are stopped before the end, and never before the first look.
    assert all(0.2 <= rows < 0.9 for rows in worst)


def error(share: float, n: int) -> float:
    return float((share * (1 - share) / n) ** 0.5)


@pytest.mark.slow
def test_search_economy_prints_every_rival_per_family() -> None:
    sizes = ("--seeds", "2", "--trials", "14", "--rival-trials", "14", "--draws", "4")
    printed = run("search_economy.py", *sizes, "--families", "order", "nothing")
    assert set(printed["families"]) == {"order", "nothing"}
    assert printed["draws"] == 4
    shares = [family["random_ahead"]["share"] for family in printed["families"].values()]
    # Of 2 worlds with 4 searches each, a tie counting half.
    assert all((share * 16).is_integer() and 0 <= share <= 1 for share in shares)
    for family in printed["families"].values():
        assert family["ours"]["calls"] > 0
        assert len(family["rivals"]) == 2 * 2 * 2
        for name, rival in family["rivals"].items():
            assert rival["arrived"] + rival["censored"] + rival["cut"] == 2
            # Nodes that are shared are counted once.
            if name.endswith("unshared"):
                shared = family["rivals"][name.replace("unshared", "shared")]
                assert rival["calls"] >= shared["calls"]


@pytest.mark.slow
def test_study_speed_replays_without_a_call() -> None:
    printed = run("study_speed.py", "--trials", "8", "--rows", "6", "--at", "12")
    assert printed["replay_calls"] == 0
    assert printed["replayed_calls"] > 0
    assert printed["replay_finds_the_same"] is True
    assert printed["trial_overhead_ms_at_12"] > 0


@pytest.mark.slow
def test_search_quality_has_every_rival_in_every_row(tmp_path: Path) -> None:
    write_letters(tmp_path)
    sizes = ("--splits", "2", "--samplers", "1", "--dev", "30", "200", "--pools", "middle")
    printed = run("search_quality.py", str(tmp_path), *sizes, "--jobs", "1")
    (row,) = printed["rows"]  # 298 questions: 200 are more than a third
    assert (row["pool"], row["dev"], row["models"]) == ("middle", 30, 3)
    assert (row["splits"], row["sampler_splits"]) == (2, 1)
    rivals = {"best_single", "topk_by_dev", "caruana7", "exhaustive", "random"}
    rivals |= {f"top{k}" for k in (3, 5, 7)} | {f"acc_plus_diversity_k{k}" for k in (3, 5, 7)}
    rivals |= {"today", "agree2_top7", "weighted7", "half_weighted7", "weighted_all"}
    assert set(row["baseline_minus_ours"]) == rivals | {"tpe300", "nsga2"}
    assert all(0 <= row[name] <= row["optimum"] for name in (*rivals, "ours"))
    assert 0 < row["cells"] <= row["models"] * row["dev"]
    assert {"optimism", "reported_minus_truth", "reported_minus_truth_se", "coverage"} < set(row)
    assert [half["labels"] for half in printed["halving"]] == [60]
    leads = [lead["mean"] for lead in row["baseline_minus_ours"].values()]
    assert printed["summary"]["largest_baseline_lead"] == max(leads)


@pytest.mark.slow
def test_stopping_spares_calls_and_changes_no_answer(tmp_path: Path) -> None:
    write_letters(tmp_path)
    options = ("--splits", "1", "--dev", "60", "--pools", "all")
    (row,) = run("stopping.py", str(tmp_path), *options)["rows"]
    assert (row["pool"], row["dev"], row["splits"], row["votes"]) == ("all", 60, 1, 1)
    (split,) = row["each"]
    assert split["members"] > 2
    assert split["exact_changes"] == 0
    assert 0.5 < split["exact_calls"] < 1
    assert (row["less"], row["early"]) == (split["for_less"] is not None, split["is_early"])
    # Fewer are asked than all members of the same vote, and than all of the pick.
    assert 1 / split["members"] <= split["less_calls"] <= split["exact_calls"]
    assert split["own_calls"] < 1
    assert split["less_minus_own_se"] >= 0


@pytest.mark.slow
def test_search_quality_prints_the_honesty_of_our_number_alone(tmp_path: Path) -> None:
    write_letters(tmp_path)
    sizes = ("--honest", "2", "--dev", "30", "--pools", "all", "--jobs", "1")
    printed = run("search_quality.py", str(tmp_path), *sizes)
    (row,) = printed["honest"]
    assert (row["pool"], row["dev"], row["splits"]) == ("all", 30, 2)
    assert 0 <= row["coverage"] <= 1
    assert "rows" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["both", "lookup"])
def test_studies_of_programs_take_about_what_was_expected(kind: str) -> None:
    printed = run("estimates_of_programs.py", "--kind", kind)
    (study,) = printed["studies"]
    assert study["family"] == kind
    assert printed["calls"] == {"within": 1.0, "held": 1.0}, study
    assert printed["usd"]["within"] == 1.0, study


@pytest.mark.slow
def test_the_walk_of_a_question_begins_at_the_mixture_and_ends_at_the_endpoint() -> None:
    walk = forward()
    assert {"mixture.py", "plan.py", "seats.py", "calls/lm/endpoint.py"} <= set(walk.files)
    # The server of the test runs beside, and no file of a search is on the way.
    assert not [name for name in walk.files if name.startswith(("optimize/", "serve/"))]
    assert len(walk.files) <= 20
    assert ("plan.py", "aggregators.py") in walk.hops

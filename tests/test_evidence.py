"""The pages of results show what their runs stored, and the runs are those of the study files."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moa_dspy import Architecture

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MOA_DSPY_SHARED", ROOT.parent / "shared"))
TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "docs/evidence_tables.py"))
VOTES: dict[str, Any] = runpy.run_path(str(ROOT / "optimize/votes.py"))
FIGURES: dict[str, Any] = runpy.run_path(str(ROOT / "docs/figures.py"))
MAKE_TABLES = ROOT / "data/pools/make_tables.py"
STUDIES = sorted((ROOT / "optimize/votes").glob("*.toml"))

TOY = """name = "toy"
[data]
sizes = { train = 2, val = 200, test = 500 }
"""


def runs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "docs/results/votes.json").read_text("utf-8"))[
        "votes"
    ]
    return found


def test_a_smaller_table_leaves_fewer_rows_for_the_test() -> None:
    # 602 questions - 2 - 500 looked at = 100 for the test; with 50 looked at, 500 as written.
    assert "val = 500, test = 100 }" in VOTES["resized"](TOY, 500, 602)
    assert "val = 50, test = 500 }" in VOTES["resized"](TOY, 50, 602)


def test_a_study_whose_sizes_are_written_otherwise_is_refused() -> None:
    odd = TOY.replace("{ train", "{train")
    with pytest.raises(SystemExit, match="line of sizes must read"):
        VOTES["resized"](odd, 100, 1000)


def test_a_model_alone_is_its_mean_and_what_it_did_not_answer() -> None:
    table = pd.DataFrame(
        {
            "question": ["1", "2", "3", "4", "1"],
            "agent": ["a", "a", "a", "a", "b"],
            "answer": ["x", None, "y", "x", "x"],
            "score": [1.0, 0.0, 0.0, 1.0, 1.0],
            "usd": [1.0, 2.0, 3.0, 4.0, 9.0],
        }
    )
    # Of questions 1 to 3: one of three right, (1 + 2 + 3) / 3 usd, one of three without answer.
    a, b = VOTES["singles"](table, ["1", "2", "3"])
    assert (a["agent"], a["score"], a["usd"], a["rows"]) == ("a", pytest.approx(1 / 3), 2.0, 3)
    assert a["without_answer"] == pytest.approx(1 / 3)
    assert (b["agent"], b["rows"]) == ("b", 1)
    assert VOTES["singles"](table.drop(columns="usd"), ["1"])[0]["usd"] is None


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_votes_is_on_the_page(study: Path) -> None:
    read = tomllib.loads(study.read_text("utf-8"))
    assert read["name"] == study.stem
    assert study.stem in TABLES["POOLS"]
    table = (study.parent / read["data"]["path"]).resolve().name
    assert f"`{table}`" in (ROOT / "data/pools/README.md").read_text("utf-8")


def test_stored_runs_are_of_the_study_files() -> None:
    for run in runs():
        read = tomllib.loads((ROOT / f"optimize/votes/{run['study']}.toml").read_text("utf-8"))
        if run["val"] == VOTES["WRITTEN"]:
            assert run["test_rows"] == read["data"]["sizes"]["test"], run["study"]
        assert run["seed"] == read["seed"]
        members = set(Architecture.parse(run["pick"]).agents)
        pool = {name.replace(" ", "-") for name in read["space"].get("agents", members)}
        assert members <= pool, run["study"]
        assert run["trials"] <= read["search"]["n_trials"]


@pytest.mark.parametrize(
    ("architecture", "shown"),
    [
        ("a + b > vote(a)", "`a + b > vote(a)`"),
        ("a + b + c + d > vote(a)", "equal vote of 4"),
        ("a + b + c + d > vote(a; weights=a:2)", "vote with learned weights of 4"),
    ],
)
def test_a_wide_vote_is_named_by_its_size(architecture: str, shown: str) -> None:
    assert TABLES["named"](architecture) == shown


def test_a_table_without_prices_has_no_ratio_of_them() -> None:
    assert TABLES["_times"](3.0, 2.0) == "1.5 times"
    assert TABLES["_times"](0.0, 0.0) == "unknown"


def test_the_picture_has_every_system_above_its_floor_once() -> None:
    alone = [
        {"agent": name, "score": score, "low": score, "high": score, "usd": usd}
        for name, score, usd in (("a", 0.5, 0.001), ("b", 0.7, 0.01), ("weak", 0.2, 0.001))
    ]
    system = {"score": 0.8, "low": 0.75, "high": 0.85, "usd": 0.002}
    run = {"study": "toy", "test_rows": 9, "singles": alone}
    run["test"] = {"pick": system, "top_k": {**system, "score": 0.6, "low": 0.5, "high": 0.65}}
    drawn = FIGURES["prices"](
        [run], title="a < b", cheap=["a"], labels={"toy": "ours"}, named={"b": "big b"}
    )
    body = drawn.partition("</style>")[2]
    # A sign of each kind stands in the legend too.
    kinds = ("cheap", "dear", "equal", "vote")
    assert [len(re.findall(f'class="{kind}"', body)) for kind in kinds] == [2, 2, 2, 2]
    assert "a &lt; b" in body
    assert "9 questions" in body
    assert "1 models below 40 %" in body
    assert ">big b</text>" in body
    assert "prefers-color-scheme: dark" in drawn


def test_no_text_of_the_picture_is_cut_or_stands_on_another() -> None:
    drawn = TABLES["figure"]()
    width, right = FIGURES["WIDTH"], FIGURES["WIDTH"] - FIGURES["RIGHT"]
    head, small, bold = (FIGURES[name] for name in ("HEAD", "SMALL", "BOLD"))
    letters = {"head": head, "small": small, "label": small, "bold": bold}
    boxes = []
    for style, x, y, rest, text in re.findall(
        r'<text class="(\w+)" x="([\d.]+)" y="([\d.]+)"([^>]*)>([^<]+)<', drawn
    ):
        size = letters[style] * len(text)
        left = float(x) - size * (1.0 if "end" in rest else 0.5 if "middle" in rest else 0.0)
        assert left >= 0, text
        assert left + size <= (width if "middle" in rest else right), text
        boxes.append((left, float(y) - 9, left + size, float(y) + 2, text))
    assert len(boxes) > 20
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            is_over = one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
            assert not is_over, (one[4], two[4])


def shared_tables() -> dict[str, Any]:
    missing = [name for name in ("mmlu_pro", "zeroeval_math") if not (SHARED / name).is_dir()]
    if missing:
        pytest.skip(f"NOT CHECKED ON REAL FILES: no {missing[0]} in ../shared or $MOA_DSPY_SHARED")
    return runpy.run_path(str(MAKE_TABLES))


def test_tables_of_pools_keep_what_the_recordings_say() -> None:
    made = shared_tables()
    math = made["math"](SHARED / "zeroeval_math")
    models = pd.read_csv(SHARED / "zeroeval_math/models.csv").set_index("model")
    assert (math.groupby("agent").score.mean() - models.accuracy).abs().max() < 1e-4
    assert math.question.nunique() == 721
    letters = made["mmlu_pro"](SHARED / "mmlu_pro")
    assert letters.question.nunique() == 11_636
    assert letters.groupby("question").size().eq(18).all()


def test_a_folder_that_is_absent_is_skipped_and_named(tmp_path: Path) -> None:
    command = [sys.executable, str(MAKE_TABLES), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("mmlu_pro", "reasoning_gym", "zeroeval_math"):
        assert f"skipped, there is no {tmp_path / name}" in done.stdout


def test_a_reader_reads_every_kind_at_every_count() -> None:
    made = runpy.run_path(str(ROOT / "optimize/collaboration.py"))

    def planned(reader: str, *counts: int) -> list[Any]:
        return [condition for group in made["conditions"](reader, counts) for condition in group]

    found = [(condition.references, condition.n) for condition in planned("qwen-0.5b", 1, 3)]
    # Alone and its own draft; weaker, equal and stronger at 1 and 3; all three models at 3.
    read = [(kind, n) for kind in ("weaker", "equal", "stronger") for n in (1, 3)]
    assert found == [("alone", 0), ("own draft", 1), *read, ("mixed", 3)]
    texts = [condition.architecture for condition in planned("smollm2-135m", 6)]
    # The weakest has no weaker one; six mixed are a greedy answer and a sample of each model.
    assert [t for t in texts if t.startswith("qwen-0.5b + ")] == [
        "qwen-0.5b + qwen-1.5b + smollm2-135m + qwen-0.5b-warm + qwen-1.5b-warm + "
        "smollm2-135m-warm > synthesize(smollm2-135m)"
    ]
    assert len(texts) == 5


def test_what_a_run_measured_replaces_what_stood_there() -> None:
    place_of = runpy.run_path(str(ROOT / "optimize/collaboration.py"))["place_of"]
    row = {"tasks": "quickstart", "layout": "paper", "reader": "qwen-0.5b", "n": 1}
    row["references"] = "weaker"
    assert place_of({**row, "score": [0.1, 0, 1]}) == place_of(row)
    assert place_of({**row, "layout": "guarded"}) < place_of(row)

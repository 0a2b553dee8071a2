"""Tables of answers: what is read of them, what a wrong one is told, and the shipped example."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.calls.budget import Ledger
from moa_dspy.data import read_answers
from moa_dspy.data.recorded import RecordedCost
from moa_dspy.errors import DataError, StoreError, StudyError
from moa_dspy.optimize.study import PreparedStudy

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = [
    {"q": "1", "model": "a", "answer": "x", "ok": 1, "usd": 0.01, "gold": "x"},
    {"q": "1", "model": "b", "answer": "y", "ok": 0, "usd": 0.02, "gold": "x"},
    {"q": "2", "model": "a", "answer": "", "ok": 0, "usd": 0.01, "gold": "z"},
    {"q": "2", "model": "b", "answer": "z", "ok": 1, "usd": 0.02, "gold": "z"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_answers_scores_and_costs_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS)
    found = read_answers(path, columns={"question": "q", "agent": "model", "score": "ok"})
    assert found.models == ("a", "b")
    assert found.responses["a"] == {"1": "x", "2": None}
    assert found.scores["2", "b"] == 1.0
    assert found.costs["1", "b"] == RecordedCost(usd=0.02)
    assert (found.knows("usd"), found.knows("seconds")) == (True, False)
    assert [row.id for row in found.examples()] == ["1", "2"]


def test_without_scores_an_answer_is_compared_with_gold(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS)
    columns = {"question": "q", "agent": "model"}
    found = read_answers(path, columns=columns, matches=lambda gold, given: float(gold == given))
    assert found.scores == {("1", "a"): 1.0, ("1", "b"): 0.0, ("2", "b"): 1.0}


def test_a_wrong_table_is_told_what_was_found_and_what_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS)
    message = (
        r"no column for question, agent\. A table of answers needs question, agent, answer, and "
        r"score or gold.*Found: q, model, answer, ok, usd, gold\. .* give these in `data.columns`"
    )
    with pytest.raises(DataError, match=message):
        read_answers(path)
    bare = write(tmp_path / "u.csv", [{"question": 1, "agent": "a", "answer": "x"}])
    with pytest.raises(DataError, match="no column for score or gold"):
        read_answers(bare)
    with pytest.raises(
        DataError, match=r"`columns` has an unknown key 'speed'; known ones are question"
    ):
        read_answers(path, columns={"speed": "usd"})


def test_a_cost_is_no_negative_number_and_a_question_has_one_gold(tmp_path: Path) -> None:
    columns = {"question": "q", "agent": "model", "score": "ok"}
    with pytest.raises(DataError, match="'usd' must be a number of at least 0, but is '-1'"):
        read_answers(write(tmp_path / "t.csv", [{**ROWS[0], "usd": -1}]), columns=columns)
    other = write(tmp_path / "u.csv", [ROWS[0], {**ROWS[1], "gold": "other"}])
    with pytest.raises(DataError, match="all rows of a question must have the same gold"):
        read_answers(other, columns=columns)


def test_a_table_of_answers_given_as_a_recording_is_told_where_it_goes(tmp_path: Path) -> None:
    from moa_dspy.calls.store.schema import Recording

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    with pytest.raises(StoreError, match=r'lacks agent.*has q, model.*`data.reader` = "recorded"'):
        Recording.read(tmp_path / "t.parquet")


def study(tmp_path: Path, *lines: str, rows: list[dict[str, Any]] | None = None) -> Path:
    many = [
        {**row, "q": f"{n}-{row['q']}"}
        for n in range(10)
        for row in (ROWS if rows is None else rows)
    ]
    write(tmp_path / "t.csv", many)
    text = (
        'name = "t"\n[data]\nreader = "recorded"\npath = "t.csv"\n'
        "sizes = { train = 1, val = 10, test = 9 }\n"
        'columns = { question = "q", agent = "model", score = "ok" }\n'
    )
    (tmp_path / "s.toml").write_text(text + "\n".join(lines), "utf-8")
    return tmp_path / "s.toml"


def test_the_agents_of_a_table_are_the_pool_and_their_costs_are_known(tmp_path: Path) -> None:
    prepared = PreparedStudy.read(study(tmp_path, "[search]", 'objectives = ["win_rate", "usd"]'))
    pool = prepared.make_pool(None, Ledger())
    assert list(pool) == ["a", "b"]
    assert pool.unpriced == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[limits]", "seconds = 1"], "seconds is an objective or a limit, but .*t.csv does not"),
        (
            ["[space]", 'combines = ["synthesize"]'],
            "`space.combines` of recorded answers can only be",
        ),
        (["[space]", 'rankers = ["a"]'], "`space.rankers` cannot be set for recorded answers"),
        (['[[agents]]\nname = "x"\nmodel = "y"'], "`agents` cannot be set with `data.reader`"),
    ],
)
def test_what_a_table_cannot_do_is_an_error_at_once(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        PreparedStudy.read(study(tmp_path, *lines))


def test_other_answers_are_another_study(tmp_path: Path) -> None:
    first = PreparedStudy.read(study(tmp_path)).digests
    same = PreparedStudy.read(study(tmp_path)).digests
    other = PreparedStudy.read(study(tmp_path, rows=[{**row, "usd": 1} for row in ROWS])).digests
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"answers"}


@pytest.mark.slow
def test_the_shipped_example_goes_from_a_table_to_a_verdict_in_one_command(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "data" / "recorded", tmp_path / "data" / "recorded")
    (tmp_path / "optimize").mkdir()
    shutil.copy(ROOT / "optimize" / "recorded.toml", tmp_path / "optimize")
    out = tmp_path / "out"
    study_file = tmp_path / "optimize" / "recorded.toml"
    command = [sys.executable, "-m", "moa_dspy", "optimize", str(study_file), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert result["calls"]["made"] == 0
    # The best agent is far above the others, and no vote of them helps: 65.0 % on val, as the
    # quickstart finds from the same answers.
    assert result["pick"] == "qwen-1.5b"
    assert result["verdict"]["kind"] == "single"
    assert result["test"]["pick"]["seconds"] > 1
    assert "Keep the single model" in done.stdout

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
from moa_dspy.errors import DataError, MetricError, StoreError, StudyError
from moa_dspy.optimize import run_study
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


def test_gold_may_be_a_list_of_right_answers(tmp_path: Path) -> None:
    rows = [{"question": "1", "agent": name, "answer": name, "gold": ["a", "A"]} for name in "ab"]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read_answers(path, matches=lambda gold, given: float(given in gold))
    assert found.scores == {("1", "a"): 1.0, ("1", "b"): 0.0}
    assert found.examples()[0].gold == ["a", "A"]
    rows[1]["gold"] = ["b"]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match=r"same gold, but have \['a', 'A'\] and \['b'\]"):
        read_answers(path, matches=lambda gold, given: 1.0)


def test_the_index_that_pandas_writes_is_no_text_of_the_question(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [{"": n, **row} for n, row in enumerate(ROWS)])
    found = read_answers(path, columns={"question": "q", "agent": "model", "score": "ok"})
    assert found.questions == {"1": "1", "2": "2"}


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
    ("old", "new", "message"),
    [
        (
            "sizes = { train = 1, val = 10, test = 9 }",
            'split_column = "split"',
            "no column for split",
        ),
        ("sizes", 'split_column = "split"\nsizes', "`data` needs either `split_column` or `sizes`"),
    ],
)
def test_the_splits_of_a_table_are_in_a_column_or_drawn(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = study(tmp_path)
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises((DataError, StudyError), match=message):
        PreparedStudy.read(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[limits]", "seconds = 1"], "seconds is an objective or a limit, but .*t.csv does not"),
        (
            ["[space]", 'combines = ["synthesize"]'],
            "`space.combines` of recorded answers can only be",
        ),
        (["[space]", 'rankers = ["a"]'], "`space.rankers` cannot be set for recorded answers"),
        (["[space]", "max_depth = 2"], "`space.max_depth` = 2 cannot be set for recorded answers"),
        (
            ["[space]", 'listed = ["a + b > vote", "a + b > knockout(a)"]'],
            r"a \+ b > knockout\(a\) in `space.listed` cannot be set for recorded answers",
        ),
        (["[task]", 'metric = "exact_match"'], "`task.metric` is 'exact_match', but .* has scores"),
        (['[[agents]]\nname = "x"\nmodel = "y"'], "`agents` cannot be set with `data.reader`"),
    ],
)
def test_what_a_table_cannot_do_is_an_error_at_once(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        PreparedStudy.read(study(tmp_path, *lines))


def test_a_budget_of_usd_needs_the_usd_of_every_answer(tmp_path: Path) -> None:
    without = [{key: value for key, value in row.items() if key != "usd"} for row in ROWS]
    path = study(tmp_path, "[budget]", "usd = 1.0", rows=without)
    with pytest.raises(StudyError, match=r"usd is limited by `budget`, but .*t.csv does not have"):
        PreparedStudy.read(path)


def test_other_answers_are_another_study(tmp_path: Path) -> None:
    first = PreparedStudy.read(study(tmp_path)).digests
    same = PreparedStudy.read(study(tmp_path)).digests
    other = PreparedStudy.read(study(tmp_path, rows=[{**row, "usd": 1} for row in ROWS])).digests
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"answers"}


def test_a_table_with_gold_alone_is_a_study(tmp_path: Path) -> None:
    lines = ("[task]", 'metric = "exact_match"')
    without = [{key: value for key, value in row.items() if key != "ok"} for row in ROWS]
    path = study(tmp_path, *lines, rows=without)
    path.write_text(path.read_text("utf-8").replace(', score = "ok"', ""), "utf-8")
    prepared = PreparedStudy.read(path)
    assert prepared.recorded is not None
    assert (prepared.recorded.scores["0-1", "a"], prepared.recorded.scores["0-1", "b"]) == (1, 0)


def test_gold_is_compared_with_what_the_agent_returns(tmp_path: Path) -> None:
    channels = (
        "<|channel|>analysis<|message|>y?<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    rows = [{**row, "answer": row["answer"] and f"{channels}{row['answer']}"} for row in ROWS]
    path = study(tmp_path, rows=[{k: v for k, v in row.items() if k != "ok"} for row in rows])
    text = path.read_text("utf-8").replace(', score = "ok"', "")
    path.write_text(text, "utf-8")
    prepared = PreparedStudy.read(path)
    assert prepared.recorded is not None
    scores = prepared.recorded.scores
    assert (scores["0-1", "a"], scores["0-1", "b"], scores["0-2", "b"]) == (1.0, 0.0, 1.0)


def test_an_answer_without_a_score_leaves_its_question_out_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, *({**row, "q": "3", "ok": "" if row["model"] == "b" else 1} for row in ROWS[:2])]
    columns = {"question": "q", "agent": "model", "score": "ok"}
    found = read_answers(write(tmp_path / "t.csv", rows), columns=columns)
    assert [row.id for row in found.examples()] == ["1", "2"]
    assert "1 of 3, such as '3', which lacks b" in caplog.text
    assert found.knows("usd")


def test_the_questions_that_are_left_out_are_in_the_report(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "q": "3"}]
    note = "Questions left out, as not every agent has an answer to them: 10 of 30."
    assert PreparedStudy.read(study(tmp_path, rows=rows)).notes == (note,)
    assert PreparedStudy.read(study(tmp_path)).notes == ()


@pytest.mark.slow
def test_blank_answers_to_the_first_questions_score_0_and_end_no_study(tmp_path: Path) -> None:
    splits = ["train"] + ["val"] * 10 + ["test"] * 9

    def result(n_blank: int) -> Any:
        rows = [
            {"question": n, "agent": name, "score": 1, "split": split,
             "answer": "" if name == "a" and n <= n_blank else "x"}
            for n, split in enumerate(splits)
            for name in "ab"
        ]  # fmt: skip
        write(tmp_path / "t.csv", rows)
        text = 'name = "t"\n[data]\nreader = "recorded"\npath = "t.csv"\nsplit_column = "split"\n'
        (tmp_path / "s.toml").write_text(text, "utf-8")
        return run_study(tmp_path / "s.toml", out=tmp_path / f"out-{n_blank}")

    scores = {trial.architecture: trial.score for trial in result(4).trials}
    assert (scores["a"], scores["b"]) == (0.6, 1.0)  # 4 of 10 are blank
    none = result(20)  # an agent that never answered is one of the worst, and no error
    assert none.failures == {"a": 19}
    assert [trial.score for trial in none.trials if trial.architecture == "a"] == [0.0]


@pytest.mark.parametrize(("right", "wrong"), [("yes", "no"), ("T", "F"), ("correct", "incorrect")])
def test_words_for_true_and_false_are_scores(tmp_path: Path, right: str, wrong: str) -> None:
    rows = [{**row, "ok": right if row["ok"] else wrong} for row in ROWS]
    columns = {"question": "q", "agent": "model", "score": "ok"}
    found = read_answers(write(tmp_path / "t.csv", rows), columns=columns)
    assert (found.scores["1", "a"], found.scores["1", "b"]) == (1.0, 0.0)


def test_a_score_may_have_a_decimal_comma_but_no_other_scale(tmp_path: Path) -> None:
    columns = {"question": "q", "agent": "model", "score": "ok"}
    half = write(tmp_path / "t.csv", [{**ROWS[0], "ok": "0,5"}])
    assert read_answers(half, columns=columns).scores["1", "a"] == 0.5
    percent = write(tmp_path / "u.csv", [{**ROWS[0], "ok": 72}])
    with pytest.raises(
        DataError, match=r"in \[0, 1\], but is '72'; divide scores up to 100 by 100"
    ):
        read_answers(percent, columns=columns)
    word = write(tmp_path / "w.csv", [{**ROWS[0], "ok": "good"}])
    with pytest.raises(DataError, match="but is 'good'; words are read such as true, no, correct"):
        read_answers(word, columns=columns)


def test_columns_are_found_in_any_case_and_a_key_may_be_missing_in_a_row(tmp_path: Path) -> None:
    rows = [
        {"Question": "1", "Agent": "a", "answer": None},
        {"Question": "1", "Agent": "b", "answer": "x", "score": 1, "USD": 0.5},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read_answers(tmp_path / "t.jsonl")
    assert found.responses == {"a": {"1": None}, "b": {"1": "x"}}
    assert found.costs["1", "b"].usd == 0.5
    assert not found.knows("usd")


def test_the_column_of_splits_may_have_any_name(tmp_path: Path) -> None:
    names = ("train", "validation", "Test", "dev")
    rows = [{**row, "fold": names[n // 2]} for n, row in enumerate([*ROWS, *ROWS])]
    for n, row in enumerate(rows):
        row["q"] = str(n // 2)
        row["gold"] = "x"
    path = study(tmp_path)
    write(tmp_path / "t.csv", rows)
    sizes = "sizes = { train = 1, val = 10, test = 9 }"
    path.write_text(path.read_text("utf-8").replace(sizes, 'split_column = "fold"'), "utf-8")
    splits = PreparedStudy.read(path).splits
    assert [[row.id for row in part] for part in (splits.train, splits.val, splits.test)] == [
        ["0"],
        ["1", "3"],
        ["2"],
    ]


def test_a_metric_that_fails_on_gold_is_told_and_finds_it_under_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "def both(row, prediction):\n    return float(row.gold == row.answer)\n"
        "def fails(row, prediction):\n    return row.other\n"
    )
    (tmp_path / "gold_metric.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    without = [{key: value for key, value in row.items() if key != "ok"} for row in ROWS]
    for name in ("both", "fails"):
        path = study(tmp_path, "[task]", f'metric = "gold_metric:{name}"', rows=without)
        path.write_text(path.read_text("utf-8").replace(', score = "ok"', ""), "utf-8")
        if name == "both":
            assert PreparedStudy.read(path).recorded.scores["0-1", "b"] == 1  # type: ignore[union-attr]
            continue
        with pytest.raises(MetricError, match="The metric raised AttributeError on example 'x'"):
            PreparedStudy.read(path)


def test_limits_below_every_agent_are_told_before_a_mixture_is_tried(tmp_path: Path) -> None:
    path = study(tmp_path, "[limits]", "usd = 0.001")
    message = (
        r"allow 0\.001 usd for a question, but no agent .*: a takes 0\.01 usd; b takes 0\.02 usd"
    )
    with pytest.raises(StudyError, match=message):
        run_study(path, out=tmp_path / "out")


def test_a_cost_that_is_blank_in_some_rows_is_told_with_their_number(tmp_path: Path) -> None:
    rows = [{**row, "usd": "" if row["model"] == "b" else 1} for row in ROWS]
    path = study(tmp_path, "[search]", 'objectives = ["win_rate", "usd"]', rows=rows)
    with pytest.raises(StudyError, match="does not have it for every answer: it is blank for 20"):
        PreparedStudy.read(path)


def test_a_second_answer_and_a_wide_table_are_told_what_to_do(tmp_path: Path) -> None:
    columns = {"question": "q", "agent": "model", "score": "ok"}
    with pytest.raises(DataError, match="a second time: keep one, or give each sample an agent"):
        read_answers(write(tmp_path / "t.csv", [ROWS[0], ROWS[0]]), columns=columns)
    with pytest.raises(DataError, match=r"a column per agent long first \(pandas: `melt`\)"):
        read_answers(write(tmp_path / "u.csv", [{"question": 1, "gold": "x", "m1": "x"}]))


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

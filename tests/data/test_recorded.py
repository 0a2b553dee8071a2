from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.data import BENCHMARKS, RecordedResponses, gsm8k_match, read_recorded
from moa_dspy.errors import DataError, MetricError

ROWS: list[dict[str, Any]] = [
    {"qid": 1, "model": "a", "said": "4", "score": 1.0},
    {"qid": 1, "model": "b c", "said": " 5 ", "score": 0.25},
    {"qid": 2, "model": "a", "said": None, "score": None},
    {"qid": 2, "model": "b c", "said": "7", "score": 0.0},
]
QUESTIONS: list[dict[str, Any]] = [
    {"qid": 1, "question": "2+2?", "gold": "4"},
    {"qid": 2, "question": None, "gold": "6"},
    {"qid": 3, "question": "nobody answered", "gold": "0"},
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "responses.parquet", ROWS)
    parquet(tmp_path / "questions.parquet", QUESTIONS)
    return tmp_path


def read(path: Path, **options: Any) -> RecordedResponses:
    return read_recorded(path, question="qid", model="model", response="said", **options)


def test_a_folder_gives_responses_scores_and_questions(folder: Path) -> None:
    recorded = read(folder, score="score")
    assert recorded.models == ("a", "b-c")
    assert recorded.responses == {"a": {"1": "4", "2": None}, "b-c": {"1": " 5 ", "2": "7"}}
    assert recorded.scores == {("1", "a"): 1.0, ("1", "b-c"): 0.25, ("2", "b-c"): 0.0}
    assert recorded.questions == {"1": "2+2?", "2": "2"}


def test_examples_carry_the_questions_columns(folder: Path) -> None:
    first, second = read(folder).examples(columns={"answer": "gold"})
    assert dict(first.items()) == {"id": "1", "question": "2+2?", "answer": "4"}
    assert list(first.inputs().keys()) == ["question"]
    assert second.question == "2"
    with pytest.raises(DataError, match="Question '1' has no column 'right'"):
        read(folder).examples(columns={"answer": "right"})


def test_a_question_that_some_models_lack_is_no_example(tmp_path: Path) -> None:
    recorded = read(parquet(tmp_path / "table.parquet", ROWS[:3]))
    assert [row.id for row in recorded.examples()] == ["1"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_other_formats_give_the_same(tmp_path: Path, folder: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    rows = [row | {"score": row["score"] or 0.0, "said": row["said"] or "none"} for row in ROWS]
    if suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = read(parquet(tmp_path / "table.parquet", rows), score="score")
    assert read(path, score="score").scores == whole.scores
    questions = folder / "questions.parquet"
    assert read(path, score="score", questions=questions).questions == {"1": "2+2?", "2": "2"}


def test_a_column_per_model_holds_texts_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    row = {
        "question": "2+2?",
        "a": {"said": "4", "right": True},
        "b": {"said": "5", "right": False},
    }
    path.write_text(json.dumps(row), encoding="utf-8")
    wide = read_recorded(
        path, question="question", model=["a", "b"], response="said", score="right"
    )
    assert wide.scores == {("2+2?", "a"): 1.0, ("2+2?", "b"): 0.0}
    assert wide.questions == {"2+2?": "2+2?"}
    path.write_text(json.dumps({"n": 1, "a": "4", "b": "5"}), encoding="utf-8")
    plain = read_recorded(path, question="n", model=["a", "b"], response="said")
    assert plain.responses == {"a": {"1": "4"}, "b": {"1": "5"}}


def test_rows_of_another_reader_give_their_wording(folder: Path) -> None:
    row = dspy.Example(id="1", question="2+2?\nA. 4").with_inputs("question")
    other = dspy.Example(id="9", question="unknown").with_inputs("question")
    assert read(folder).with_questions([row, other]).questions == {"1": "2+2?\nA. 4", "2": "2"}
    with pytest.raises(DataError, match="No example has the id of a recorded question"):
        read(folder).with_questions([other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": 1, "model": "a"}, r"row 2: a answers question '1' a second time"),
        ({"score": 1.5}, r"row 2: 'score' must be a number in \[0, 1\], but is 1.5"),
        ({"score": float("nan")}, r"row 2: 'score' must be a number in \[0, 1\], but is nan"),
    ],
)
def test_a_bad_row_is_told_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "t.parquet", [ROWS[0], ROWS[1] | change])
    with pytest.raises(DataError, match=message):
        read(path, score="score")


def test_what_does_not_fit_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: no column 'grade'; the row has qid, model, said"):
        read(folder, score="grade")
    with pytest.raises(DataError, match="Give either `score` or `preference`, and not both"):
        read(folder, score="score", preference="score")
    few = parquet(tmp_path / "few.parquet", QUESTIONS[:1])
    with pytest.raises(DataError, match=r"few.parquet lacks question '2', which models answer"):
        read(folder, questions=few)
    with pytest.raises(DataError, match="gone does not exist"):
        read(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no file 'responses'"):
        read(tmp_path / "empty")


def test_a_recording_checks_itself() -> None:
    with pytest.raises(DataError, match="at least one response"):
        RecordedResponses({"a": {}}, {"1": "x"})
    with pytest.raises(DataError, match="a answers question '2', which is not among"):
        RecordedResponses({"a": {"2": "x"}}, {"1": "x"})
    with pytest.raises(DataError, match=r"score of a on question '1' must be in \[0, 1\], but"):
        RecordedResponses({"a": {"1": "x"}}, {"1": "x"}, scores={("1", "a"): 2.0})


def test_a_score_a_rounding_error_above_one_is_one(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", [ROWS[0] | {"score": 1 + 2e-16}])
    assert read(path, score="score").scores == {("1", "a"): 1.0}


def test_the_metric_is_the_recorded_score_of_the_text() -> None:
    given = {"a": {"1": "x"}, "b": {"1": " x"}, "c": {"1": "y"}}
    scores = {("1", "a"): 1.0, ("1", "b"): 0.5, ("1", "c"): 0.25}
    metric = RecordedResponses(given, {"1": "q"}, scores=scores).metric()
    row = dspy.Example(id="1")
    # a and b said the same and were graded 1 and 1/2.
    assert metric(row, dspy.Prediction(answer="x ")) == 0.75
    assert metric(row, dspy.Prediction(answer="y"), [], "predict", []) == 0.25
    with pytest.raises(MetricError, match="Example '1': no score is recorded for the answer 'z'"):
        metric(row, dspy.Prediction(answer="z"))


def test_our_gsm8k_metric_agrees_with_the_recorded_judgements(real: Callable[[str], Path]) -> None:
    folder = real("gsm8k")
    models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    recorded = read_recorded(
        folder / "example_model_solutions.jsonl",
        question="question",
        model=models,
        response="solution",
        score="is_correct",
    )
    rows = BENCHMARKS["gsm8k"].read(folder)
    assert len(recorded.questions) == len(rows) == 1319
    for row in rows:
        for model in models:
            said = dspy.Prediction(answer=recorded.responses[model][row.question])
            assert gsm8k_match(row, said) == recorded.scores[row.question, model], row.id

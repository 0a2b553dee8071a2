from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.data import (
    answer_match,
    check_outputs,
    fields_read,
    is_absent,
    plain_text,
    read_hub,
    read_recorded,
    read_rows,
)
from moa_dspy.data.rows import make_examples
from moa_dspy.data.tables import records_of
from moa_dspy.errors import DataError, MetricError

NAN = float("nan")
Rows = list[dict[str, Any]]


def as_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([["" if cell is None else cell for cell in row.values()] for row in rows])


def as_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def as_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows), "utf-8")


def as_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".csv": as_csv,
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".parquet": as_parquet,
}


def read(path: Path, rows: Rows, **options: Any) -> list[dspy.Example]:
    WRITERS[path.suffix](path, rows)
    return make_examples(records_of(path), str(path), inputs=["question"], **options)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("nothing", [None, "", "  "], ids=["null", "empty", "blank"])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_cell_without_a_value_is_an_error_in_every_format(
    tmp_path: Path, suffix: str, nothing: object, field: str
) -> None:
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]
    rows[1][field] = nothing  # type: ignore[assignment]  # what the test is about
    with pytest.raises(DataError, match=rf"(line 3|line 2|row 2): field '{field}' is (null|empty)"):
        read(tmp_path / f"rows{suffix}", rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("field", ["question", "answer", "id"])
def test_nan_is_no_value_in_every_format_that_has_it(
    tmp_path: Path, suffix: str, field: str
) -> None:
    rows = [
        {"id": 1.0, "question": 2.0, "answer": 4.0},
        {"id": 2.0, "question": 3.0, "answer": 5.0},
    ]
    rows[1][field] = NAN
    with pytest.raises(DataError, match=f"2: field '{field}' is NaN, but it must have a value"):
        read(tmp_path / f"rows{suffix}", rows)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("text", ["None", "nan", "N/A", "null", "<NA>", "0", "False"])
def test_a_text_that_looks_like_nothing_is_a_value(tmp_path: Path, suffix: str, text: str) -> None:
    (row,) = read(tmp_path / f"rows{suffix}", [{"question": "Which?", "answer": text}])
    assert row.answer == text


def test_a_folder_of_the_hub_is_checked_alike(tmp_path: Path) -> None:
    as_parquet(tmp_path / "train.parquet", [{"question": "q", "answer": None}])
    with pytest.raises(DataError, match="row 1: field 'answer' is null"):
        read_hub(str(tmp_path), split="train", inputs=["question"])


def test_many_rows_without_a_value_are_one_error_that_names_the_lines(tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv", [{"question": n, "answer": ""} for n in range(7)])
    with pytest.raises(
        DataError, match="none on line 2, line 3, line 4, line 5, line 6 and 2 more"
    ):
        read_rows(tmp_path / "rows.csv", inputs=["question"])


def test_rows_without_an_answer_are_left_out_and_counted_by_a_switch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    as_jsonl(path, [{"question": "a", "answer": x} for x in ("1", None, [], ["", None], ["2"])])
    with caplog.at_level(logging.WARNING):
        rows = read_rows(path, inputs=["question"], drops_incomplete=True)
    assert [row.answer for row in rows] == ["1", ["2"]]
    assert "3 of 5 rows are left out, because they have no value in 'answer'" in caplog.text
    as_jsonl(path, [{"question": "a", "answer": None}])
    with pytest.raises(DataError, match="no row has a value in 'answer'"):
        read_rows(path, inputs=["question"], drops_incomplete=True)


def test_rows_without_a_question_are_left_out_by_the_same_switch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    given = [{"question": x, "context": "", "answer": "1"} for x in ("a", " ", "b", None)]
    as_jsonl(path, [*given, {"context": "c", "question": "", "answer": "1"}, {"answer": "1"}])
    options: Any = {"inputs": ["question", "context"], "drops_incomplete": True}
    with caplog.at_level(logging.WARNING):
        rows = read_rows(path, **options)
    # An empty question beside a context is a question; null and an absent key are none.
    assert [(row.question, row.context) for row in rows] == [("a", ""), ("b", ""), ("", "c")]
    lacking = "they have no value in 'question', 'context'"
    assert f"3 of 6 rows are left out, because {lacking}" in caplog.text
    with pytest.raises(DataError, match="value in 'query'; the rows have question, context, ans"):
        read_rows(path, inputs=["query"], drops_incomplete=True)


def test_a_renamed_id_need_not_identify_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    as_jsonl(path, [{"question": x, "id": n} for x, n in (("a", 1), ("b", 1), ("c", None))])
    rows = read_rows(path, inputs=["question"], columns={"number": "id"})
    assert [row.id for row in rows] == ["1", "2", "3"]


def test_other_outputs_can_be_named_or_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    as_jsonl(path, [{"question": "a", "answer": None, "target": "x"}])
    assert len(read_rows(path, inputs=["question"], outputs=["target"])) == 1
    assert len(read_rows(path, inputs=["question"], outputs=[])) == 1
    with pytest.raises(DataError, match="line 1: no field 'gold'; the row has"):
        read_rows(path, inputs=["question"], outputs=["gold"])


def test_an_input_may_be_empty_beside_one_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,input\nTranslate.,\n,\n\n", "utf-8")
    (row,) = read_rows(path, inputs=["instruction", "input"])
    assert (row.instruction, row.input) == ("Translate.", "")


def test_ids_that_pandas_made_floats_are_whole_again(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "rows.parquet", [{"id": 7.0, "question": "a"}, {"id": 8.0, "question": "b"}]
    )
    assert [row.id for row in rows] == ["7", "8"]


def test_a_csv_cell_may_be_larger_than_the_readers_default(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    as_csv(tmp_path / "rows.csv", [{"question": "x" * 300_000, "answer": "1"}])
    (row,) = read_rows(tmp_path / "rows.csv", inputs=["question"])
    assert len(row.question) == 300_000
    assert csv.field_size_limit() == limit


def test_a_metrics_field_is_checked_in_all_rows() -> None:
    rows = [
        dspy.Example(id=str(n), question="q", answer="x").with_inputs("question") for n in "abc"
    ]
    check_outputs(rows, fields_read(answer_match))
    rows[1] = dspy.Example(id="b", question="q", target="x").with_inputs("question")
    message = (
        "Split 'test': 1 of 3 rows have no value in 'answer', which the metric reads: 'b'; .* "
    )
    with pytest.raises(DataError, match=f"{message}id, question, target"):
        check_outputs(rows, fields_read(answer_match), where="Split 'test'")
    check_outputs(rows, fields_read(lambda *_: 1.0))


@pytest.mark.parametrize("gold", [None, NAN, [], [None, ""], {"text": []}])
def test_a_missing_right_answer_is_an_error_and_no_zero(gold: object) -> None:
    with pytest.raises(MetricError, match="The right answer is missing"):
        answer_match(dspy.Example(answer=gold), dspy.Prediction(answer="None nan"))


def test_a_right_answer_of_unknown_structure_names_its_keys() -> None:
    with pytest.raises(MetricError, match="but has the keys spans, date"):
        answer_match(dspy.Example(answer={"spans": ["x"], "date": 1}), dspy.Prediction(answer="x"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "0.00001"),
        (1e16, "1" + "0" * 16),
        (42.0, "42"),
        (-2.5, "-2.5"),
        (True, "True"),
        (0, "0"),
    ],
)
def test_numbers_are_written_without_exponents(value: object, text: str) -> None:
    assert plain_text(value) == text
    assert not is_absent(value)


def recorded(path: Path, rows: Rows) -> Any:
    WRITERS[path.suffix](path, rows)
    return read_recorded(path, question="q", model="m", response="said", score="score")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_recording_without_response_and_score_holds_none(tmp_path: Path, suffix: str) -> None:
    rows: Rows = [
        {"q": 1, "m": "a", "said": "4", "score": 1.0},
        {"q": 1, "m": "b", "said": None, "score": None if suffix == ".csv" else NAN},
    ]
    found = recorded(tmp_path / f"r{suffix}", rows)
    assert found.responses == {"a": {"1": "4"}, "b": {"1": None}}
    assert found.scores == {("1", "a"): 1.0}


@pytest.mark.parametrize("suffix", WRITERS)
def test_true_and_false_are_scores_in_any_spelling(tmp_path: Path, suffix: str) -> None:
    texts = ("true", "True", "FALSE", "1.0")
    rows: Rows = [{"q": n, "m": "a", "said": "x", "score": t} for n, t in enumerate(texts)]
    scores = recorded(tmp_path / f"r{suffix}", rows).scores
    assert list(scores.values()) == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"m": None}, "'m' must be a name, but is missing"),
        ({"q": None}, "'q' must be a name, but is missing"),
        ({"q": NAN}, "'q' must be a name, but is missing"),
        ({"m": "b-c"}, "models 'b c' and 'b-c' would both be 'b-c'"),
        ({"m": ["a"]}, "'m' must be a name, but is a list or an object"),
        ({"said": ["x"]}, r"'said' must be a text, but is \['x'\]"),
        ({"score": NAN}, r"'score' must be a number in \[0, 1\], but is nan"),
    ],
)
def test_a_recording_that_cannot_be_read_right_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    first = {"q": 1, "m": "b c", "said": "x", "score": 0.5}
    with pytest.raises(DataError, match=f"line 2: {message}"):
        recorded(tmp_path / "r.jsonl", [first, first | {"q": 2} | row])


def test_a_column_of_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "r.jsonl", [{"q": 1, "a": "4"}])
    with pytest.raises(DataError, match="no column 'b' for a model; the rows have 'q', 'a'"):
        read_recorded(tmp_path / "r.jsonl", question="q", model=["a", "b"], response="said")

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import dspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.data import FORMATS, answer_match, read_rows
from moa_dspy.errors import DataError

ROWS = [
    {"id": "a", "question": "1 + 1?", "answer": "2"},
    {"id": "b", "question": "2 + 2?\u2028now", "answer": "4"},
]


def written(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def in_format(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    text = (
        lines(*ROWS)
        if suffix in (".jsonl", ".ndjson")
        else "".join(",".join(c) + "\n" for c in cells)
    )
    return written(folder, text, path.name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    examples = read_rows(in_format(tmp_path, suffix), inputs=["question"])
    assert [dict(example.items()) for example in examples] == ROWS
    assert [list(example.inputs().keys()) for example in examples] == [["question"]] * 2


def test_rows_without_ids_are_numbered_from_one(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff" + lines({"q": "x"}) + "\n" + lines({"q": "y"}))
    assert [example.id for example in read_rows(path, inputs=["q"])] == ["1", "2"]


def test_columns_are_renamed_and_may_swap(tmp_path: Path) -> None:
    path = written(tmp_path, lines({"question_id": 7, "text": "x", "title": "y", "n": 1}))
    columns = {"id": "question_id", "title": "text", "text": "title"}
    (row,) = read_rows(path, inputs=["title"], columns=columns)
    assert dict(row.items()) == {"id": "7", "title": "x", "text": "y", "n": 1}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ('q, a\n one, "x, y"\n', "x, y"),
        ('"q",  "a"\none,  x\n', "x"),
        ('"b, c",q,a\n1,one,  x\n', "  x"),  # the blank is inside of a name
        ("q;  a\none; x\n", "x"),
    ],
)
def test_blanks_after_the_delimiters_of_a_header_are_no_part_of_cells(
    tmp_path: Path, content: str, answer: str
) -> None:
    (row,) = read_rows(written(tmp_path, content, "rows.csv"), inputs=["q"], outputs=["a"])
    assert (row.q.strip(), row.a) == ("one", answer)


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_first_line_for_excel_names_the_delimiter(tmp_path: Path, line: str) -> None:
    content = f"\ufeff{line}\r\nq, or a text;a\r\none, two;x\r\n"
    (row,) = read_rows(
        written(tmp_path, content, "rows.csv"), inputs=["q, or a text"], outputs=["a"]
    )
    assert (row["q, or a text"], row.a) == ("one, two", "x")


def test_texts_that_a_parquet_file_holds_as_bytes_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"q": "caf\u00e9".encode(), "a": b"x", "image": b"\xff\xd8"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (row,) = read_rows(path, inputs=["q"], outputs=["a"])
    assert (row.q, row.a, row.image) == ("caf\u00e9", "x", b"\xff\xd8")


@pytest.mark.parametrize(
    ("gold", "given", "score"),
    [
        (datetime(2024, 1, 5), "2024-01-05", 1.0),
        (datetime(2024, 1, 5), "It was 2024-01-06.", 0.0),
        (datetime(2024, 1, 5, 12, 30), "2024-01-05T12:30:00", 1.0),
        (datetime(2024, 1, 5, 12, 30), "2024-01-05", 0.0),
        (b"x", "x", 1.0),
    ],
)
def test_a_right_answer_of_another_type_is_compared_as_its_text(
    gold: Any, given: str, score: float
) -> None:
    row, prediction = dspy.Example(answer=gold), dspy.Prediction(answer=given)
    assert answer_match(row, prediction) == score


def test_a_csv_cell_may_span_lines(tmp_path: Path) -> None:
    path = written(tmp_path, 'q,a\r\n"one\r\ntwo",3\r\n', "rows.csv")
    assert [row.q for row in read_rows(path, inputs=["q"])] == ["one\r\ntwo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.jsonl has no rows."),
        (b"\n \n", "rows.jsonl has no rows."),
        (b'{"q": "\xff"}', "rows.jsonl is not UTF-8: byte 0xff at offset 7."),
        (b'{"q": 1}\n{oops\n', "rows.jsonl, line 2 is not JSON"),
        (b"[1]\n", "rows.jsonl, line 1 must be a JSON object, but is a list."),
        (b'{"p": 1, "id": 2}\n', "rows.jsonl, line 1: no field 'q'; the row has id, p."),
        (b'{"q": 1, "id": 2}\n{"q": 1}\n', "rows.jsonl, line 2: no field 'id'; the row has q."),
        (b'{"q": null}\n', "rows.jsonl, line 1: field 'q' is null, but it must have a value."),
        (
            b'{"q": 1, "id": "a"}\n\n{"q": 2, "id": "a"}\n',
            "rows.jsonl: id 'a' is on line 1 and again on line 3.",
        ),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_rows(written(tmp_path, content), inputs=["q"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q,a\n1,2\n3\n", "rows.csv, line 3 has 1 cells, but the header has 2."),
        ("q,a,q\n1,2,3\n", "rows.csv, line 1: column 'q' comes twice."),
        ('q\n"x" y\n', "rows.csv, line 2 is not CSV"),
        ("sep=;\r\nq;a\r\n1\r\n", "rows.csv, line 3 has 1 cells, but the header has 2."),
        (
            "q,a\n1,2\n".encode("utf-16-le").decode(),
            "rows.csv holds NUL bytes, as UTF-16 does, but",
        ),
        ("q,a\n", "rows.csv has no rows."),
    ],
)
def test_a_broken_csv_is_told_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_rows(written(tmp_path, content, "rows.csv"), inputs=["q"])


def test_a_missing_column_is_named_as_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, lines({"text": "x"}, {"prompt": "y"}))
    with pytest.raises(DataError, match=r"no field 'q' \(column 'prompt'\); the row has text"):
        read_rows(path, inputs=["q"], columns={"q": "prompt"})


def test_a_column_that_no_row_has_is_an_error_even_if_the_field_is_a_column(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "q,answer,gold_v2\nx,1,2\n", "rows.csv")
    with pytest.raises(
        DataError, match=r"no column 'gold_v3', which `columns` names; there are q, answer, gold_v2"
    ):
        read_rows(path, inputs=["q"], columns={"answer": "gold_v3"})


def test_a_row_without_a_renamed_column_takes_no_other_column_for_it(tmp_path: Path) -> None:
    path = written(
        tmp_path, lines({"q": "x", "answer": "1", "gold": "2"}, {"q": "y", "answer": "1"})
    )
    options: Any = {"inputs": ["q"], "columns": {"answer": "gold"}, "outputs": ["answer"]}
    with pytest.raises(DataError, match=r"line 2: no field 'answer' \(column 'gold'\)"):
        read_rows(path, **options)
    (row,) = read_rows(path, **options, drops_incomplete=True)
    assert row.answer == "2"


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist: put the table there"):
        read_rows(tmp_path / "gone.jsonl", inputs=["q"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv is not a file: put"):
        read_rows(tmp_path / "folder.csv", inputs=["q"])


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'\.txt'; known ones are \.csv, \.jsonl, \.ndjson, \.parquet, \.tsv\."
    ):
        read_rows(tmp_path / "rows.txt", inputs=["q"])


def test_a_file_that_only_claims_to_be_parquet_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.parquet is not Parquet: .+\.$"):
        read_rows(written(tmp_path, "q,a\n", "rows.parquet"), inputs=["q"])


@pytest.mark.slow
def test_reading_rows_loads_no_heavy_library() -> None:
    code = (
        "import sys, moa_dspy.data; "
        "print(sorted({'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_field_is_no_input_and_output_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, lines(*ROWS))
    with pytest.raises(DataError, match=r"'question' cannot be both an input and an output"):
        read_rows(path, inputs=["question"], outputs=["question"])

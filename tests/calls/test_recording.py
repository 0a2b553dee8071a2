from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moa_dspy.calls import Call, CallStore, Recording, call_key
from moa_dspy.errors import StoreError

MakeCall = Callable[..., Call]


@pytest.fixture
def calls(make_call: MakeCall) -> list[Call]:
    failed = replace(make_call("f"), response=None, failure="ServerError: down")
    return [make_call("b"), make_call("a", sample=1), make_call("a"), failed]


def test_a_recording_comes_back_with_answers_and_failures(
    tmp_path: Path, calls: list[Call]
) -> None:
    Recording(calls).write(tmp_path / "new" / "calls.parquet")
    read = Recording.read(tmp_path / "new" / "calls.parquet")
    assert len(read) == 4
    assert [read.get(call.key) for call in calls] == calls
    assert read.get("other") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["calls.parquet"]


def test_equal_recordings_are_equal_files_whatever_their_order(
    tmp_path: Path, calls: list[Call]
) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    store.put_all(calls)
    paths = [tmp_path / f"{n}.parquet" for n in range(4)]
    Recording(calls).write(paths[0])
    Recording(reversed(calls)).write(paths[1])
    Recording.read(paths[0]).write(paths[2])
    Recording(store).write(paths[3])
    assert len({path.read_bytes() for path in paths}) == 1


def test_columns_have_the_same_types_in_every_recording(
    tmp_path: Path, make_call: MakeCall
) -> None:
    some, none = tmp_path / "some.parquet", tmp_path / "none.parquet"
    Recording([make_call()]).write(some)  # no failure: a column of nothing
    Recording().write(none)
    assert pq.read_schema(some).equals(pq.read_schema(none))
    assert len(Recording.read(none)) == 0


def test_an_altered_row_answers_the_altered_request_and_no_other(
    tmp_path: Path, make_call: MakeCall
) -> None:
    path, call = tmp_path / "calls.parquet", make_call("honest")
    Recording([call]).write(path)
    table = pq.read_table(path)
    altered = '{"q":"altered"}'
    position = table.column_names.index("request")
    pq.write_table(table.set_column(position, "request", pa.array([altered])), path)
    read = Recording.read(path)
    assert read.get(call.key) is None
    found = read.get(call_key(call.identity, 0, altered))
    assert found is not None
    assert found.request == altered


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("agent,identity\n")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"agent": ["a"]}), other)
    for path in (text, other, tmp_path / "absent.parquet"):
        with pytest.raises(StoreError, match=rf"{path.name} cannot be read as a recording: \w"):
            Recording.read(path)

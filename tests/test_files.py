from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moa_dspy.errors import DataError
from moa_dspy.files import appending, replace_file

WRITER = """
import sys
from pathlib import Path
from moa_dspy.errors import DataError
from moa_dspy.files import replace_file
for number in range(200):
    replace_file(Path(sys.argv[1]), sys.argv[2] * 5000, error=DataError)
"""


def test_processes_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.json"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), letter], stderr=subprocess.PIPE, text=True
        )
        for letter in "abc"
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert errors == ["", "", ""]
    assert path.read_text("utf-8") in {letter * 5000 for letter in "abc"}
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.json").mkdir()
    with pytest.raises(DataError, match=r"p\.json cannot be written: Is a directory\."):
        replace_file(tmp_path / "p.json", "x", error=DataError)
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/p\.json cannot be written: (File exists|Not a dir)"):
        replace_file(tmp_path / "file" / "p.json", "x", error=DataError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no full device")
def test_the_first_error_of_an_appended_text_is_raised_at_the_end(tmp_path: Path) -> None:
    with appending(tmp_path / "new" / "log", error=DataError) as file:
        print("one", file=file)
    with appending(tmp_path / "new" / "log", error=DataError) as file:
        print("two", end="", file=file)
    assert (tmp_path / "new" / "log").read_text("utf-8") == "one\ntwo"
    for text in ("a line\n", "no line"):
        message = r"/dev/full cannot be written: No space left on device\. Go on\."
        with (
            pytest.raises(DataError, match=message),
            appending(Path("/dev/full"), error=DataError, hint=" Go on.") as file,
        ):
            file.write(text)
    with (
        pytest.raises(DataError, match="new cannot be written: Is a directory"),
        appending(tmp_path / "new", error=DataError),
    ):
        pytest.fail("opened")

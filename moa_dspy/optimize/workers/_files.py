"""The files of a finished study, whichever process writes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.workers._shared_study import Finished


def text_of(write: Callable[[Path], None]) -> str:
    """Return what ``write`` puts into the file that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.json"
        write(path)
        return path.read_text("utf-8")


def write_files(finished: Finished, result: StudyResult, folder: Path) -> None:
    """Write the program and the result into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may write into one folder, and any may be killed: a file is whole or old.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        (Path(partial) / "program.json").write_text(finished.program, "utf-8")
        result.write(Path(partial) / "result.json")
        for name in ("program.json", "result.json"):
            (Path(partial) / name).replace(folder / name)

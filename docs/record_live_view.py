"""Records what ``moa-dspy optimize`` shows while the quickstart runs, as text.

    uv run python docs/record_live_view.py [--out docs/live_view.txt]

The study is replayed, so nothing is asked or paid; times are those of the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from moa_dspy.optimize.live_view import LiveProgress, printed_text
from moa_dspy.optimize.progress import Snapshot
from moa_dspy.optimize.run import run_study

ROOT = Path(__file__).parent.parent
STUDY = Path("optimize/quickstart.toml")
MOMENTS = {("single agents", 4): "single agents", ("search", 12): "search", ("test", 3): "test"}
"""Stage and snapshot of it, counted from 0, that are kept, under what they are called."""
WIDTH, HEIGHT = 96, 36


class Recorder:
    """Draws a frame at each of the moments."""

    def __init__(self) -> None:
        self.display = LiveProgress(mode="none")
        self.frames: dict[str, str] = {}
        self._seen: dict[str, int] = {}

    def __call__(self, snapshot: Snapshot, /) -> None:
        """Take a snapshot, and keep the frame if its moment has come."""
        self.display(snapshot)
        number = self._seen.get(snapshot.stage, 0)
        self._seen[snapshot.stage] = number + 1
        if (name := MOMENTS.get((snapshot.stage, number))) is not None:
            self.frames[name] = printed_text(self.display.frame, width=WIDTH, height=HEIGHT)


def record() -> str:
    """Return the frames of a whole run."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        run_study(ROOT / STUDY, out=Path(folder) / "quickstart", show=recorder)
    parts = [f"--- {name} ---\n\n{frame}" for name, frame in recorder.frames.items()]
    return "\n".join([f"$ moa-dspy optimize {STUDY}\n", *parts])


def main() -> None:
    """Write the recording."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "live_view.txt")
    arguments = parser.parse_args()
    arguments.out.write_text(record(), "utf-8")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()

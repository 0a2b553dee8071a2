"""Runs the vote studies of this folder at several sizes, and keeps what the pages show of them.

Each study of `votes/` is run through the command line as it stands, and with 100 and 500 questions
to look at instead of its 200. What is known of a run is written at once: the program may be
stopped, and goes on with `--missing`. Studies whose table is not there are skipped, and their rows
stay as they are.

    uv run python data/pools/make_tables.py FOLDER
    uv run python optimize/votes.py              # writes docs/results/votes.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moa_dspy.winrate import mean_interval

HERE = Path(__file__).parent
ROOT = HERE.parent
SIZES = (100, 200, 500)
WRITTEN = 200
"""Val rows of the study files as they stand."""
KEPT = (
    "pick",
    "recommended",
    "verdict",
    "cost_verdict",
    "test",
    "differences",
    "early",
    "calls",
    "seconds",
    "space_size",
    "seed",
    "stopped_by",
)


def resized(text: str, n_val: int, n_questions: int) -> str:
    """Return a study with another number of val rows, and test rows that the table still has."""
    sizes: dict[str, int] = tomllib.loads(text)["data"]["sizes"]
    test = min(sizes["test"], n_questions - sizes["train"] - n_val)
    old, new = (
        f"sizes = {{ train = {sizes['train']}, val = {val}, test = {n} }}"
        for val, n in ((sizes["val"], sizes["test"]), (n_val, test))
    )
    if old not in text:
        raise SystemExit(f"The study's line of sizes must read: {old}")
    return text.replace(old, new)


def found(study: Path, n_val: int, table: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Run one study, and return what is kept of its result."""
    text = resized(study.read_text("utf-8"), n_val, table.question.nunique())
    copy = folder / f"{study.stem}-{n_val}.toml"
    copy.write_text(text, "utf-8")
    out = folder / copy.stem
    command = [sys.executable, "-m", "moa_dspy", "optimize", str(copy), "--out", str(out)]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True, text=True)
    result = json.loads(done.stdout)
    sizes = tomllib.loads(text)["data"]["sizes"]
    row = {"study": study.stem, "val": n_val, "test_rows": sizes["test"]}
    row |= {key: result[key] for key in KEPT}
    row["trials"] = len(result["trials"])
    row["knows_usd"] = "usd" in table
    return row | {"singles": singles(table, tested(out))}


def tested(out: Path) -> set[str]:
    """Return the ids of the questions on which a run's systems were tested."""
    answers = json.loads((out / "answers.json").read_text("utf-8"))
    return {row["id"] for row in answers["questions"]}


def singles(table: pd.DataFrame, rows: Iterable[str]) -> list[dict[str, Any]]:
    """Return what every model of a table, in the study's pool or not, does on these questions."""
    here = table.loc[table["question"].astype(str).isin(sorted(rows))]
    agents = sorted(set(here["agent"]))
    return [single(str(agent), here.loc[here["agent"] == agent]) for agent in agents]


def single(name: str, answers: pd.DataFrame) -> dict[str, Any]:
    """Return one model's score with its interval, how often it has no answer, and its mean usd."""
    score = mean_interval([float(value) for value in answers.score])
    usd = float(answers.usd.mean()) if "usd" in answers else None
    bounds = {"score": score.estimate, "low": score.low, "high": score.high}
    silent = float(answers.answer.isna().mean())
    return {"agent": name, **bounds, "usd": usd, "without_answer": silent, "rows": len(answers)}


def place_of(row: Mapping[str, Any]) -> tuple[str, int]:
    """Return which run a row is of."""
    return row["study"], row["val"]


def main() -> None:
    """Run what is asked for, and write the file after each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/votes.json")
    parser.add_argument("--studies", nargs="+", help="names of `votes/*.toml`; default all")
    parser.add_argument("--val", nargs="+", type=int, default=[WRITTEN, 100, 500])
    parser.add_argument("--missing", action="store_true", help="only runs that --out has not yet")
    options = parser.parse_args()
    folder = ROOT / "runs/votes"
    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.out.read_text("utf-8"))["votes"] if options.out.exists() else []
    row_of = {place_of(row): row for row in rows}
    studies = [HERE / "votes" / f"{name}.toml" for name in options.studies or []]
    for n_val in options.val:
        for study in studies or sorted((HERE / "votes").glob("*.toml")):
            path = study.parent / tomllib.loads(study.read_text("utf-8"))["data"]["path"]
            if not path.is_file():
                print(f"{study.stem}: skipped, there is no {path.resolve()}", flush=True)
                continue
            if options.missing and (study.stem, n_val) in row_of:
                continue
            row = found(study, n_val, pd.read_parquet(path), folder)
            row_of[place_of(row)] = row
            written = {"votes": [row_of[place] for place in sorted(row_of)]}
            options.out.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
            print(f"{study.stem}, {n_val}: {row['verdict']['kind']}", flush=True)


if __name__ == "__main__":
    main()

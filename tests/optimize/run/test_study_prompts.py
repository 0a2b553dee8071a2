"""A study file may search the aggregator's prompt; the run's folder tells what became of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.errors import StudyError
from moa_dspy.optimize import run_study

Make = Callable[..., Any]
TABLE = '[prompts]\ncandidates = ["most_likely"]\noptimizer = "demos"\ntop = 1\n[search]'


@pytest.mark.slow
@pytest.mark.parametrize("has_storage", [False, True])
def test_prompts_of_a_study_file_are_searched_tuned_and_told(
    server: Any, write_study: Make, tmp_path: Path, said: Make, has_storage: bool
) -> None:
    study = write_study(("[search]", TABLE), ("n_trials = 8", "n_trials = 16"))
    storage = f"sqlite:///{tmp_path / 'study.sqlite3'}" if has_storage else None
    first = run_study(study, out=tmp_path / "one", storage=storage)
    assert first.prompts[0]["name"] == "most_likely"
    assert any(trial.architecture.endswith("; prompt=tuned-1)") for trial in first.trials)
    assert first.notes[-1].startswith("Tuning of prompts took 12 answers of proposers")
    n_asked = len(server.asked)
    again = run_study(study, out=tmp_path / "one", storage=storage)
    assert len(server.asked) == n_asked
    assert said(again) == said(first)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[prompts]", r"must have `candidates`, `texts` or an `optimizer`"),
        ('[prompts]\ncandidates = ["brief"]', r"`prompts.candidates`: unknown 'brief'"),
        ('[prompts]\noptimiser = "try"', r"prompts\.optimiser: unknown key"),
        ('[prompts]\noptimizer = "copro"', r"'copro' needs a language model to write prompts"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_and_nobody_is_asked(
    server: Any, write_study: Make, tmp_path: Path, table: str, message: str
) -> None:
    study = write_study(("[search]", f"{table}\n[search]"))
    with pytest.raises(StudyError, match=message):
        run_study(study, out=tmp_path / "out")
    assert server.asked == []

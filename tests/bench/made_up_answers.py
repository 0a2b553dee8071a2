"""Answers of models that do not exist, and a folder of them: for tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.quality._folder import Answers


def some_answers(*, n_models: int, n: int, is_graded: bool, seed: int = 0) -> Answers:
    """Answers of models that are right more often the earlier they stand."""
    rng = np.random.default_rng(seed)
    right = rng.random((n_models, n)) < np.linspace(0.7, 0.3, n_models)[:, None]
    codes = np.where(right, 0, rng.integers(1, 4, right.shape)).astype(np.int16)
    codes[rng.random(codes.shape) < 0.15] = -1
    worth = rng.random((4, n)) if is_graded else np.array([[1.0], [0], [0], [0]]).repeat(n, 1)
    scores = np.where(codes < 0, 0.0, np.take_along_axis(worth, codes.clip(0), axis=0))
    names = tuple(f"m{i}" for i in range(n_models))
    return Answers(names, codes, scores, (True,) * n_models)


def write_letters(folder: Path, *, n: int = 300, n_models: int = 4) -> Answers:
    """Write a folder like mmlu_pro; the last two questions are flagged."""
    answers = some_answers(n_models=n_models, n=n, is_graded=False, seed=5)
    questions = [
        {"question_id": q, "gold": "A", "revised": q == n - 2, "repeated": q == n - 1}
        for q in range(n)
    ]
    letters = [
        {
            "question_id": q,
            "model": name,
            "letter": None if answers.codes[i, q] < 0 else "ABCD"[answers.codes[i, q]],
            "correct": bool(answers.scores[i, q]),
        }
        for q in range(n)
        for i, name in enumerate(answers.names)
    ]
    pq.write_table(pa.Table.from_pylist(questions), folder / "questions.parquet")
    pq.write_table(pa.Table.from_pylist(letters), folder / "letters.parquet")
    strengths = ["strong", *["middle"] * (n_models - 1)]
    lines = [f"{name},{s}" for name, s in zip(answers.names, strengths, strict=True)]
    (folder / "models.csv").write_text("\n".join(["model,strength", *lines]), "utf-8")
    return answers

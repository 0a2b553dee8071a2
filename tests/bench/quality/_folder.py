"""What a folder's models answered, as arrays."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

FEWEST, MOST_DRAWN = 6, 12
"""Models of a random sub-pool."""
Codes: TypeAlias = NDArray[np.int16]
Scores: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]
Table: TypeAlias = dict[str, list[Any]]
COMPARABLE: Final = 0.20
"""Models this close to the median accuracy are the middle, where nobody says which they are."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One row per model, one column per question.

    Attributes:
        names: Of the models, sorted.
        codes: Equal where answers to one question are equal; -1 is no answer.
        scores: In [0, 1]; 0 where nothing was answered.
        is_middle: Whether a model is one of comparable strength.
    """

    names: tuple[str, ...]
    codes: Codes
    scores: Scores
    is_middle: tuple[bool, ...]

    @property
    def n_models(self) -> int:
        return len(self.names)

    @property
    def n_questions(self) -> int:
        return int(self.codes.shape[1])

    def at(self, questions: Indices) -> Answers:
        """Return the answers to these questions, in this order."""
        return replace(self, codes=self.codes[:, questions], scores=self.scores[:, questions])

    def of(self, models: Sequence[int]) -> Answers:
        """Return the answers of these models, in this order."""
        rows = list(models)
        return Answers(
            tuple(self.names[i] for i in rows),
            self.codes[rows],
            self.scores[rows],
            tuple(self.is_middle[i] for i in rows),
        )

    def pool(self, which: str) -> Answers:
        """Return "all" models, those in the "middle", or the random ones of "sub:SEED"."""
        if which.startswith("sub:"):
            rng = np.random.default_rng([int(which.removeprefix("sub:")), self.n_models])
            size = int(rng.integers(FEWEST, min(MOST_DRAWN, self.n_models - 1) + 1))
            return self.of(sorted(rng.choice(self.n_models, size, replace=False).tolist()))
        return self.of([i for i in range(self.n_models) if which == "all" or self.is_middle[i]])


def read_folder(folder: Path) -> Answers:
    """Return the answers to all questions whose text occurs once, in the file's order.

    The folder has mmlu_pro's files (letters.parquet, models.csv) or reasoning_gym's
    (responses.parquet); both have questions.parquet.
    """
    questions = pq.read_table(folder / "questions.parquet").to_pydict()
    wanted = {name: column for column, name in enumerate(_clean(questions))}
    if (folder / "letters.parquet").is_file():
        answer, score, file = "letter", "correct", "letters.parquet"
    else:
        answer, score, file = "extracted", "score", "responses.parquet"
    columns = ["question_id", "model", answer, score]
    table: Table = pq.read_table(folder / file, columns=columns).to_pydict()
    names = sorted(set(table["model"]))
    texts = np.full((len(names), len(wanted)), None, object)
    scores = np.zeros(texts.shape)
    rows = {name: row for row, name in enumerate(names)}
    for question, model, text, value in zip(*table.values(), strict=True):
        given = "" if text is None else str(text).strip()
        if question in wanted and given:
            place = rows[model], wanted[question]
            texts[place], scores[place] = given, min(max(float(value or 0), 0.0), 1.0)
    middle = _middle(folder / "models.csv", names, scores)
    return Answers(tuple(names), _codes(texts), scores, middle)


def _clean(questions: Table) -> Iterator[Any]:
    """Yield the ids of questions that stand once and as they were asked.

    Where the folder says which are repeated, it has looked at the options as well.
    """
    flags = [questions[name] for name in ("revised", "repeated") if name in questions]
    texts = questions.get("question", []) if "repeated" not in questions else []
    counts = Counter(text for text in texts if text is not None)
    for row, name in enumerate(questions["question_id"]):
        is_copy = bool(texts) and counts[texts[row]] > 1
        if not is_copy and not any(flag[row] for flag in flags):
            yield name


def _codes(texts: NDArray[np.object_]) -> Codes:
    codes = np.full(texts.shape, -1, np.int16)
    for column in range(texts.shape[1]):
        seen: dict[str, int] = {}
        for row, text in enumerate(texts[:, column]):
            if text is not None:
                codes[row, column] = seen.setdefault(text, len(seen))
    return codes


def _middle(path: Path, names: Sequence[str], scores: Scores) -> tuple[bool, ...]:
    strength: Mapping[str, str] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            strength = {row["model"]: row.get("strength") or "" for row in csv.DictReader(file)}
    if all(strength.get(name) for name in names):
        return tuple(strength[name] == "middle" for name in names)
    accuracy = scores.mean(axis=1)
    near = np.abs(accuracy - np.median(accuracy)) <= COMPARABLE
    return tuple(bool(is_near) for is_near in near)

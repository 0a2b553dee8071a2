"""The base of every benchmark: its card, and a reader that gives equal rows from hub and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.rows import make_examples
from moa_dspy.data.tables import Record, hub_records
from moa_dspy.errors import DataError


@dataclass(frozen=True, slots=True)
class BenchmarkOrigin:
    """Source, licence and citation of a benchmark.

    Attributes:
        repository: On the Hugging Face hub, "owner/name"; elsewhere only where it has none there.
        splits: As published; the first is the one read where none is asked for.
        paper: URL.
        config: Configuration on the hub, where there are several.
        files: Split -> JSON file to read, for a repository that `datasets` cannot load by name.
    """

    repository: str
    splits: tuple[str, ...]
    paper: str
    config: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A public set of questions with its card; subclasses know its files and columns.

    Attributes:
        name: In study files.
        title: For people.
        origin: Where it is published.
        licence: As the publishers state it.
        scoring: How the field scores it, and what our metric does about it.
        citation: Authors, title, year and paper.
        inputs: Fields that a program is given.
        metric: Name in `METRICS`; None where a judge is needed.
    """

    name: str
    title: str
    origin: BenchmarkOrigin
    licence: str
    scoring: str
    citation: str
    inputs: tuple[str, ...]
    metric: str | None = None

    def read(
        self, source: Path | None = None, *, split: str | None = None, limit: int | None = None
    ) -> list[dspy.Example]:
        """Every question is one example, in the published order, with an `id` no other has.

        Args:
            source: A local file or folder with the same content; None loads it from the hub.
            split: One of `origin.splits`; None is the first.
            limit: Most rows to return, the first ones; None is all.

        Raises:
            DataError: The hub or the source cannot be read, there is no such split, or a row
                lacks what the benchmark has; in one line.
        """
        if split is not None and split not in self.origin.splits:
            known = ", ".join(self.origin.splits)
            raise DataError(f"{self.name} has no split {split!r}; known ones are {known}.")
        if limit is not None and limit < 1:
            raise DataError(f"`limit` must be at least 1, but got {limit}.")
        label = self.name if source is None else str(source)
        records = self._hub(split) if source is None else self._local(Path(source), split)
        rows = [
            (where, fields)
            for number, (where, row) in enumerate(records)
            if (fields := self._fields(PublishedRow(row, f"{label}, {where}"), number, split))
            is not None
        ]
        return make_examples(rows, label, inputs=self.inputs)[:limit]

    def _hub(self, split: str | None) -> Iterable[Record]:
        """The published rows."""
        origin, chosen = self.origin, split or self.origin.splits[0]
        return hub_records(
            origin.repository, config=origin.config, split=chosen, file=origin.files.get(chosen)
        )

    def _local(self, source: Path, split: str | None) -> Iterable[Record]:
        """The same rows from a file or folder."""
        raise NotImplementedError

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any] | None:
        """Our fields of the row with this number, from 0; None leaves it out."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A published row whose missing columns are errors that say where."""

    columns: Mapping[str, Any]
    place: str

    def text(self, *names: str) -> str:
        """Return the first of these columns that the row has.

        Raises:
            DataError: It has none of them, or no text in it.
        """
        for name in names:
            if (value := self.columns.get(name)) is not None:
                if not isinstance(value, str):
                    kind = type(value).__name__
                    raise DataError(f"{self.place}: {name!r} must be text, but is a {kind}.")
                return value
        known = ", ".join(sorted(map(str, self.columns)))
        raise DataError(f"{self.place}: no {' or '.join(map(repr, names))}; the row has {known}.")

    def texts(self, name: str) -> list[str]:
        """Return a column that is a list of texts; a missing one is empty."""
        value = self.columns.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DataError(f"{self.place}: {name!r} must be a list of texts, but is {value!r}.")
        return list(value)

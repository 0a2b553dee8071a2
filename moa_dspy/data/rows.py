"""Examples from the rows of a table or benchmark, with checks for missing values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.tables import (
    Record,
    holds_answer,
    is_absent,
    plain_text,
    read_records,
)
from moa_dspy.errors import DataError

_logger = logging.getLogger(__name__)

_SHOWN_PLACES = 5
_GOLD = "answer"


def read_rows(
    path: Path | str,
    *,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return one example per row of the file, in file order, with a unique `id`.

    A cell has no value if it is null, NaN, pandas' NA or NaT, or blank. A text such as "None"
    or "nan" is a value. A CSV row whose cells are all blank is no row.

    Args:
        path: A file in one of `FORMATS`, by its suffix; text is UTF-8.
        inputs: Input fields of the program; every row must have them, and not all blank.
        columns: Field name -> column of the file, if they differ.
        outputs: The fields with right answers; every row must have a value in each. None means
            `answer`, if the file has such a column.
        drops_incomplete: Whether rows without a question, or without a value in one of the
            `outputs`, are left out; their number is logged.

    Returns:
        Examples with their inputs set. `id` is a text: the field `id` or, if the file has none, the
        row's number from 1.

    Raises:
        DataError: The file is missing, unreadable, empty or in no known format, a row is broken
            or lacks a field, or two rows share an id. It names the file, the line and the value.
    """
    path = Path(path)
    return make_examples(
        read_records(path),
        f"{path}",
        inputs=inputs,
        columns=columns,
        outputs=outputs,
        drops_incomplete=drops_incomplete,
    )


def make_examples(
    rows: Iterable[Record],
    source: str,
    *,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return the rows of any table as examples by the rules of `read_rows`.

    `source` is the name of the table in errors.
    """
    names, raw = dict(columns or {}), list(rows)
    if not raw:
        raise DataError(f"{source} has no rows.")
    _check_columns(raw, source, names)
    records = [(where, _renamed(row, names)) for where, row in raw]
    if both := sorted({*inputs} & {*(outputs or ())}):
        raise DataError(f"{source}: {both[0]!r} cannot be both an input and an output.")
    if outputs is None:
        outputs = [_GOLD] if any(_GOLD in row for _, row in records) else []
    # A column `id` is renamed if it does not identify the rows; these are then numbered.
    named = {field for field, column in names.items() if column != "id"}
    needed = {*inputs, *named, *outputs} | ({"id"} & set(records[0][1]))
    if drops_incomplete:
        records = _complete(records, source, inputs=inputs, outputs=outputs)
    for where, row in records:
        _check_fields(row, sorted(needed), f"{source}, {where}", names)
    _check_values(records, source, sorted(needed), inputs=inputs, outputs=outputs)
    ids = _ids(records, source)
    return [
        dspy.Example({**row, "id": name}).with_inputs(*inputs)
        for name, (_, row) in zip(ids, records, strict=True)
    ]


def _ids(records: Sequence[Record], source: str) -> list[str]:
    """Return a unique text per row; `source` is for the error."""
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(records, start=1):
        name = plain_text(row.get("id", number))
        if name in places:
            raise DataError(f"{source}: id {name!r} is on {places[name]} and again on {where}.")
        places[name] = where
    return list(places)


def _check_columns(records: Sequence[Record], source: str, names: Mapping[str, str]) -> None:
    """Check that each column that has another name is in at least one row."""
    present = dict.fromkeys(str(column) for _, row in records for column in row)
    for field, column in names.items():
        if column not in present:
            raise DataError(
                f"{source}: no field {field!r}, as there is no column {column!r}, which `columns` "
                f"names; there are {', '.join(present)}."
            )


def _renamed(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    # A row without the column has no value in the field, even if it has a column of that name.
    taken = {*names, *names.values()}
    rest = {column: value for column, value in row.items() if column not in taken}
    return rest | {field: row[column] for field, column in names.items() if column in row}


def _check_fields(
    row: Mapping[str, Any], needed: Sequence[str], place: str, names: Mapping[str, str]
) -> None:
    for field in needed:
        if field not in row:
            column = f" (column {names[field]!r})" if field in names else ""
            present = ", ".join(sorted(map(str, row)))
            raise DataError(f"{place}: no field {field!r}{column}; the row has {present}.")


def is_incomplete(row: Mapping[str, Any], *, inputs: Sequence[str], outputs: Sequence[str]) -> bool:
    """Return whether a row has no question, or no right answer in one of the outputs.

    An input may be a blank text if another input is not.
    """
    return any(_lacks(row, name, inputs=inputs, outputs=outputs) for name in (*inputs, *outputs))


def _complete(
    records: list[Record], source: str, *, inputs: Sequence[str], outputs: Sequence[str]
) -> list[Record]:
    """Return the records that are not incomplete; log the number of others."""
    options: Any = {"inputs": inputs, "outputs": outputs}
    kept = [record for record in records if not is_incomplete(record[1], **options)]
    lacking = [
        repr(name)
        for name in (*inputs, *outputs)
        if any(_lacks(row, name, **options) for _, row in records)
    ]
    if not kept:
        present = ", ".join(dict.fromkeys(str(name) for _, row in records for name in row))
        raise DataError(
            f"{source}: no row has a value in {' and '.join(lacking)}; the rows have {present}."
        )
    if lacking:
        _logger.warning(
            "%s: %d of %d rows are left out, because they have no value in %s.",
            source, len(records) - len(kept), len(records), ", ".join(lacking),
        )  # fmt: skip
    return kept


def _check_values(
    records: Sequence[Record],
    source: str,
    needed: Sequence[str],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Check that no row lacks a value; an input may be empty if another input is not."""
    for field in needed:
        lacking = [
            (where, row[field])
            for where, row in records
            if _lacks(row, field, inputs=inputs, outputs=outputs)
        ]
        if not lacking:
            continue
        where, value = lacking[0]
        if len(lacking) == 1:
            kind = _kind_of_nothing(value)
            raise DataError(
                f"{source}, {where}: field {field!r} is {kind}, but it must have a value."
            )
        raise DataError(
            f"{source}: field {field!r} must have a value, but has none on "
            f"{_listed([where for where, _ in lacking])}."
        )


def _lacks(
    row: Mapping[str, Any], field: str, *, inputs: Sequence[str], outputs: Sequence[str]
) -> bool:
    value = row.get(field)
    if field in outputs:
        return not holds_answer(value)
    if not isinstance(value, str):
        return is_absent(value)
    if field in inputs:
        return all(is_absent(row.get(name)) for name in inputs)
    return field == "id" and is_absent(value)


def _kind_of_nothing(value: Any) -> str:
    if value is None:
        return "null"
    return "empty" if isinstance(value, str | list | tuple | Mapping) else "NaN"


def _listed(places: Sequence[str]) -> str:
    shown, more = ", ".join(places[:_SHOWN_PLACES]), len(places) - _SHOWN_PLACES
    return f"{shown} and {more} more" if more > 0 else shown


def check_outputs(
    rows: Sequence[dspy.Example], fields: Sequence[str], *, where: str = "The data"
) -> None:
    """Check, without a call, that every row has a value in every field that a metric reads.

    Args:
        rows: Examples; a row without `id` is named by its number, from 1.
        fields: Names of output fields, such as `answer`.
        where: The rows' name in errors, such as "Split 'test'".

    Raises:
        DataError: A row lacks a field, or a value in it: null, NaN, a blank text or an empty
            list. It names the rows, and the fields that the first of them has.
    """
    for field in fields:
        lacking = [
            (plain_text(row.get("id", number)), row)
            for number, row in enumerate(rows, start=1)
            if not holds_answer(row.get(field, None))
        ]
        if lacking:
            present = ", ".join(map(str, lacking[0][1].keys()))
            raise DataError(
                f"{where}: {len(lacking)} of {len(rows)} rows have no value in {field!r}, which "
                f"the metric reads: {_listed([repr(name) for name, _ in lacking])}; the first of "
                f"these has {present}. Name the column that holds it in `columns`."
            )


def hub_records(
    name: str, *, split: str, config: str | None = None, file: str | None = None
) -> Iterator[Record]:
    """Yield the place and the columns of each row of a split on the hub.

    Args:
        name: Repository on the hub or a folder; with `file`, the name in errors.
        split: Name of the split in the data set.
        config: Configuration, if the data set has several.
        file: URL or path of a JSON file to read instead of a declared split. Data sets
            that a Python script declares cannot be loaded by name since `datasets` 4.

    Raises:
        DataError: If it cannot be loaded, for any reason; the message says how to continue without
            the hub.
    """
    import datasets  # imported here, as importing this library must not load it

    try:
        table: Any = (
            datasets.load_dataset(name, config, split=split)
            if file is None
            else datasets.load_dataset("json", data_files=file, split="train")
        )
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise DataError(
            f"{name}, split {split!r}, cannot be loaded from the hub "
            f"({type(error).__name__}: {reason}); give the path of a local copy instead."
        ) from error
    for number, row in enumerate(table, start=1):
        yield f"row {number}", dict(row)


def read_hub(
    name: str,
    *,
    config: str | None = None,
    split: str,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return one example per row of a split of a hub data set, in the data set's order.

    Args:
        name: Repository on the hub, "owner/name"; or a folder that `datasets` can load.
        config: Configuration, if the data set has several.
        split: Name of the split in the data set.
        inputs: Input fields of the program; every row must have them.
        columns: Field name -> column of the data set, if they differ.
        outputs: As for `read_rows`.
        drops_incomplete: As for `read_rows`.

    Returns:
        Examples as from `read_rows`.

    Raises:
        DataError: The split cannot be loaded, has no rows, or a row lacks a field.
    """
    source = f"{name} ({split})" if config is None else f"{name} ({config}, {split})"
    return make_examples(
        hub_records(name, config=config, split=split),
        source,
        inputs=inputs,
        columns=columns,
        outputs=outputs,
        drops_incomplete=drops_incomplete,
    )


@dataclass(frozen=True, slots=True)
class BenchmarkOrigin:
    """Source, licence and citation of a benchmark.

    Attributes:
        repository: Repository on the Hugging Face hub, "owner/name", or elsewhere if it has none
            there.
        splits: Published splits; the first is the default.
        paper: URL.
        config: Configuration on the hub, if there are several.
        files: Split -> JSON file to read, for a repository that `datasets` cannot load by name.
    """

    repository: str
    splits: tuple[str, ...]
    paper: str
    config: str | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A public set of questions with its card; subclasses define its files and columns.

    Attributes:
        name: Name in study files.
        title: Title for display.
        origin: Source of the benchmark.
        licence: Licence as stated by the publishers.
        scoring: The usual scoring, and that of our metric.
        citation: Authors, title, year and paper.
        inputs: Input fields of the program.
        metric: Name in `METRICS`; None if a judge is needed.
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
        """Return every question as an example with a unique `id`, in the published order.

        Args:
            source: A local file or folder with the same content; None loads it from the hub.
            split: One of `origin.splits`; None is the first.
            limit: Number of first rows to return; None returns all.

        Raises:
            DataError: The hub or the source cannot be read, there is no such split, or a row
                lacks what the benchmark has; in one line.
        """
        if split is not None and split not in self.origin.splits:
            choices = ", ".join(self.origin.splits)
            raise DataError(f"{self.name} has no split {split!r}; known ones are {choices}.")
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
        """Return the published rows."""
        origin, chosen = self.origin, split or self.origin.splits[0]
        return hub_records(
            origin.repository, config=origin.config, split=chosen, file=origin.files.get(chosen)
        )

    def _local(self, source: Path, split: str | None) -> Iterable[Record]:
        """Return the same rows from a file or folder."""
        raise NotImplementedError

    def _fields(self, row: PublishedRow, number: int, split: str | None) -> dict[str, Any] | None:
        """Return our fields of the row with this number, from 0, or None to leave it out."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A published row, whose missing columns are errors that name their place."""

    columns: Mapping[str, Any]
    place: str

    def text(self, *names: str) -> str:
        """Return the first of these columns that the row has.

        Raises:
            DataError: If it has none of them, or the column is not a text.
        """
        for name in names:
            if (value := self.columns.get(name)) is not None:
                if not isinstance(value, str):
                    kind = type(value).__name__
                    raise DataError(f"{self.place}: {name!r} must be text, but is a {kind}.")
                return value
        present = ", ".join(sorted(map(str, self.columns)))
        raise DataError(f"{self.place}: no {' or '.join(map(repr, names))}; the row has {present}.")

    def texts(self, name: str) -> list[str]:
        """Return a column that is a list of texts; empty if it is missing."""
        value = self.columns.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DataError(f"{self.place}: {name!r} must be a list of texts, but is {value!r}.")
        return list(value)

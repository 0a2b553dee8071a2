"""Tables of the Hugging Face hub become rows like those of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from moa_dspy.data._rows import Record, make_examples
from moa_dspy.errors import DataError


def read_hub(
    name: str,
    *,
    config: str | None = None,
    split: str,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
) -> list[dspy.Example]:
    """Every row of a split of a hub data set is one example, in the data set's order.

    Args:
        name: Repository on the hub, "owner/name"; or a folder that `datasets` can load.
        config: Configuration, where the data set has several.
        split: As the data set calls it.
        inputs: The fields a program is given; every row must have them.
        columns: Our field name -> the data set's column, for those that differ.

    Returns:
        Examples as `read_rows` makes them.

    Raises:
        DataError: The split cannot be loaded, has no rows, or a row lacks a field.
    """
    source = f"{name} ({split})" if config is None else f"{name} ({config}, {split})"
    return make_examples(
        hub_records(name, config=config, split=split), source, inputs=inputs, columns=columns
    )


def hub_records(
    name: str, *, split: str, config: str | None = None, file: str | None = None
) -> Iterator[Record]:
    """Yield where each row of a hub split is, and its columns.

    Args:
        name: Repository on the hub or a folder; of a `file` its name for errors.
        split: As the data set calls it.
        config: Configuration, where the data set has several.
        file: URL or path of a JSON file to read instead of a declared split. Data sets
            that a Python script declares cannot be loaded by name since `datasets` 4.

    Raises:
        DataError: It cannot be loaded, whatever the reason; says how to go on without the hub.
    """
    # Here, not at the top: importing this library must not load datasets.
    import datasets

    try:
        table: Any = (
            datasets.load_dataset(name, config, split=split)
            if file is None
            else datasets.load_dataset("json", data_files=file, split="train")
        )
    except Exception as error:
        # Network, hub client, builders and Arrow each raise their own; to us they are one thing.
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise DataError(
            f"{name}, split {split!r}, cannot be loaded from the hub "
            f"({type(error).__name__}: {reason}); give the path of a local copy instead."
        ) from error
    for number, row in enumerate(table, start=1):
        yield f"row {number}", dict(row)

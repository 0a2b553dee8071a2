"""A recording: calls in one Parquet file that can be committed, shared and replayed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from moa_dspy.calls.call import Call, call_key
from moa_dspy.errors import StoreError

# The key is computed from the content. Time and number of the attempt are no part of request and
# answer: equal recordings are equal files, whenever they were made.
_NOT_IN_FILES = ("key", "attempt", "time")
_COLUMNS = {
    f.name: str(f.type).partition(" ")[0] for f in fields(Call) if f.name not in _NOT_IN_FILES
}


class Recording:
    """Calls by key, read from a file or written to one.

    Keys are computed again from the content when the file is read, so a row that
    was altered answers the altered request and never another one. The file holds neither the
    time of a call nor its attempt: read from it, they are 0.0 and 1. All calls are in memory,
    when a file is read and when it is written.

    Raises:
        StoreError: If the file is absent or is not a recording.
    """

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._calls = {call.key: call for call in calls}

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file that ``write`` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise StoreError(f"{path} cannot be read as a recording: there is no such file.")
        try:
            columns = pq.read_table(path, columns=list(_COLUMNS)).to_pydict()
        except (OSError, pa.ArrowException, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} cannot be read as a recording: {reason}") from error
        rows = zip(*columns.values(), strict=True)
        calls = (dict(zip(columns, row, strict=True)) for row in rows)
        return cls(Call(key=call_key(c["identity"], c["sample"], c["request"]), **c) for c in calls)

    def write(self, path: Path) -> None:
        """Write every call, ordered by content, so that equal recordings are equal files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted(self, key=lambda c: (c.identity, c.request, c.sample))
        kept = [{name: getattr(call, name) for name in _COLUMNS} for call in rows]
        partial = path.with_suffix(path.suffix + ".partial")
        pq.write_table(pa.Table.from_pylist(kept, schema=_schema()), partial, compression="zstd")
        partial.replace(path)

    def get(self, key: str) -> Call | None:
        """Return the recorded call, or None."""
        return self._calls.get(key)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)


def _schema() -> Any:
    # Not inferred from the rows: a recording may have no failures, or no rows.
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in _COLUMNS.items()])

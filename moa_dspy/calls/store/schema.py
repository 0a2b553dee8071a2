"""The tables of a call store and their version, calls as table rows, and recordings of calls.

A recording is one Parquet file of calls that can be committed, shared and replayed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moa_dspy.calls.call import Call, call_key
from moa_dspy.calls.store.database import ANOTHER_PLACE, Database, Session
from moa_dspy.errors import StoreError
from moa_dspy.files import replacing

SCHEMA_VERSION = 3

_LOCK = 0x6D6F61
"""The advisory lock that lets one process at a time prepare a PostgreSQL database."""

_metadata = sa.MetaData()
_big, _real = sa.BigInteger, sa.Float
_key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Compared byte by byte, as in SQLite, independent of the database's locale."""


def _column(name: str, kind: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, **{"nullable": False, **options})


_TABLES = (
    sa.Table("moa_schema", _metadata, _column("version", sa.Integer)),
    sa.Table(
        "calls",
        _metadata,
        _column("key", _key, primary_key=True),
        _column("agent", sa.Text),
        _column("identity", sa.Text),
        _column("sample", sa.Integer),
        _column("request", sa.LargeBinary),
        _column("response", sa.LargeBinary, nullable=True),
        _column("prompt_tokens", _big),
        _column("completion_tokens", _big),
        _column("usd", _real),
        _column("seconds", _real),
        _column("failure", sa.Text, nullable=True),
        _column("attempt", sa.Integer, server_default=sa.text("1")),
        _column("time", _real, server_default=sa.text("0")),
    ),
    # Answers that were paid for although the store had an answer already.
    sa.Table(
        "paid_twice",
        _metadata,
        _column("id", sa.Text, primary_key=True),
        _column("key", _key),
        _column("agent", sa.Text),
        _column("tokens", _big),
        _column("usd", _real),
        _column("time", _real),
    ),
    # Processes that hold claims or reservations; each renews its own row, or counts as dead.
    sa.Table(
        "owners",
        _metadata,
        _column("owner", sa.Text, primary_key=True),
        _column("beat", _big),
        _column("expires", _real),
    ),
    sa.Table(
        "claims",
        _metadata,
        _column("key", _key, primary_key=True),
        _column("owner", sa.Text),
    ),
    # Per study, the spending and the upper bound of its open `reservations`.
    sa.Table(
        "spending",
        _metadata,
        _column("study", sa.Text, primary_key=True),
        *(_column(name, _big) for name in ("made", "reused", "tokens")),
        _column("usd", _real),
        _column("seconds", _real),
        _column("ticked_at", _real, nullable=True),
        *(_column(name, _big) for name in ("open_calls", "open_tokens")),
        _column("open_usd", _real),
    ),
    sa.Table(
        "reservations",
        _metadata,
        _column("ticket", sa.Text, primary_key=True),
        _column("study", sa.Text),
        _column("owner", sa.Text),
        _column("key", _key, nullable=True),
        _column("tokens", _big),
        _column("usd", _real),
    ),
    # End of an endpoint's pause, by the database's clock.
    sa.Table(
        "pauses",
        _metadata,
        _column("endpoint", sa.Text, primary_key=True),
        _column("until", _real),
    ),
    # Studies that several processes work on, with their results; Optuna has `studies` already.
    sa.Table(
        "shared_studies",
        _metadata,
        _column("study", sa.Text, primary_key=True),
        *(_column(name, sa.Text) for name in ("parts", "budget")),
        *(_column(name, sa.Text, nullable=True) for name in ("result", "program", "place")),
    ),
    # Work items of such a study: an architecture on an example; `is_done` is 0 or 1.
    sa.Table(
        "tasks",
        _metadata,
        _column("study", sa.Text, primary_key=True),
        _column("architecture", _key, primary_key=True),
        _column("example", _key, primary_key=True),
        _column("number", _big),
        _column("share", _real),
        _column("is_done", sa.Integer),
        _column("owner", sa.Text, nullable=True),
        sa.Index("moa_open_tasks", "study", "is_done", "number"),
    ),
)
_KEPT_ANSWERS = sa.Table(
    "kept_answers",
    sa.MetaData(),
    _column("key", _key, primary_key=True),
    # Key, seconds and time identify the version of the call whose reply was parsed.
    _column("call", _key),
    _column("seconds", _real),
    _column("time", _real),
    _column("answer", sa.LargeBinary),
)
"""Parsed replies. The table is made when it is first used; a store may lack it or lose it."""
_MARKING_TABLES = "('moa_schema', 'calls')"
_FOREIGN = -1
"""Version number for a database whose table ``calls`` belongs to another program."""


def prepare(database: Database) -> None:
    """Make the tables in one transaction, if there are none.

    Many processes may call this at the same time.

    Raises:
        StoreError: If the store has another version, or the database belongs to another program.
    """
    # Reading takes no lock, so most processes need not wait for a writer.
    if _version(database.rows, is_postgresql=database.is_postgresql) != SCHEMA_VERSION:
        database.transact(lambda session: _make(session, database.name))


def _make(session: Session, name: str) -> None:
    if session.is_postgresql:
        session.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
    version = _version(session.rows, is_postgresql=session.is_postgresql)
    if version == SCHEMA_VERSION:
        return
    if version == _FOREIGN:
        raise StoreError(
            f"{name} cannot be used: its table `calls` is not that of a call store. {ANOTHER_PLACE}"
        )
    if version:
        raise StoreError(
            f"{name} has schema {version}, but this version of moa-dspy reads {SCHEMA_VERSION}. "
            f"{ANOTHER_PLACE}"
        )
    for table in _TABLES:
        _create(session, table)
    session.execute("INSERT INTO moa_schema (version) VALUES (?)", (SCHEMA_VERSION,))
    if not session.is_postgresql:
        session.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def make_kept_answers(session: Session) -> None:
    """Make the table ``kept_answers``, if it is missing."""
    if session.is_postgresql:
        session.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
    _create(session, _KEPT_ANSWERS)


_KEPT_COLUMNS: Final = ("agent", "prompt_tokens", "completion_tokens", "usd", "seconds", "attempt")
_SELECT_KEPT: Final = (
    f"SELECT k.key, k.answer, {', '.join(f'c.{name}' for name in _KEPT_COLUMNS)}, c.time "
    "FROM kept_answers k JOIN calls c ON c.key = k.call "
    # A call that was deleted and made again has another time and possibly another answer.
    "WHERE c.failure IS NULL AND c.seconds = k.seconds AND c.time = k.time AND k.key IN ({marks})"
)
_INSERT_KEPT: Final = (
    "INSERT INTO kept_answers (key, call, seconds, time, answer) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET call = excluded.call, seconds = excluded.seconds, "
    "time = excluded.time, answer = excluded.answer"
)
_PAGE: Final = 500
"""Answers per query."""


def read_kept(database: Database, keys: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Return by key the kept answer (packed), the cost of its call, and its time."""
    rows: dict[str, Sequence[Any]] = {}
    for start in range(0, len(keys), _PAGE):
        part = keys[start : start + _PAGE]
        query = _SELECT_KEPT.format(marks=", ".join("?" * len(part)))
        rows |= {row[0]: row[1:] for row in database.rows(query, part)}
    return rows


def write_kept(database: Database, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write kept answers: rows of (key, key of the call, its seconds, its time, answer)."""
    # Sorted, so that two writers of the same answers cannot deadlock.
    database.transact(lambda session: session.execute_many(_INSERT_KEPT, sorted(rows)))


def _create(session: Session, table: sa.Table) -> None:
    dialect: Any = postgresql.dialect if session.is_postgresql else sqlite.dialect
    statements: list[Any] = [sa.schema.CreateTable(table, if_not_exists=True)]
    statements += [sa.schema.CreateIndex(index, if_not_exists=True) for index in table.indexes]
    for create in statements:
        session.execute(str(create.compile(dialect=dialect())))


def _version(query: Callable[[str], list[Any]], *, is_postgresql: bool) -> int:
    """Return the version of the store; 0 means that there is none."""
    stamp = 0 if is_postgresql else int(query("PRAGMA user_version")[0][0])
    # One query for both facts, of a table instead of a cache: another process may be making them
    # now.
    if is_postgresql:
        where = "pg_tables WHERE schemaname = ANY (current_schemas(FALSE)) AND tablename"
        tables = {row[0] for row in query(f"SELECT tablename FROM {where} IN {_MARKING_TABLES}")}
    else:
        where = "sqlite_master WHERE type = 'table' AND name"
        tables = {row[0] for row in query(f"SELECT name FROM {where} IN {_MARKING_TABLES}")}
    if "moa_schema" in tables:
        versions = [int(row[0]) for row in query("SELECT version FROM moa_schema")]
        return max([stamp, *versions])
    return _FOREIGN if stamp == 0 and "calls" in tables else stamp


CALL_COLUMNS = tuple(f.name for f in fields(Call))

_SHORTEST_PACKED = 64
"""In bytes; packing does not make shorter texts smaller."""
_PACKED = b"x"
"""First byte of zlib's output, with which no JSON text begins."""
_LEVEL = 6
# Short requests and responses consist mostly of common phrases. The dictionary is part of the
# format: texts packed with it cannot be read with a changed one. The most common phrase is last.
_DICTIONARY = (
    b'{"code":"","failure":"","logprobs":[],"tool_calls":[],"type":"thinking","thinking":"'
    b"Respond with the corresponding output fields, starting with the field `[[ ## answer ## ]]`"
    b", and then ending with the marker for `[[ ## completed ## ]]`."
    b"Your input fields are:\\n1. `question` (str):\\n"
    b"Your output fields are:\\n1. `answer` (str):\\n"
    b"All interactions will be structured in the following way, with the appropriate values filled "
    b"in.\\n\\n[[ ## question ## ]]\\n{question}\\n\\n[[ ## reasoning ## ]]\\n{reasoning}\\n\\n"
    b"[[ ## answer ## ]]\\n{answer}\\n\\n[[ ## completed ## ]]\\n"
    b"In adhering to this structure, your objective is: \\n        Given the fields `question`, "
    b"produce the fields `answer`."
    b"You have been provided with a set of responses from various open-source models to the latest "
    b"user query. Your task is to synthesize these responses into a single, high-quality response. "
    b"It is crucial to critically evaluate the information provided in these responses, "
    b"recognizing that some of it may be biased or incorrect. Your response should not simply "
    b"replicate the given answers but should offer a refined, accurate, and comprehensive reply "
    b"to the instruction. Ensure your response is well-structured, coherent, and adheres to the "
    b"highest standards of accuracy and reliability.\\n\\nResponses from models:\\n1. "
    b'{"finish_reason":"length","finish_reason":"stop","message":{"parts":[{"text":"","type":"text"}'
    b'],"role":"assistant"},"model":"agent/","usage":{"input_tokens":100,"output_tokens":10,'
    b'"total_tokens":110}}'
    b'{"config":{"max_tokens":1024,"temperature":0.7},"messages":[{"parts":[{"text":"'
    b'","type":"text"}],"role":"user"}],"system":"'
)
_NOT_IN_A_TEXT = re.compile(r"[\x00\ud800-\udfff]")

_values = attrgetter(*CALL_COLUMNS)
_REQUEST, _RESPONSE = CALL_COLUMNS.index("request"), CALL_COLUMNS.index("response")
_FAILURE = CALL_COLUMNS.index("failure")


def packed(text: str) -> bytes:
    """Return ``text`` (JSON) compressed; see ``unpacked``."""
    plain = text.encode()
    if len(plain) < _SHORTEST_PACKED and plain[:1] != _PACKED:
        return plain
    packer = zlib.compressobj(_LEVEL, zdict=_DICTIONARY)
    return packer.compress(plain) + packer.flush()


def unpacked(data: bytes | str) -> str:
    """Return the text that ``packed`` compressed; short texts are stored unchanged."""
    if isinstance(data, str):
        return data
    if data[:1] == _PACKED:
        data = zlib.decompressobj(zdict=_DICTIONARY).decompress(data)
    return data.decode()


def to_row(call: Call) -> tuple[Any, ...]:
    """Return the values of ``call`` in the order of ``CALL_COLUMNS``."""
    row = list(_values(call))
    row[_REQUEST] = packed(call.request)
    row[_RESPONSE] = None if call.response is None else packed(call.response)
    # An endpoint's message may hold characters that databases do not accept in texts.
    row[_FAILURE] = call.failure and _NOT_IN_A_TEXT.sub(_escaped, call.failure)
    return tuple(row)


def from_row(row: Sequence[Any]) -> Call:
    """Return the call with the values of ``row``, in the order of ``CALL_COLUMNS``."""
    key, agent, identity, sample, request, response, *rest = row
    text = None if response is None else unpacked(response)
    return Call(key, agent, identity, sample, unpacked(request), text, *rest)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


# The key is computed from the content. Time and attempt are left out, so that equal recordings are
# equal files, whenever they were made.
_NOT_IN_FILES = ("key", "attempt", "time")
_COLUMNS = {
    f.name: str(f.type).partition(" ")[0] for f in fields(Call) if f.name not in _NOT_IN_FILES
}


class Recording:
    """Calls by key, read from a file or written to one.

    Keys are computed from the content when the file is read, so an altered row can only answer the
    altered request. The file does not hold the time and attempt of a call; they are 0.0 and 1
    there. All calls are in memory during reading and writing.

    Raises:
        StoreError: If the file is missing or is not a recording.
    """

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._calls = {call.key: call for call in calls}

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file written by ``write``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise StoreError(f"{path} cannot be read as a recording: there is no such file.")
        try:
            present = pq.read_schema(path).names
            if missing := [name for name in _COLUMNS if name not in present]:
                raise StoreError(
                    f"{path} cannot be read as a recording: a table of calls needs the columns "
                    f"{', '.join(_COLUMNS)}, but this one lacks {', '.join(missing)} and has "
                    f"{', '.join(present)}. For a table of answers, use `data.path` with "
                    '`data.reader` = "recorded".'
                )
            columns = pq.read_table(path, columns=list(_COLUMNS)).to_pydict()
        except (OSError, pa.ArrowException, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} cannot be read as a recording: {reason}") from error
        rows = zip(*columns.values(), strict=True)
        calls = (dict(zip(columns, row, strict=True)) for row in rows)
        return cls(Call(key=call_key(c["identity"], c["sample"], c["request"]), **c) for c in calls)

    def write(self, path: Path) -> None:
        """Write every call, ordered by content, so that equal recordings are equal files.

        Raises:
            StoreError: If the file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(self, key=lambda c: (c.identity, c.request, c.sample))
        kept = [{name: getattr(call, name) for name in _COLUMNS} for call in rows]
        table = pa.Table.from_pylist(kept, schema=_schema())
        with replacing(path, error=StoreError) as partial:
            pq.write_table(table, partial, compression="zstd")

    def get(self, key: str) -> Call | None:
        """Return the recorded call, or None."""
        return self._calls.get(key)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)


def _schema() -> Any:
    # Not inferred from the rows, as a recording may have no failures or no rows.
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in _COLUMNS.items()])
